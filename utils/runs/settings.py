"""The settings requested for a training: a recipe, and the overrides."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from inspect import formatannotation

from utils.core.names import suggest
from utils.core.parameters import ParameterError, convert, refuse
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.execution import Execution
from utils.runs.recipes import RECIPES, Recipe

FOLLOWS = ("model", "preprocessing", "box_head")  # fields that follow from other settings
KINDS = {  # type of each setting, as annotations write it
    field.name: formatannotation(field.type)
    for cls in (ModelConfig, TrainConfig, Execution)
    for field in fields(cls)
    if field.name not in FOLLOWS
} | {"exact": "bool", "boxes_path": "str"}


@dataclass(frozen=True)
class Settings:
    """A recipe by name, the settings that replace or add to its own, and whether somebody named it."""

    name: str
    changes: Mapping[str, object]
    is_named: bool = True

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.name]

    @property
    def values(self) -> dict[str, object]:
        """Return the value of each setting that is not the default."""
        return {**self.recipe.settings, **self.changes}


def read_settings(parameters: Mapping[str, object], is_trial: bool) -> Settings:
    """Read the settings of train.ipynb, and print which recipe runs and why.

    Parameters
    ----------
    parameters : mapping of str to object
        The notebook's parameters. ``recipe`` is a recipe's name, overrides such as ``mixup=0.4``, or both, separated by spaces.
        Other parameters that are settings override as well, unless they are None.
    is_trial : bool
        The data are a phantom, or this is a smoke test.

    Raises
    ------
    ParameterError
        If a recipe or a setting is unknown, a setting is given twice, or has the wrong type. Lists all problems.
    """
    settings = choose_settings(parameters, is_trial)
    print(_first_lines(settings))
    return settings


def choose_settings(parameters: Mapping[str, object], is_trial: bool) -> Settings:
    """Do the same as `read_settings`, but print nothing."""
    name, changes, problems = parse_recipe(parameters["recipe"])
    for setting, value in parameters.items():
        if setting in KINDS and value is not None:
            value = convert(setting, value, KINDS[setting])
            if changes.get(setting, value) != value:
                problems.append(f"{setting} is {changes[setting]} in recipe and {value} as a parameter: leave one out.")
            changes[setting] = value
    refuse(problems)
    return Settings(name or _default(changes, is_trial), changes, is_named=bool(name))


def parse_recipe(text: str) -> tuple[str, dict[str, object], list[str]]:
    """Return the recipe's name (empty if there is none), overrides, and problems."""
    names, changes, problems = [], {}, []
    for word in text.split():
        setting, is_override, value = word.partition("=")
        if word.startswith("=") or word.endswith("="):
            problems.append(f"recipe has {word!r}: write NAME=VALUE without spaces around the =.")
        elif not is_override:
            names.append(word)
        elif setting not in KINDS:
            problems.append(f"recipe has no setting {setting}. {suggest(setting, KINDS)}")
        elif setting in changes:
            problems.append(f"recipe sets {setting} twice: leave one out.")
        else:
            try:
                changes[setting] = convert(setting, value, KINDS[setting])
            except ParameterError as error:
                problems.append(str(error))
    problems += [f"There is no recipe {name}. {suggest(name, RECIPES)}" for name in names if name not in RECIPES]
    if len(names) > 1:
        problems.append(f"recipe names {' and '.join(names)}: leave all but one out.")
    return next(iter(names), ""), changes, problems


def _default(changes: Mapping[str, object], is_trial: bool) -> str:
    return "plain" if is_trial or "architecture" in changes else "quick"


def _first_lines(settings: Settings) -> str:
    recipe = settings.recipe
    hours = f" Estimated, not measured: {recipe.hours:g} h for the competition on two T4." if recipe.hours else ""
    if settings.is_named:
        why = ""
    elif "architecture" in settings.changes:
        why = " (the default if you choose an architecture; it starts from random weights unless you set pretrained)"
    else:
        why = " (the default for these data)"
    others = ", ".join(name for name in RECIPES if name != settings.name)
    return f"Recipe {settings.name}{why}: {recipe.purpose}.{hours}\nOther recipes: {others}."
