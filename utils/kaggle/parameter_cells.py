"""The parameters cell of a notebook: its declarations, edits by a user, and new values.

A cell declares a parameter as ``NAME: KIND = VALUE``. If the value is None, others of KIND and None are allowed.
"""

import ast
import json
from collections.abc import Mapping

from utils.core.names import suggest
from utils.core.parameters import OPTIONAL, ParameterError, convert
from utils.runs.settings import parse_recipe

TAG = "parameters"


def parameters_source(notebook: dict) -> str:
    """Return the source of a notebook's parameters cell; empty if it has none."""
    return next(("".join(cell["source"]) for cell in notebook["cells"] if is_parameters(cell)), "")


def is_parameters(cell: dict) -> bool:
    """True if papermill would take a cell for the notebook's parameters."""
    return TAG in cell.get("metadata", {}).get("tags", [])


def default_values(source: str) -> dict[str, object]:
    """Return the values of the parameters that a notebook's own cell declares."""
    return {node.target.id: ast.literal_eval(node.value) for node in _declarations(source)}


def read_values(source: str) -> dict[str, object]:
    """Return the values that a cell assigns after somebody edited it; raise ParameterError if it does anything else."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ParameterError(f"line {error.lineno} of the parameters can't be read ({error.msg}).") from None
    values = {}
    for statement in statements:
        name = _assigned_name(statement)
        try:
            values[name] = ast.literal_eval(statement.value)
        except (ValueError, AttributeError):
            name = ""
        if not name:
            raise ParameterError(f"{ast.unparse(statement)!r} is not NAME = VALUE, with a number, a text, True, False or None.")
    return values


def _assigned_name(statement: ast.stmt) -> str:
    """Return the one name that a statement assigns to; empty if it is another statement."""
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else ""


def convert_values(source: str, given: Mapping[str, object]) -> dict[str, object]:
    """Convert values to the types that a cell declares.

    Parameters
    ----------
    source : str
        The cell.
    given : mapping of str to object
        Values by name; text, as on a command line, or literals of another cell.

    Raises
    ------
    ParameterError
        For the first name that the cell does not declare, with the nearest one, or value of another type.
    """
    declared = {node.target.id: node for node in _declarations(source)}
    values = {}
    for name, value in given.items():
        if name not in declared:
            raise ParameterError(f"There is no parameter {name}. {suggest(name, declared)}")
        optional = OPTIONAL if ast.literal_eval(declared[name].value) is None else ""
        values[name] = convert(name, value, ast.unparse(declared[name].annotation) + optional)
    problems = parse_recipe(values.get("recipe", ""))[2]
    if problems:
        raise ParameterError(" ".join(problems))
    return values


def write_values(source: str, values: Mapping[str, object]) -> str:
    """Return a cell with other values for some of the names that it declares; its comments stay."""
    lines = source.encode().splitlines(keepends=True)  # ast counts columns in bytes
    for node in reversed([node for node in _declarations(source) if node.target.id in values]):
        first, last = node.value.lineno - 1, node.value.end_lineno - 1
        start, end = lines[first][: node.value.col_offset], lines[last][node.value.end_col_offset :]
        lines[first : last + 1] = [start + _literal(values[node.target.id]).encode() + end]
    return b"".join(lines).decode()


def _declarations(source: str) -> list[ast.AnnAssign]:
    annotated = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign) and node.value]
    return [node for node in annotated if isinstance(node.target, ast.Name)]


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
