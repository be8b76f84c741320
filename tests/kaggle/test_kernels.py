"""Facts about a bundle's kernels: how their parameters are chosen, what is carried over, and several that train."""

import json

import pytest

from utils.core.files import read_json, write_json
from utils.core.parameters import ParameterError
from utils.kaggle import bundle
from utils.kaggle.bundle import BundleError, Options, write_bundle
from utils.kaggle.kernels import SettingError, describe, kernel_names, notebook_of_slug, parse_settings, plan_kernel
from utils.kaggle.parameter_cells import is_parameters, parameters_source, read_values, write_values
from utils.kaggle.pretrained import Pretrained

USER = "some-reader"
CELL = 'architecture: str = "resnet50"  # any\nrecipe: str = ""\nmax_views: int = None\nweights_path: str = None\n'


def make_notebook(source=CELL):
    """A notebook with a parameters cell and another one."""
    cells = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source.splitlines(keepends=True)}]
    return {"cells": [*cells, {"cell_type": "code", "metadata": {}, "source": ["print(recipe)"]}], "metadata": {}}


@pytest.fixture(autouse=True)
def no_wheels(monkeypatch):
    monkeypatch.setattr(bundle, "download_wheels", lambda *_: [])


def write(folder, *settings, kernels=(), weights=()):
    """Write a bundle without runs, and return its path."""
    write_bundle(folder, USER, [], None, Options(train_kernels=kernels, settings=parse_settings(settings), weights=weights))
    return folder


def notebook_path(folder, kernel):
    return folder / "kernels" / kernel / f"{kernel.split('-')[0]}.ipynb"


def values_of(folder, kernel="train"):
    return read_values(parameters_source(read_json(notebook_path(folder, kernel))))


def edit(folder, kernel, **values):
    """Edit a kernel's parameters cell as Jupyter does: it also saves outputs and other metadata."""
    path = notebook_path(folder, kernel)
    notebook = read_json(path)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": ["ran"]}], "execution_count": 1}
        if is_parameters(cell):
            cell["source"] = write_values("".join(cell["source"]), values)
    write_json(path, notebook | {"nbformat_minor": 4, "metadata": notebook["metadata"] | {"widgets": {}}})


def sources(folder, kernel):
    metadata = read_json(folder / "kernels" / kernel / "kernel-metadata.json")
    return [source.removeprefix(f"{USER}/") for source in (*metadata["dataset_sources"], *metadata["kernel_sources"])]


def test_settings_are_written_into_the_kernels_notebook_alone(tmp_path):
    folder = write(tmp_path / "bundle", "train:architecture=cnn", "train:epochs=12", "submit:hard=false")
    assert {"architecture": "cnn", "epochs": 12}.items() <= values_of(folder).items()
    assert values_of(folder, "submit")["hard"] is False
    before, after = (path.read_text() for path in (bundle.PROJECT / "notebooks/train.ipynb", notebook_path(folder, "train")))
    assert len(set(after.splitlines()) - set(before.splitlines())) == 2


def test_all_wrong_settings_are_told_at_once_and_nothing_is_written(tmp_path):
    with pytest.raises(BundleError) as caught:
        write(tmp_path / "bundle", "train:architectur=cnn", "submit:hard=maybe", "trian:epochs=1", kernels=("train", "train_b"))
    for told in (
        "--set train:…: There is no parameter architectur. The nearest name is architecture.",
        "--set submit:…: hard is 'maybe', but must be true or false",
        "there is no kernel trian. The nearest name is train.",
        "--kernel train_b must be train or train-NAME",
    ):
        assert told in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("text", ["epochs=12", "mixup=0.4", "train:epochs", "train:=3", "train epochs=3"])
def test_a_setting_of_another_form_is_refused_with_how_to_quote(text):
    with pytest.raises(SettingError, match="KERNEL:NAME=VALUE.*--set 'train:recipe=strong mixup=0.4'"):
        parse_settings(["train:recipe=strong", text])


def test_a_value_may_hold_spaces_colons_and_equal_signs():
    assert parse_settings(["train-b:recipe=strong mixup=0.4 a=b:c"]) == {"train-b": {"recipe": "strong mixup=0.4 a=b:c"}}


def test_an_edited_parameters_cell_is_carried_over_and_settings_win(tmp_path):
    folder = write(tmp_path / "bundle", "train:architecture=cnn")
    edit(folder, "train", epochs=20, seed=7)
    kernels = bundle.check_sources(folder, USER, [], None, Options(settings={"train": {"seed": "3"}}))
    carried = "Carried over from the earlier bundle: train:architecture=cnn; train:epochs=20."
    assert list(describe(kernels, [])) == ["Set: train:seed=3.", carried]
    write(folder, "train:seed=3")
    assert {"architecture": "cnn", "epochs": 20, "seed": 3}.items() <= values_of(folder).items()
    write(folder)
    assert {"architecture": "cnn", "epochs": 20, "seed": 3}.items() <= values_of(folder).items()


def test_a_former_default_is_no_choice_when_the_notebook_changes(tmp_path):
    """The bundle's own record tells them apart: a kit with another default brings it."""
    write_json(tmp_path / "kernels/train/train.ipynb", make_notebook(CELL.replace("int = None", "int = 4")))
    usual = {"architecture": "resnet50", "recipe": "", "max_views": None, "weights_path": None}
    write_json(tmp_path / "bundle.json", {"parameters": {"train": usual}})
    changed = make_notebook(CELL.replace("resnet50", "cnn"))
    kernel = plan_kernel("train", changed, {"recipe": "strong mixup=0.4"}, tmp_path, [])
    assert kernel.carried == {"max_views": 4}
    filled = parameters_source(kernel.fill(changed))
    assert filled == CELL.replace("resnet50", "cnn").replace('recipe: str = ""', 'recipe: str = "strong mixup=0.4"').replace(
        "int = None", "int = 4"
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [("epochs = 2 * 4\n", "NAME = VALUE"), ("epochs = 'few'\n", "must be a whole number"), ("epohcs = 4\n", "is epochs")],
)
def test_an_edit_that_can_not_be_carried_over_is_refused_and_stays(tmp_path, line, told):
    folder = write(tmp_path / "bundle")
    path = notebook_path(folder, "train")
    notebook = read_json(path)
    next(cell for cell in notebook["cells"] if is_parameters(cell))["source"].append(f"\n{line}")
    write_json(path, notebook)
    with pytest.raises(BundleError, match=told):
        write(folder)
    assert line.strip() in path.read_text()


def test_an_edit_of_another_cell_is_still_refused(tmp_path):
    folder = write(tmp_path / "bundle")
    path = notebook_path(folder, "submit")
    path.write_text(path.read_text().replace("draft.finish(", "draft.finish_mine("))
    with pytest.raises(BundleError, match="submit.ipynb was edited since"):
        write(folder)


def test_every_train_kernel_feeds_the_notebooks_after_it(tmp_path):
    folder = write(tmp_path / "bundle", "train-convnext:architecture=cnn", kernels=("train-convnext",))
    write(folder, "train-rnn:architecture=rnn", kernels=("train-rnn",))
    assert not (folder / "kernels/train").exists()
    assert [values_of(folder, f"train-{name}")["architecture"] for name in ("convnext", "rnn")] == ["cnn", "rnn"]
    assert [sources(folder, f"train-{name}")[-1] for name in ("convnext", "rnn")] == ["mammography-kit-preprocess"] * 2
    both = ["mammography-kit-code", "mammography-kit-train-convnext", "mammography-kit-train-rnn"]
    assert sources(folder, "tune_threshold") == both
    assert sources(folder, "submit") == [*both, "mammography-kit-tune-threshold"]
    metadata = read_json(folder / "kernels/train-rnn/kernel-metadata.json")
    assert (metadata["id"], metadata["title"]) == (f"{USER}/mammography-kit-train-rnn", "Mammography kit train rnn")
    assert metadata["code_file"] == "train.ipynb" and (folder / "kernels/train-rnn/train.ipynb").is_file()


def test_train_kernels_of_the_former_bundle_stay_unless_their_folder_is_deleted(tmp_path):
    for name in ("train-a", "train-b", "report"):
        (tmp_path / "kernels" / name).mkdir(parents=True)
    assert [name for name in kernel_names(tmp_path, ["train-c"]) if "train" in name] == ["train-a", "train-b", "train-c"]
    (tmp_path / "kernels/train-b").rmdir()
    assert [name for name in kernel_names(tmp_path, []) if "train" in name] == ["train-a"]
    assert [name for name in kernel_names(None, []) if "train" in name] == ["train"]


def test_a_train_kernels_slug_gives_its_notebook():
    slugs = ("mammography-kit-train-convnext", "mammography-kit-tune-threshold", "mammography-kit-train", "another")
    names = [notebook.name if notebook else "" for notebook in map(notebook_of_slug, slugs)]
    assert names == ["train", "tune_threshold", "train", ""]


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"architecture": "resnet18"}, "/kaggle/input/pretrained-resnet18/resnet18.safetensors"),
        ({"architecture": "resnet18", "weights_path": "mine.pth"}, "mine.pth"),
        ({"architecture": "resnet34"}, None),
    ],
)
def test_a_training_starts_from_weights_of_its_architecture_unless_others_are_chosen(tmp_path, settings, path):
    weights = [Pretrained(tmp_path / "pretrained-resnet18", "resnet18")]
    kernel = plan_kernel("train", make_notebook(), settings, None, weights)
    assert kernel.values["weights_path"] == path
    *_, line = describe([kernel], weights)
    if str(path).endswith("resnet18.safetensors"):
        assert line == "train will start from pretrained-resnet18 (weights_path)."
    else:
        assert "--set train:weights_path=/kaggle/input/pretrained-resnet18/resnet18.safetensors" in line


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({}, "weights efficientnet_b0, then write the bundle again"),
        ({"recipe": "strong"}, "--set preprocess:image_height=2048 preprocess:image_width=1024"),
        ({"recipe": "strong"}, "estimated to train for 28 h"),
        ({"recipe": "paper_512", "weights_path": "a.pth"}, "preprocess makes 1024 x 512"),
    ],
)
def test_a_training_that_would_stop_or_waste_a_gpus_hours_is_warned_of(settings, warning):
    own = make_notebook(CELL.replace('"resnet50"', "None"))
    lines = list(describe([plan_kernel("train", own, settings, None, [])], []))
    assert any(warning in line for line in lines), lines


@pytest.mark.parametrize(
    ("name", "value"), [("recipe", "epochs=-3"), ("recipe", "box_weight=1 level=breast"), ("architecture", "../../etc")]
)
def test_a_value_that_the_training_would_refuse_is_refused_at_once(name, value):
    with pytest.raises(ParameterError, match="kernels/train: "):
        plan_kernel("train", make_notebook(), {name: value}, None, [])


def test_a_training_that_lacks_nothing_is_not_warned_of():
    own = make_notebook(CELL.replace('"resnet50"', "None"))
    for settings in ({"recipe": "quick", "weights_path": "a.pth"}, {"architecture": "cnn"}):
        assert not [line for line in describe([plan_kernel("train", own, settings, None, [])], []) if "Warning" in line]


def test_the_tag_of_weights_may_be_left_out_but_not_be_another(tmp_path):
    weights = [Pretrained(tmp_path / "pretrained-resnet18-a1-in1k", "resnet18.a1_in1k")]
    for architecture, starts in (("resnet18", True), ("resnet18.a1_in1k", True), ("resnet18.a2_in1k", False)):
        kernel = plan_kernel("train", make_notebook(), {"architecture": architecture}, None, weights)
        assert bool(kernel.values["weights_path"]) == starts


def test_weights_are_attached_to_the_train_kernels_alone_and_forgotten_without_them(tmp_path):
    made = Pretrained(tmp_path / "pretrained-resnet18", "resnet18")
    write_json(made.folder / "dataset-metadata.json", {"title": "Pretrained resnet18", "id": "other/pretrained-resnet18"})
    (made.folder / made.file).write_bytes(b"weights")
    folder = write(tmp_path / "bundle", "train-a:architecture=resnet18", kernels=("train-a", "train-b"), weights=(made,))
    assert read_json(folder / "datasets/pretrained-resnet18/dataset-metadata.json")["id"] == f"{USER}/pretrained-resnet18"
    attached = [path.parent.name for path in folder.glob("kernels/*/*.json") if "pretrained-resnet18" in path.read_text()]
    assert sorted(attached) == ["train-a", "train-b"]
    assert values_of(folder, "train-a")["weights_path"] == str(made.mounted)
    write(folder)
    assert values_of(folder, "train-a")["weights_path"] is None and values_of(folder, "train-a")["architecture"] == "resnet18"


def test_a_secret_is_not_written_into_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_fedcba9876543210")
    with pytest.raises(BundleError, match="train.ipynb contains one of your Kaggle secrets"):
        write(tmp_path / "bundle", "train:run_dir=KGAT_fedcba9876543210")
    assert not list(tmp_path.iterdir())


def test_a_kernel_that_is_no_notebook_any_more_is_told_of(tmp_path):
    folder = write(tmp_path / "bundle")
    notebook_path(folder, "train").write_text(json.dumps({"cells": [3]}))
    with pytest.raises(BundleError, match="train.ipynb: it is not a notebook"):
        write(folder)
