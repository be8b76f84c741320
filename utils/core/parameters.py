"""Checks of a notebook's parameters: each passed name exists, and each value has the type that the parameters cell declares.

papermill passes ``-p hard false`` as the text "false", which is true in Python, and only warns about an unknown name.
"""

from __future__ import annotations

import ast
import contextlib
import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from utils.core.errors import KitError
from utils.core.names import nearest_name

NOTHING = ("none", "null")  # text that means "no value" rather than a file's name
RANGES = {  # least and most; a default outside its range has a special meaning
    "num_workers": (0, 1024),
    "seed": (0, 2**32 - 1),  # NumPy's
    "time_budget_hours": (0, 1000),
    "box_images": (0, 10**6),
}
OPTIONAL = " | None"  # end of an annotation whose value may be None


class ParameterError(KitError):
    """Unknown parameters or wrong values; the message lists all of them."""


@dataclass(frozen=True)
class Parameters:
    """A notebook's parameters by name: their values, and the defaults from the parameters cell."""

    values: dict[str, object]
    defaults: dict[str, object]


def read_parameters(namespace: dict, in_recipe: Collection[str] = ()) -> Parameters:
    """Check a notebook's parameters, and convert each to its declared type, in ``namespace`` too.

    Parameters
    ----------
    namespace : dict
        The notebook's ``globals()``. Its ``In`` contains the cells that ran: the parameters cell, whose annotations declare
        names and types, and the cell of assignments that papermill inserts after it. Without ``In`` (a notebook converted
        to a script), only types are checked.
    in_recipe : collection of str
        Names that the notebook's parameter ``recipe`` takes, for the message.

    Raises
    ------
    ParameterError
        Lists every unknown name with the nearest known one, and every value of the wrong type or out of range.
    """
    types, defaults, passed = _read_cells(namespace.get("In", ()))
    if not types:
        types = {name: getattr(kind, "__name__", "") for name, kind in namespace.get("__annotations__", {}).items()}
    problems = [_unknown(name, types, in_recipe) for name in passed if name not in types]
    values = {}
    for name, kind in types.items():
        if kind in CONVERSIONS:
            optional = OPTIONAL if name in defaults and defaults[name] is None else ""
            try:
                values[name] = convert(name, namespace[name], kind + optional)
            except ParameterError as error:
                problems.append(str(error))
    for name, (least, most) in RANGES.items():
        if name in values and values[name] not in (None, defaults.get(name)) and not least <= values[name] <= most:
            problems.append(f"{name} is {values[name]}, but must be from {least} to {most}.")
    refuse(problems)
    namespace.update(values)
    return Parameters(values, defaults)


def refuse(problems: Sequence[str]) -> None:
    """Raise a ParameterError that lists all problems, if there are any."""
    if problems:
        numbered = [f"{number}. {problem}" for number, problem in enumerate(problems, start=1)]
        raise ParameterError("\n".join([f"Nothing was done. Problems: {len(problems)}.", *numbered]))


def convert(name: str, value: object, kind: str) -> object:
    """Convert a parameter's value to its declared type.

    Parameters
    ----------
    name : str
        Name of the parameter, for the message.
    value : object
        May be text, as papermill passes it.
    kind : str
        One of `CONVERSIONS`, such as ``int``, or the same with `OPTIONAL` after it.

    Raises
    ------
    ParameterError
        If the value has another type.
    """
    is_nothing = value is None or (isinstance(value, str) and value.strip().lower() in NOTHING)
    if kind.endswith(OPTIONAL) and is_nothing:
        return None
    converter, wanted = CONVERSIONS[kind.removesuffix(OPTIONAL)]
    try:
        return converter(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ParameterError(f"{name} is {value!r}, but must be {wanted}.") from error


def _read_cells(sources: Sequence[str]) -> tuple[dict[str, str], dict[str, object], list[str]]:
    """Return declared types and defaults, and the other names set in the last parameters cell or papermill's."""
    types, defaults = {}, {}
    passed = []
    for statements in _parsed(sources):
        annotated = [node for node in statements if isinstance(node, ast.AnnAssign) and node.value]
        declared = [node for node in annotated if isinstance(node.target, ast.Name)]
        for node in declared:
            types[node.target.id] = ast.unparse(node.annotation)
            with contextlib.suppress(ValueError):
                defaults[node.target.id] = ast.literal_eval(node.value)
        others = [node for node in statements if node not in declared]
        if declared or all(map(_is_plain, others)):
            passed = [node.targets[0].id for node in others if _is_plain(node)]
    return types, defaults, passed


def _parsed(sources: Sequence[str]) -> Iterator[list[ast.stmt]]:
    """Yield the statements of each cell that is not empty and parses."""
    for source in sources:
        with contextlib.suppress(SyntaxError):  # a cell that did not run
            statements = ast.parse(source).body
            if statements:
                yield statements


def _is_plain(node: ast.stmt) -> bool:
    """True if a statement assigns a literal to one name, as papermill's do."""
    return (
        isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and not any(isinstance(part, ast.Name) and part.id != "float" for part in ast.walk(node.value))  # float('nan')
    )


def _unknown(name: str, declared: dict[str, str], in_recipe: Collection[str]) -> str:
    if name in in_recipe:
        return f"{name} is not a parameter of its own. Set it in recipe: -p recipe '{name}=VALUE'."
    nearest = nearest_name(name, [*declared, *in_recipe])
    names = f"The nearest name is {nearest}." if nearest else f"Its parameters are {', '.join(declared)}."
    return f"There is no parameter {name} in this notebook. {names}"


def _to_bool(value: object) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    if not isinstance(value, bool):
        raise TypeError
    return value


def _to_int(value: object) -> int:
    if isinstance(value, bool):
        raise TypeError
    with contextlib.suppress(ValueError):
        if isinstance(value, int | str):
            return int(value)
    number = float(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _to_float(value: object) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise TypeError
    return float(value)


def _to_text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_to_text, value))
    if isinstance(value, int) and not isinstance(value, bool):  # papermill turns a name such as 2024 into a number
        return str(value)
    text = os.fspath(value)
    if text.strip().lower() in NOTHING:
        raise ValueError
    return text


def _to_names(value: object) -> tuple[str, ...]:
    return tuple(name.strip() for name in _to_text(value).split(",") if name.strip())


def _to_numbers(value: object) -> tuple[int, ...]:
    return tuple(_to_int(number) for number in _to_names(value))


CONVERSIONS = {
    "bool": (_to_bool, "true or false"),
    "int": (_to_int, "a whole number"),
    "float": (_to_float, "a finite number"),
    "str": (_to_text, "text; leave it out for its default, and pass a number or True as text with papermill's -r"),
    "tuple[str, ...]": (_to_names, "names separated by commas"),
    "tuple[int, ...]": (_to_numbers, "whole numbers separated by commas"),
}
