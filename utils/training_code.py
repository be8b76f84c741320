"""Which code a run was trained with, and whether it is today's."""

import ast
import hashlib
from collections.abc import Mapping
from pathlib import Path

from utils.environment import versions

HERE = Path(__file__).parent
FIRST = "training"  # the module whose imports are what a training executes


def code_versions() -> dict[str, str]:
    """Versions as from `utils.environment.versions`, and under ``code`` a hash of the modules that a training executes.

    Unlike the commit, the hash changes with every edit and needs no git.
    """
    sources = "".join(f"{name}\n{_source(name)}" for name in sorted(_needed(FIRST)))
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


def _needed(name: str) -> set[str]:
    """Names of a module of the kit and of all that it imports, directly or not."""
    needed, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module not in needed:
            needed.add(module)
            waiting += _imported(module)
    return needed


def _imported(name: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(_source(name))):
        if isinstance(node, ast.ImportFrom) and node.module == "utils":
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("utils."):
            found.append(node.module.split(".")[1])
    return found


def _source(name: str) -> str:
    return (HERE / f"{name}.py").read_text(encoding="utf-8")  # universal newlines: the same on Windows
