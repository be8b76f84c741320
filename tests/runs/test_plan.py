"""Facts about plans: parameters of train.ipynb lead to data, a configuration, and a folder of its own for each experiment."""

import pytest

from utils.core import folders
from utils.core.errors import KitError
from utils.runs.plan import make_plan

DECLARED = {
    "recipe": "",
    "cache_dir": "",
    "run_dir": "",
    "extra_competition_dirs": "",
    "smoke_test": False,
    "architecture": "cnn",
}


@pytest.fixture
def plan_of(competition, tmp_path, monkeypatch):
    """The plan for some parameters, with the phantom's images at 64 x 48."""
    monkeypatch.setattr(folders, "working_dir", lambda: tmp_path)

    def plan(has_gpu=False, **values):
        size = {"image_height": 64, "image_width": 48}
        return make_plan(DECLARED | size | {"competition_dir": str(competition)} | values, has_gpu)

    return plan


def test_each_configuration_has_its_own_folder_which_the_same_one_finds_again(plan_of):
    first = plan_of().run_dir
    assert first.name.startswith("plain-cnn-64x48-") and first.parent.name == "runs-phantom"
    assert plan_of().run_dir == first
    others = [{"seed": 1}, {"recipe": "mixup=0.4"}, {"recipe": "plain mixup=0.3"}, {"image_width": 40}, {"architecture": "rnn"}]
    assert len({plan_of(**values).run_dir for values in others} | {first}) == len(others) + 1


@pytest.mark.parametrize(
    "values", [{"folds": "1"}, {"recipe": "micro_batch_size=2"}, {"num_workers": 2}, {"recipe": "compile=true"}]
)
def test_what_does_not_decide_the_weights_does_not_change_the_folder(plan_of, values):
    assert plan_of(**values).run_dir == plan_of().run_dir


def test_named_folder_is_kept(plan_of, tmp_path):
    assert plan_of(run_dir=str(tmp_path / "mine")).run_dir == tmp_path / "mine"


def test_smoke_test_is_small_whatever_the_recipe_says(plan_of):
    plan = plan_of(recipe="strong pretrained=false", smoke_test=True, image_height=None, image_width=None)
    config = plan.config
    assert (config.epochs, config.n_folds, config.batch_size, config.patch_epochs) == (1, 2, 8, 0)
    assert (config.model.image_height, config.model.image_width) == (64, 48) and config.label_smoothing == 0.1
    assert plan_of(recipe="patches pretrained=false", smoke_test=True).config.patch_epochs == 1


def test_workers_are_used_with_a_gpu_alone_unless_asked_for(plan_of):
    assert plan_of().execution.num_workers == 0 and plan_of(has_gpu=True).execution.num_workers > 0
    assert plan_of(has_gpu=True, num_workers=0).execution.num_workers == 0
    assert plan_of(num_workers=3).execution.num_workers == 3


def test_boxes_are_read_where_they_are_needed(plan_of):
    assert plan_of().boxes is None and len(plan_of(recipe="patch_epochs=1").boxes)


def test_value_that_is_out_of_range_is_refused(plan_of):
    with pytest.raises(KitError, match="level is 'breasts'"):
        plan_of(level="breasts")


def test_table_says_who_set_what_is_used(plan_of):
    table = plan_of(recipe="patches pretrained=false mixup=0.2 epochs=1", seed=3).table()
    assert table.loc["mixup"].to_list() == [0.2, "you"] and table.loc["seed"].to_list() == [3, "you"]
    assert table.loc["patch_size"].to_list() == [160, "recipe patches"]
    smoke = plan_of(recipe="strong pretrained=false", smoke_test=True, epochs=7, image_height=None, image_width=None).table()
    assert smoke.loc["epochs"].to_list() == [1, "smoke_test"] and smoke.loc["image_height"].to_list() == [64, "smoke_test"]
    assert smoke.loc["label_smoothing"].to_list() == [0.1, "recipe strong"]


def test_smoke_test_of_later_folds_trains_those_that_it_has(plan_of):
    assert plan_of(smoke_test=True, folds="2,3").config.folds == () and plan_of(smoke_test=True, folds="1,3").config.folds == (
        1,
    )


def test_size_of_zero_is_refused_and_not_the_default(plan_of):
    with pytest.raises(KitError, match="image_height is 0, but must be from 1"):
        plan_of(image_height=0)


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-of-this-name/run", "a\0b"])
def test_path_that_can_not_exist_is_refused_in_words(plan_of, path):
    with pytest.raises(KitError, match="is not a usable path"):
        plan_of(run_dir=path)
