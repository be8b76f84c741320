import ast
import graphlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


UTILS = ROOT / "utils"
LIGHT = UTILS / "decision"  # the last package of which torch is kept out, with all before it
# Standard modules that Windows lacks; rehearsal/init.py runs as the first process in Linux namespaces.
UNIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
UNIX_FILES = {UTILS / "rehearsal" / "init.py"}
LONGEST_FILE = 400  # lines
FIRST_LINE = "sklearn and scipy.stats take 0.8 s, and a notebook prints first what it works on"
IMPORTED_LATE = {  # inside a function, and why
    ("core/devices.py", "torch"): "counting cores must not import torch",
    ("core/isolation.py", "resource"): "Windows lacks it",
    ("core/parallel.py", "distributed"): "only a cluster needs Dask",
    ("decision/calibration.py", "sklearn"): FIRST_LINE,
    ("decision/figures.py", "sklearn"): FIRST_LINE,
    ("kaggle/client.py", "kaggle"): "may be missing, and importing it logs in",
    ("kaggle/client.py", "kagglesdk"): "comes with kaggle",
    ("kaggle/client.py", "requests"): "comes with kaggle",
    ("kaggle/machine.py", "huggingface_hub"): "comes with timm, and preprocessing needs no timm",
    ("kaggle/packages.py", "packaging"): "may be missing, and Python's version is checked first",
    ("kaggle/pretrained.py", "safetensors"): "the other commands of utils.kaggle start without torch",
    ("kaggle/pretrained.py", "timm"): "the other commands of utils.kaggle start without torch",
    ("kaggle/pretrained.py", "utils"): "the other commands of utils.kaggle start without torch",
    ("metrics/intervals.py", "scipy"): FIRST_LINE,
    ("metrics/scores.py", "sklearn"): FIRST_LINE,
    ("runs/baseline.py", "sklearn"): FIRST_LINE,
    ("submission/acceleration.py", "onnxruntime"): "may be missing: torch predicts then",
    ("submission/acceleration.py", "onnxscript"): "may be missing: torch predicts then",
    ("tables/folds.py", "sklearn"): "takes 0.6 s, and each process that decodes images imports utils.tables",
    ("training/example_run.py", "utils"): "finding runs must not import torch",
    ("training/monitoring.py", "torch"): "torch.utils.tensorboard needs a package that may be missing",
}


def packages():
    """Packages in the order in which the docstring of utils lists them."""
    docstring = ast.get_docstring(ast.parse((UTILS / "__init__.py").read_text(encoding="utf-8")))
    return re.findall(r"^- (\w+): ", docstring, re.MULTILINE)


def modules():
    return [path for path in sorted(UTILS.rglob("*.py")) if path.parent != UTILS]


def package_of(path):
    return path.relative_to(UTILS).parts[0]


def imported(path, at_once=False):
    """Dotted names of what a module imports; ``at_once`` leaves out what it imports late."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return imported_by(tree.body if at_once else list(ast.walk(tree)))


def imported_by(nodes):
    """Dotted names of what these nodes of a syntax tree import."""
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module for node in nodes if isinstance(node, ast.ImportFrom)]


def test_packages_are_those_that_are_documented():
    assert sorted(packages()) == sorted({package_of(path) for path in modules()})


def test_packages_import_one_way():
    order = packages()
    for path in modules():
        before = {"utils", *(f"utils.{name}" for name in order[: order.index(package_of(path)) + 1])}
        own = {".".join(name.split(".")[:2]) for name in imported(path) if name.split(".")[0] == "utils"}
        assert own <= before, path


def test_no_module_imports_itself_through_others():
    edges = {
        path: {UTILS.parent.joinpath(*name.split(".")).with_suffix(".py") for name in imported(path)} for path in modules()
    }
    graphlib.TopologicalSorter({path: targets & edges.keys() for path, targets in edges.items()}).prepare()


def test_nothing_before_the_networks_imports_torch():
    """Choosing a threshold, comparing runs and bundling start within seconds so."""
    light = packages()[: packages().index(LIGHT.name) + 1]
    for path in (path for path in modules() if package_of(path) in light):
        assert not {"torch", "torchvision", "timm"} & {name.split(".")[0] for name in imported(path, at_once=True)}, path


def test_only_what_has_a_reason_is_imported_inside_a_function():
    late = set()
    for path in modules():
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                names = imported_by(list(ast.walk(function)))
                late |= {(path.relative_to(UTILS).as_posix(), name.split(".")[0]) for name in names}
    assert late == IMPORTED_LATE.keys()


def test_references_in_docstrings_and_pages_lead_somewhere():
    files = [*modules(), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    for path in files:
        for reference in set(re.findall(r"`utils\.(\w+(?:\.\w+)*)`", path.read_text(encoding="utf-8"))):
            package, *rest = reference.split(".")
            module = UTILS / package / f"{rest[0]}.py" if rest else None
            if rest and not module.is_file():  # of the package itself
                module, rest = UTILS / package / "__init__.py", ["", *rest]
            assert package == "__init__" or (UTILS / package).is_dir(), (path, reference)
            assert len(rest) < 2 or re.search(rf"\b{rest[1]}\b", module.read_text(encoding="utf-8")), (path, reference)


def test_no_file_is_long():
    for path in modules():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, path


def test_windows_can_import_every_module():
    for path in set(modules()) - UNIX_FILES:
        assert not UNIX_MODULES & set(imported(path, at_once=True)), path


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
