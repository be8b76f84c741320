"""The code that a run was trained with, and whether it has changed since."""

import ast
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from utils.core.folders import PROJECT
from utils.core.versions import versions
from utils.runs.errors import TrainingError
from utils.runs.found import name_runs
from utils.runs.run import Run

FIRST = "utils.training.folds"  # a training executes this module and what it imports
SHOWN = 3  # runs that a message names


def code_versions() -> dict[str, str]:
    """Return `utils.core.versions.versions`, and under ``code`` a hash of the modules that a training executes.

    Unlike the commit, the hash changes with every edit and needs no git.
    """
    files = module_files(reached_modules({FIRST}, PROJECT), PROJECT)
    sources = "".join(f"{path.relative_to(PROJECT).as_posix()}\n{_source(path)}" for path in files)
    return versions() | {"code": hashlib.sha256(sources.encode()).hexdigest()[:12]}


def changed_versions(found: Mapping[str, str]) -> str:
    """Return as text which versions of a run, from `code_versions`, differ from today's; empty if none does."""
    now = code_versions()
    changed = [f"{name} was {found[name]} and is {now[name]}" for name in now if found.get(name, now[name]) != now[name]]
    if not changed:
        return ""
    same = " The modules that training executes are the same." if found.get("code") == now["code"] else ""
    return f"{', '.join(changed)}.{same}"


def warn_of_other_code(run_dirs: Sequence[Path]) -> None:
    """Print the runs that were trained with code other than today's, and so perhaps other than each other's."""
    noted = {}
    for name, run_dir in name_runs(run_dirs).items():
        with contextlib.suppress(TrainingError):  # the run's reader refuses it
            noted[name] = Run(run_dir).notes.versions
    noted = {name: found for name, found in noted.items() if "code" in found}
    now = code_versions() if noted else {}
    other = [
        f"{name} (commit {found.get('commit', 'unknown')})" for name, found in noted.items() if found["code"] != now["code"]
    ]
    if other:
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        print(
            f"Warning: trained with code other than today's (commit {now['commit']}): {', '.join(other[:SHOWN])}{more}."
            " A difference between runs may come from the code, and today's code may predict differently with their weights."
        )


def module_files(names: set[str], project: Path) -> list[Path]:
    """Return the files of those modules that are in ``utils``, and of the packages that contain them, sorted."""
    kits = [name.split(".") for name in names if name.split(".")[0] == "utils"]
    places = {project.joinpath(*parts[:depth]) for parts in kits for depth in range(1, len(parts) + 1)}
    files = [place / "__init__.py" if place.is_dir() else place.with_suffix(".py") for place in sorted(places)]
    return [file for file in files if file.is_file()]


def reached_modules(names: set[str], project: Path) -> set[str]:
    """Return the dotted names of modules and of everything that those in ``utils`` import, directly or not."""
    todo, reached = set(names), set()
    while todo:
        name = todo.pop()
        reached.add(name)
        for path in module_files({name}, project):
            todo |= imports_of(_source(path)) - reached
    return reached


@cache  # parsing takes milliseconds for each of about a hundred modules
def imports_of(source: str) -> frozenset[str]:
    """Return the dotted names that Python code imports; ``from utils.images import cache`` gives the package and the module."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")  # converts line ends, so that the hash is the same on Windows
