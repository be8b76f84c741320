"""Facts about settings and recipes: a recipe, overrides in its text, and a notebook's parameters become one configuration."""

import pytest

from tests.helpers import TINY
from utils.core.parameters import ParameterError
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.execution import Execution
from utils.runs.recipes import RECIPES
from utils.runs.settings import KINDS, read_settings


def settings_of(recipe="", is_trial=False, **parameters):
    return read_settings({"recipe": recipe, "competition_dir": "", "epochs": None} | parameters, is_trial)


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_makes_a_configuration_and_says_what_was_measured(name):
    recipe = RECIPES[name]
    config = TrainConfig.from_parameters(recipe.settings, TINY)
    assert set(recipe.settings) <= set(KINDS) and recipe.purpose and recipe.source and recipe.measured
    for setting, value in recipe.settings.items():
        if setting not in ("image_height", "image_width"):
            assert getattr(config, setting, getattr(config.model, setting, None)) == value


def test_overrides_replace_what_the_recipe_says_and_parameters_do_too():
    settings = settings_of(
        "strong mixup=0.4 epochs=1 encoders=cnn,resnet18 folds=0,2", learning_rate=2e-4, architecture="convnext_tiny"
    )
    assert settings.name == "strong"
    expected = {"mixup": 0.4, "epochs": 1, "encoders": ("cnn", "resnet18"), "folds": (0, 2), "learning_rate": 2e-4}
    assert settings.changes == expected | {"architecture": "convnext_tiny"}
    assert settings.values["label_smoothing"] == RECIPES["strong"].settings["label_smoothing"]
    assert settings.values["epochs"] == 1


@pytest.mark.parametrize(
    "recipe, architecture, is_trial, expected",
    [
        ("", None, False, "quick"),
        ("", None, True, "plain"),
        ("", "resnet50", False, "plain"),
        ("strong", "cnn", True, "strong"),
    ],
)
def test_recipe_runs_that_was_named_else_the_one_that_suits_the_data(recipe, architecture, is_trial, expected, capsys):
    assert settings_of(recipe, is_trial, architecture=architecture).name == expected
    assert capsys.readouterr().out.startswith(f"Recipe {expected}{'' if recipe else ' (the default'}")


@pytest.mark.parametrize(
    "recipe, reason",
    [
        ("lr=1e-3", "no setting lr. The nearest name is learning_rate"),
        ("stong", "no recipe stong. The nearest name is strong"),
        ("Paper-256", "no recipe Paper-256. The nearest name is paper_256"),
        ("mixup=much", "mixup is 'much', but must be a finite number"),
        ("mixup=0.1 mixup=0.2", "sets mixup twice"),
        ("quick strong", "names quick and strong"),
        ("box_head=true", "no setting box_head"),
        ("model=x", "no setting model"),
        ("mixup = 0.4", "has '=': write NAME=VALUE without spaces"),
    ],
)
def test_what_recipe_can_not_mean_is_refused_with_the_nearest_name(recipe, reason):
    with pytest.raises(ParameterError, match=reason):
        settings_of(recipe)


def test_setting_that_is_given_twice_is_refused_unless_both_agree():
    with pytest.raises(ParameterError, match="epochs is 3 in recipe and 4 as a parameter"):
        settings_of("epochs=3", epochs=4)
    assert settings_of("epochs=3", epochs=3).changes == {"epochs": 3}


@pytest.mark.parametrize(("given", "wanted"), [("", ()), ("0,2", (0, 2)), ("1", (1,)), (1, (1,)), ([0, 1], (0, 1))])
def test_folds_parameter_is_read_as_numbers(given, wanted):
    assert settings_of(folds=given).changes["folds"] == wanted


def test_folds_parameter_that_is_no_number_is_refused():
    with pytest.raises(ParameterError, match="folds is 'a,b', but must be whole numbers separated by commas"):
        settings_of(folds="a,b")


def test_all_problems_of_a_recipe_are_listed_at_once():
    with pytest.raises(ParameterError, match="Problems: 3"):
        settings_of("strng mixup=much lr=1")


def test_every_setting_reaches_the_configuration():
    config, execution = TrainConfig.from_parameters({"architecture": "cnn"}, TINY), Execution()
    known = [*vars(config), *vars(config.model), *vars(execution)]
    assert set(KINDS) - set(known) == {"exact", "boxes_path"}
    assert isinstance(config.model, ModelConfig)


def test_zero_turns_off_what_a_recipe_turned_on():
    config = TrainConfig.from_parameters(settings_of("quick positive_share=0").values, TINY)
    assert config.positive_share is None and RECIPES["quick"].settings["positive_share"]
