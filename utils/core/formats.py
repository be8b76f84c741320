"""Checks of JSON files, which become frozen dataclasses. Each error names the file, the field and the remedy."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import get_args

from utils.core.errors import KitError

LONGEST_VALUE = 80  # characters of a wrong value that a message shows


class FormatError(KitError):
    """A file contains a wrong value. The message starts with the field; `naming` adds the file and the remedy."""


def is_whole(value: object) -> bool:
    """True if a value is an integer, not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """True if a value is a finite number, not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_flag(value: object) -> bool:
    """True if a value is a boolean."""
    return isinstance(value, bool)


def is_text(value: object) -> bool:
    """True if a value is a string."""
    return isinstance(value, str)


def _is_list(value: object, of: Callable[[object], bool]) -> bool:
    return isinstance(value, list | tuple) and all(of(item) for item in value)


def _is_table(value: object, of: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(is_text(key) and of(item) for key, item in value.items())


KINDS: dict[object, tuple[str, Callable[[object], bool]]] = {  # annotation -> what a value must be, in words and as a check
    int: ("a whole number", is_whole),
    float: ("a finite number", is_number),
    bool: ("true or false", is_flag),
    str: ("text", is_text),
    int | None: ("a whole number or null", lambda value: value is None or is_whole(value)),
    float | None: ("a finite number or null", lambda value: value is None or is_number(value)),
    tuple[int, ...]: ("a list of whole numbers", lambda value: _is_list(value, is_whole)),
    tuple[float, ...]: ("a list of finite numbers", lambda value: _is_list(value, is_number)),
    tuple[str, ...]: ("a list of text", lambda value: _is_list(value, is_text)),
    dict[str, int]: ("an object of whole numbers", lambda value: _is_table(value, is_whole)),
    dict[str, float]: ("an object of finite numbers", lambda value: _is_table(value, is_number)),
    dict[str, str]: ("an object of text", lambda value: _is_table(value, is_text)),
}


def check(holds: bool, name: str, value: object, wanted: str, refusal: type[KitError] = FormatError) -> None:
    """Raise ``refusal`` with the field's name, its value and what it must be, unless ``holds``."""
    if not holds:
        raise refusal(f"{name} is {shown(value)}, but must be {wanted}.")


def shown(value: object) -> str:
    """Return a value's repr, cut to `LONGEST_VALUE` characters."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def check_types(item: object, refusal: type[KitError] = FormatError) -> None:
    """Check the types of a dataclass's fields, in its ``__post_init__``; raise ``refusal`` at the first wrong one."""
    for field in fields(item):
        value = getattr(item, field.name)
        if field.type in KINDS:
            wanted, holds = KINDS[field.type]
            check(holds(value), field.name, value, wanted, refusal)
        else:
            check(isinstance(value, field.type), field.name, value, "an object", refusal)


def as_object(content: object) -> dict:
    """Return parsed JSON that is an object; raise FormatError if it is something else."""
    if not isinstance(content, dict):
        raise FormatError(f"it contains {shown(content)}, but must contain an object with named fields.")
    return content


def select_fields(cls: type, values: Mapping[str, object]) -> dict[str, object]:
    """Return those of the values that are fields of a dataclass."""
    return {field.name: values[field.name] for field in fields(cls) if field.name in values}


def build(cls: type, content: object, complete: bool = False):
    """Make a frozen dataclass from parsed JSON.

    Parameters
    ----------
    cls : type
        Frozen dataclass that checks its values in ``__post_init__``. Its fields may be dataclasses too.
    content : object
        Should be a dictionary with the fields of ``cls``.
    complete : bool
        Require fields that have a default too.

    Raises
    ------
    KitError
        If ``content`` is not a dictionary, has unknown fields, lacks a field, or ``cls`` refuses a value.
    """
    content = as_object(content)
    known = {field.name: field for field in fields(cls)}
    unknown = [name for name in content if name not in known]
    if unknown:
        raise FormatError(f"it has fields that this version of the kit does not know ({_cut(', '.join(unknown))}).")
    optional = [name for name, field in known.items() if (field.default, field.default_factory) != (MISSING, MISSING)]
    missing = [name for name in known if name not in content and (complete or name not in optional)]
    if missing:
        raise FormatError(f"it lacks fields that this version of the kit needs ({', '.join(missing)}).")
    return cls(**{name: _build_field(known[name].type, value, name, complete) for name, value in content.items()})


def _build_field(kind: type, value: object, name: str, complete: bool):
    """Make a list a tuple, and an object the dataclass in the annotation; errors start with the field's name."""
    if isinstance(value, list):
        return tuple(value)
    nested = next((part for part in (kind, *get_args(kind)) if is_dataclass(part)), None)
    if nested is None or value is None or isinstance(value, nested):
        return value
    try:
        return build(nested, value, complete)
    except KitError as error:
        raise FormatError(f"{name}: {error}") from error


@contextlib.contextmanager
def naming(path: str | Path, refusal: type[KitError], remedy: str) -> Iterator[None]:
    """Turn errors about a file's content into ``refusal``, with the file's path before the message and the remedy after it.

    Parameters
    ----------
    path : path
    refusal : type
        The error to raise.
    remedy : str
        A sentence that says what to do.
    """
    try:
        yield
    except KitError as error:
        raise refusal(f"{path}: {error} {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:  # json, csv and text decoding raise subclasses of ValueError
        raise refusal(f"{path} can't be read ({error}). {remedy}") from error
