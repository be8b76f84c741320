"""Which code a run was trained with, and whether it is today's."""

import ast
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from utils.core.environment import PROJECT, versions

FIRST = "utils.training.folds"  # the module whose imports are what a training executes


def code_versions() -> dict[str, str]:
    """Versions as from `utils.core.environment.versions`, and under ``code`` a hash of the modules that a training executes.

    Unlike the commit, the hash changes with every edit and needs no git.
    """
    files = module_files(reached_modules({FIRST}, PROJECT), PROJECT)
    sources = "".join(f"{path.relative_to(PROJECT).as_posix()}\n{_source(path)}" for path in files)
    return versions() | {"code": hashlib.sha256(sources.encode()).hexdigest()[:12]}


def changed_versions(found: Mapping[str, str]) -> str:
    """Say which versions of a run are not today's; empty if all are.

    Parameters
    ----------
    found : mapping of str to str
        From `code_versions`, when the run was started.
    """
    now = code_versions()
    changed = [f"{name} was {found[name]} and is {now[name]}" for name in now if found.get(name, now[name]) != now[name]]
    if not changed:
        return ""
    same = " The modules that training executes are the same." if found.get("code") == now["code"] else ""
    return f"{', '.join(changed)}.{same}"


def module_files(names: set[str], project: Path) -> list[Path]:
    """Return the files of those modules that are the kit's, and of the packages that hold them, sorted."""
    kits = [name.split(".") for name in names if name.split(".")[0] == "utils"]
    places = {project.joinpath(*parts[:depth]) for parts in kits for depth in range(1, len(parts) + 1)}
    files = [place / "__init__.py" if place.is_dir() else place.with_suffix(".py") for place in sorted(places)]
    return [file for file in files if file.is_file()]


def reached_modules(names: set[str], project: Path) -> set[str]:
    """Return dotted names of modules, and of what those of ``utils`` import in turn."""
    todo, reached = set(names), set()
    while todo:
        name = todo.pop()
        reached.add(name)
        for path in module_files({name}, project):
            todo |= imports_of(_source(path)) - reached
    return reached


@cache  # of about a hundred modules, each of which takes milliseconds
def imports_of(source: str) -> frozenset[str]:
    """Return dotted names of what Python code imports; of ``from utils.images import cache``, both the package and the
    module.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")  # universal newlines: the same on Windows
