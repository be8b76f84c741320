import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def documented_order():
    """Modules in the order in which the README lists them."""
    text = (ROOT / "README.md").read_text()
    listed = re.search(r"imports only from those before it:\s+(.*?)\.\n", text, re.DOTALL)[1]
    return re.findall(r"`(\w+)`", listed)


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
