import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def documented_order():
    """Modules in the order in which the README lists them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.search(r"imports only from those before it:\s+(.*?)\.\n", text, re.DOTALL)[1]
    return re.findall(r"`(\w+)`", listed)


# Standard modules that Windows lacks; kaggle_init runs as the first process in Linux namespaces.
UNIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
UNIX_FILES = {"kaggle_init.py"}


def imported_modules(path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
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


def test_nothing_before_the_networks_imports_torch():
    """Choosing a threshold, comparing runs and bundling start within seconds so."""
    order = documented_order()
    for name in order[: order.index("augment")]:
        body = ast.parse((ROOT / "utils" / f"{name}.py").read_text(encoding="utf-8")).body
        imported = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in body if isinstance(node, ast.ImportFrom)}
        assert not {"torch", "torchvision", "timm"} & {module.split(".")[0] for module in imported}, name


def test_windows_can_import_every_module():
    for path in set((ROOT / "utils").glob("*.py")) - {ROOT / "utils" / name for name in UNIX_FILES}:
        at_once = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Import)]
        assert not UNIX_MODULES & {alias.name for node in at_once for alias in node.names}, path.name


def code_of_notebooks():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def opens_text_in_the_locales_encoding(call):
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "open" and not ast.unparse(call.func).startswith(("os.", "Image.", "zipfile.", "dicomsdl.")):
        modes = [ast.unparse(argument) for argument in call.args[:2]] + [given.get("mode", "")]
        return "encoding" not in given and not any(re.fullmatch(r"'[rwax+]*b[rwax+]*'", mode) for mode in modes)
    if name in ("run", "Popen", "check_output"):
        return given.get("text") == "True" and "encoding" not in given
    return name in ("read_text", "write_text") and "encoding" not in given


def test_text_is_utf_8_whatever_the_locale():
    files = {
        path.name: path.read_text(encoding="utf-8") for part in ("utils", "benchmarks") for path in (ROOT / part).rglob("*.py")
    }
    for name, code in (files | dict(code_of_notebooks())).items():
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        assert not [ast.unparse(call) for call in calls if opens_text_in_the_locales_encoding(call)], name
