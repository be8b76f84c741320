import zipfile
from pathlib import Path

import pytest

from utils.core.environment import PROJECT, write_json
from utils.kaggle.packages import PackageError
from utils.kaggle.wheels import KAGGLE_IMAGE, download_wheels, missing_requirements

IMAGE = {"numpy": "1.26.4", "scikit-learn": "1.2.2"}


def make_wheel(folder, name, version="1.0", needs=(), tag="py3-none-any"):
    """The smallest wheel that pip takes."""
    stem = f"{name.replace('-', '_')}-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-{tag}.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def make_project(folder, requirements, source="import kit_alpha\n"):
    """A project whose only notebook imports one module, which another of utils, that stays at home, imports too."""
    for name in ("utils", "notebooks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "utils" / "reached.py").write_text("from utils import further\n")
    (folder / "utils" / "further.py").write_text(source)
    (folder / "utils" / "home.py").write_text("import kit_at_home\nfrom utils.reached import further\n")
    cells = [
        {"cell_type": "markdown", "source": ["# Not code"]},
        {"cell_type": "code", "source": ["from utils.reached import f\n"]},
    ]
    write_json(folder / "notebooks" / "only.ipynb", {"cells": cells})
    (folder / "requirements.txt").write_text(requirements)
    return folder / "requirements.txt"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that is all that pip sees."""
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def names(wheels):
    return [wheel.name.split("-")[0] + " " + wheel.name.split("-")[1] for wheel in wheels]


def test_only_what_the_notebooks_reach_and_the_image_lacks_is_missing(tmp_path):
    source = "import numpy as np\nfrom sklearn.metrics import auc\n\ndef late():\n    from kit_alpha.part import f\n"
    requirements = make_project(
        tmp_path,
        "# learning\nkit-alpha>=2  # for late\nnumpy>=1.26\n\nscikit-learn>=1.2.2\npytest>=8\nkit-at-home\n",
        source,
    )
    assert missing_requirements(requirements, IMAGE) == ["kit-alpha>=2"]


def test_a_package_that_the_image_has_in_an_older_version_is_missing(tmp_path):
    requirements = make_project(tmp_path, "scikit-learn>=1.3\n", "import sklearn\n")
    assert missing_requirements(requirements, IMAGE) == ["scikit-learn>=1.3"]


def test_a_local_version_of_the_image_counts(tmp_path):
    requirements = make_project(tmp_path, "torch>=2.6\n", "import torch\n")
    assert missing_requirements(requirements, {"torch": "2.10.0+cu128"}) == []


def test_a_requirement_that_cannot_be_read_is_named(tmp_path):
    requirements = make_project(tmp_path, "numpy>=>1\n")
    with pytest.raises(PackageError, match=r"requirements.txt: 'numpy>=>1'"):
        missing_requirements(requirements, IMAGE)


def test_the_kit_lacks_decoder_and_process_pool_on_kaggle():
    missing = {line.partition(">")[0] for line in missing_requirements(PROJECT / "requirements.txt")}
    assert {"imagecodecs", "pebble"} <= missing
    assert not missing & ({"pytest", "ruff", "playwright", "nbstripout", "dicomsdl", "pylibjpeg"} | set(KAGGLE_IMAGE))


def test_wheels_are_closed_over_what_they_need(tmp_path, index):
    needs = ["kit_Beta>=1", "numpy", "kit-never; sys_platform == 'win32'", "kit-extra; extra == 'all'"]
    make_wheel(index, "kit-alpha", needs=needs, tag="cp312-cp312-manylinux_2_28_x86_64")
    make_wheel(index, "kit-alpha", "2.0", tag="cp313-cp313-manylinux_2_28_x86_64")
    make_wheel(index, "kit-beta", needs=["kit-alpha", "kit-gamma; python_version >= '3.11'"])
    make_wheel(index, "kit-gamma")
    wheels = download_wheels(tmp_path / "wheels", make_project(tmp_path, "kit-alpha\n"), image=IMAGE)
    assert names(wheels) == ["kit_alpha 1.0", "kit_beta 1.0", "kit_gamma 1.0"]
    assert sorted((tmp_path / "wheels").iterdir()) == wheels


def test_an_older_release_is_taken_where_the_newest_needs_another_numpy(tmp_path, index):
    for version, need in (("1.0", "numpy>=1.20"), ("2.0", "numpy>=2.1")):
        make_wheel(index, "kit-alpha", version, [need])
    wheels = download_wheels(tmp_path / "wheels", make_project(tmp_path, "kit-alpha>=1\n"), image=IMAGE)
    assert names(wheels) == ["kit_alpha 1.0"]


def test_a_conflict_with_the_image_names_both(tmp_path, index):
    make_wheel(index, "kit-alpha", "3.0", ["numpy>=2.1"])
    with pytest.raises(PackageError, match=r"(?s)kit-alpha.*depends on numpy>=2.1.*numpy==1.26.4\+image"):
        download_wheels(tmp_path / "wheels", make_project(tmp_path, "kit-alpha\n"), image=IMAGE)


def test_what_the_image_has_is_never_replaced(tmp_path, index):
    make_wheel(index, "scikit-learn", "1.5")
    requirements = make_project(tmp_path, "scikit-learn>=1.3\n", "import sklearn\n")
    with pytest.raises(PackageError, match=r"scikit-learn>=1.3.*scikit-learn==1.2.2\+image"):
        download_wheels(tmp_path / "wheels", requirements, image=IMAGE)


def test_two_wheels_that_want_different_releases_are_refused(tmp_path, index):
    make_wheel(index, "kit-alpha", needs=["kit-gamma>=1"])
    make_wheel(index, "kit-beta", needs=["kit-gamma<1"])
    make_wheel(index, "kit-gamma")
    requirements = make_project(tmp_path, "kit-alpha\nkit-beta\n", "import kit_alpha, kit_beta\n")
    with pytest.raises(PackageError, match="kit-beta.*kit-gamma"):
        download_wheels(tmp_path / "wheels", requirements, image=IMAGE)


def test_a_failed_download_says_what_pip_said(tmp_path, index):
    index.mkdir()
    told = "^pip found no wheels of kit-alpha .*No matching distribution found for kit-alpha.*pip config list"
    with pytest.raises(PackageError, match=told):
        download_wheels(tmp_path / "wheels", make_project(tmp_path, "kit-alpha\n"), image=IMAGE)


def test_no_folder_is_made_where_the_image_lacks_nothing(tmp_path, index):
    requirements = make_project(tmp_path, "numpy>=1.26\n", "import numpy\n")
    assert download_wheels(tmp_path / "wheels", requirements, image=IMAGE) == []
    assert not (tmp_path / "wheels").exists()


def test_a_wheel_comes_from_the_real_index(tmp_path):
    requirements = make_project(tmp_path, "pebble>=5.0.3\n", "import pebble\n")
    try:
        wheels = download_wheels(tmp_path / "wheels", requirements)
    except PackageError as error:
        pytest.skip(f"pip reaches no index here: {error}")
    assert [name.split()[0] for name in names(wheels)] == ["pebble"]
    assert zipfile.ZipFile(Path(wheels[0])).testzip() is None
