import zipfile

import pytest

from utils.core.folders import PROJECT
from utils.kaggle import wheels
from utils.kaggle.notebooks import Notebook
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


@pytest.fixture
def use(monkeypatch, tmp_path):
    """Write requirements.txt of a project whose only notebook needs some packages; gives its path."""

    def write(requirements, *packages):
        needs = {name.replace("-", "_"): name for name in packages}
        monkeypatch.setattr(wheels, "NOTEBOOKS", {"only": Notebook("only", "", needs)})
        (tmp_path / "requirements.txt").write_text(requirements)
        return tmp_path / "requirements.txt"

    return write


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that is all that pip sees."""
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def names(found):
    return [wheel.name.split("-")[0] + " " + wheel.name.split("-")[1] for wheel in found]


def test_only_what_the_notebooks_need_and_the_image_lacks_is_missing(use):
    text = "# learning\nkit-alpha>=2  # for late\nnumpy>=1.26\n\nscikit-learn>=1.2.2\npytest>=8\nkit-at-home\n"
    assert missing_requirements(use(text, "kit-alpha", "numpy", "scikit-learn"), IMAGE) == ["kit-alpha>=2"]


def test_a_package_that_the_image_has_in_an_older_version_is_missing(use):
    assert missing_requirements(use("scikit-learn>=1.3\n", "scikit-learn"), IMAGE) == ["scikit-learn>=1.3"]


def test_a_local_version_of_the_image_counts(use):
    assert missing_requirements(use("torch>=2.6\n", "torch"), {"torch": "2.10.0+cu128"}) == []


def test_a_requirement_that_cannot_be_read_is_named(use):
    with pytest.raises(PackageError, match=r"requirements.txt: 'numpy>=>1'"):
        missing_requirements(use("numpy>=>1\n"), IMAGE)


def test_the_kit_lacks_decoder_and_process_pool_on_kaggle():
    missing = {line.partition(">")[0] for line in missing_requirements(PROJECT / "requirements.txt")}
    assert {"imagecodecs", "pebble", "onnxscript", "onnxruntime"} <= missing
    assert not missing & ({"pytest", "ruff", "playwright", "nbstripout", "dicomsdl", "pylibjpeg"} | set(KAGGLE_IMAGE))


def test_wheels_are_closed_over_what_they_need(tmp_path, index, use):
    needs = ["kit_Beta>=1", "numpy", "kit-never; sys_platform == 'win32'", "kit-extra; extra == 'all'"]
    make_wheel(index, "kit-alpha", needs=needs, tag="cp312-cp312-manylinux_2_28_x86_64")
    make_wheel(index, "kit-alpha", "2.0", tag="cp313-cp313-manylinux_2_28_x86_64")
    make_wheel(index, "kit-beta", needs=["kit-alpha", "kit-gamma; python_version >= '3.11'"])
    make_wheel(index, "kit-gamma")
    found = download_wheels(tmp_path / "wheels", use("kit-alpha\n", "kit-alpha"), image=IMAGE)
    assert names(found) == ["kit_alpha 1.0", "kit_beta 1.0", "kit_gamma 1.0"]
    assert sorted((tmp_path / "wheels").iterdir()) == found


def test_an_older_release_is_taken_where_the_newest_needs_another_numpy(tmp_path, index, use):
    for version, need in (("1.0", "numpy>=1.20"), ("2.0", "numpy>=2.1")):
        make_wheel(index, "kit-alpha", version, [need])
    found = download_wheels(tmp_path / "wheels", use("kit-alpha>=1\n", "kit-alpha"), image=IMAGE)
    assert names(found) == ["kit_alpha 1.0"]


def test_a_conflict_with_the_image_names_both(tmp_path, index, use):
    make_wheel(index, "kit-alpha", "3.0", ["numpy>=2.1"])
    with pytest.raises(PackageError, match=r"(?s)kit-alpha.*depends on numpy>=2.1.*numpy==1.26.4\+image"):
        download_wheels(tmp_path / "wheels", use("kit-alpha\n", "kit-alpha"), image=IMAGE)


def test_what_the_image_has_is_never_replaced(tmp_path, index, use):
    make_wheel(index, "scikit-learn", "1.5")
    requirements = use("scikit-learn>=1.3\n", "scikit-learn")
    with pytest.raises(PackageError, match=r"scikit-learn>=1.3.*scikit-learn==1.2.2\+image"):
        download_wheels(tmp_path / "wheels", requirements, image=IMAGE)


def test_two_wheels_that_want_different_releases_are_refused(tmp_path, index, use):
    make_wheel(index, "kit-alpha", needs=["kit-gamma>=1"])
    make_wheel(index, "kit-beta", needs=["kit-gamma<1"])
    make_wheel(index, "kit-gamma")
    requirements = use("kit-alpha\nkit-beta\n", "kit-alpha", "kit-beta")
    with pytest.raises(PackageError, match="kit-beta.*kit-gamma"):
        download_wheels(tmp_path / "wheels", requirements, image=IMAGE)


def test_a_failed_download_says_what_pip_said(tmp_path, index, use):
    index.mkdir()
    told = "^pip found no wheels of kit-alpha .*No matching distribution found for kit-alpha.*pip config list"
    with pytest.raises(PackageError, match=told):
        download_wheels(tmp_path / "wheels", use("kit-alpha\n", "kit-alpha"), image=IMAGE)


def test_no_folder_is_made_where_the_image_lacks_nothing(tmp_path, index, use):
    requirements = use("numpy>=1.26\n", "numpy")
    assert download_wheels(tmp_path / "wheels", requirements, image=IMAGE) == []
    assert not (tmp_path / "wheels").exists()


def test_a_wheel_comes_from_the_real_index(tmp_path, use):
    requirements = use("pebble>=5.0.3\n", "pebble")
    try:
        found = download_wheels(tmp_path / "wheels", requirements)
    except PackageError as error:
        pytest.skip(f"pip reaches no index here: {error}")
    assert [name.split()[0] for name in names(found)] == ["pebble"]
    assert zipfile.ZipFile(found[0]).testzip() is None
