import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def documented_order():
    """Modules in the order in which the README lists them."""
    text = (ROOT / "README.md").read_text()
    listed = re.search(r"imports only from those before it:\s+(.*?)\.\n", text, re.DOTALL)[1]
    return re.findall(r"`(\w+)`", listed)


# Standard modules that Windows lacks; kaggle_init runs as the first process in Linux namespaces.
UNIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
UNIX_FILES = {"kaggle_init.py"}


def imported_modules(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    return {
        node.module.split(".")[1]
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("utils.")
    }


def test_readme_lists_every_module():
    assert set(documented_order()) == {path.stem for path in (ROOT / "utils").glob("*.py")} - {"__init__"}


def test_imports_run_one_way():
    order = documented_order()
    for place, name in enumerate(order):
        assert imported_modules(ROOT / "utils" / f"{name}.py") <= set(order[:place]), name


def test_windows_can_import_every_module():
    for path in set((ROOT / "utils").glob("*.py")) - {ROOT / "utils" / name for name in UNIX_FILES}:
        at_once = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import)]
        assert not UNIX_MODULES & {alias.name for node in at_once for alias in node.names}, path.name
