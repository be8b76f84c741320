"""The notebooks run as a user would run them and keep to the kit's rules; documented commands name real parameters."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from utils.runs.settings import KINDS
from utils.tables.competition import read_images

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
SECRET = "KGAT_planted_0123456789abcdef"
SHARED_PARAMETERS = {
    "explore": {"competition_dir", "cache_dir", "image_height", "image_width", "num_workers", "seed", "smoke_test"},
    "preprocess": {"competition_dir", "cache_dir", "image_height", "image_width", "num_workers", "smoke_test"},
    "train": {
        *(
            "competition_dir",
            "cache_dir",
            "run_dir",
            "architecture",
            "image_height",
            "image_width",
            "n_folds",
            "folds",
            "epochs",
        ),
        *("batch_size", "learning_rate", "pretrained", "weights_path", "seed", "num_workers", "smoke_test"),
    },
    "tune_threshold": {"run_dirs", "seed", "smoke_test"},
    "report": {"competition_dir", "cache_dir", "run_dirs", "seed", "smoke_test"},
    "submit": {"competition_dir", "cache_dir", "run_dirs", "num_workers", "submission_path", "smoke_test"},
}


def cells(name, kind="code"):
    return [cell for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells if cell.cell_type == kind]


def parameters(name):
    tagged = [cell for cell in cells(name) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    return dict(re.findall(r"^(\w+): \w+ = .+?  # (.+)$", tagged[0].source, re.MULTILINE)), tagged[0].source


def test_kit_that_make_kaggle_marked_is_taken_from_among_several(tmp_path, monkeypatch, capsys):
    """In all notebooks alike: their first cell finds the kit."""
    for name in ("another-dataset", "kit/mammography-kit-0.1.0"):
        (tmp_path / name / "utils" / "core").mkdir(parents=True)
        (tmp_path / name / "utils" / "core" / "folders.py").touch()
    kit = tmp_path / "kit" / "mammography-kit-0.1.0"
    (kit / "kit.json").touch()
    (source,) = {cell.source for name in NOTEBOOKS for cell in cells(name) if cell.id == "root"}
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setattr(sys, "path", [])
    exec(source.replace('"/kaggle/input"', repr(str(tmp_path))), {})
    assert sys.path == [str(kit)] and capsys.readouterr().out == f"The kit is in {kit}.\n"


def execute(name, output, folder, **values):
    """Run a notebook by papermill's command line, as the README says."""
    source = NOTEBOOKS[name].relative_to(folder) if NOTEBOOKS[name].is_relative_to(folder) else NOTEBOOKS[name]
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(source), str(output)]
    for key, value in values.items():
        command += ["-p", key, str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KAGGLE_API_TOKEN": SECRET, "KAGGLE_KEY": SECRET}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def printed(path):
    outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.fixture(scope="module")
def executed(competition, tmp_path_factory):
    """All notebooks on the phantom with smoke_test: from the root, and train from notebooks/."""
    folder = tmp_path_factory.mktemp("executed")
    data = {"competition_dir": competition, "cache_dir": folder / "cache", "smoke_test": True}
    run, threshold = folder / "runs" / "cnn", folder / "threshold.json"
    tuned = {"run_dirs": run, "threshold_path": threshold}
    steps = {
        "explore": (ROOT, data),
        "preprocess": (ROOT, data),
        "train": (ROOT / "notebooks", data | {"architecture": "cnn", "run_dir": run}),
        "tune_threshold": (ROOT, tuned),
        "report": (ROOT, data | tuned | {"report_path": folder / "report.html"}),
        "submit": (ROOT, data | tuned | {"submission_path": folder / "submission.csv"}),
    }
    for name, (start, values) in steps.items():
        result = execute(name, folder / f"{name}.ipynb", start, **values)
        assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_notebooks_lead_from_dicoms_to_a_valid_submission(executed, competition):
    submission = pd.read_csv(executed / "submission.csv", dtype={"prediction_id": str})
    assert list(submission.columns) == ["prediction_id", "cancer"]
    assert submission.prediction_id.tolist() == read_images(competition, "test").prediction_id.drop_duplicates().tolist()
    assert submission.cancer.isin([0, 1]).all()
    assert (executed / "probabilities.csv").is_file()


def test_smoke_test_keeps_its_copies_next_to_its_submission(executed):
    assert len([*(executed / "submissions").glob("*-cnn.json")]) == 1
    assert not [path for path in (ROOT / "submissions").glob("*.json") if str(executed) in path.read_text()]


def test_no_notebook_shows_or_writes_a_credential_of_its_environment(executed):
    written = [path for path in executed.rglob("*") if path.is_file()]
    assert len(written) > 50
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_notebooks_say_what_they_did_and_what_comes_next(executed):
    assert "PHANTOM" in printed(executed / "preprocess.ipynb") and "0 failed" in printed(executed / "preprocess.ipynb")
    assert "Out of fold (" in printed(executed / "train.ipynb")
    order = {"explore": "preprocess", "preprocess": "train", "train": "tune_threshold", "tune_threshold": "submit"}
    for name, following in (order | {"report": "submit"}).items():
        assert f"Next: {following}.ipynb" in printed(executed / f"{name}.ipynb")


def test_executed_notebooks_show_pictures(executed):
    for name in NOTEBOOKS:
        outputs = [
            output
            for cell in nbformat.read(executed / f"{name}.ipynb", as_version=4).cells
            for output in cell.get("outputs", [])
        ]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert pictures, name
        assert not [output for output in outputs if "Warning" in output.get("text", "")], name


def test_report_is_written_where_it_was_asked_for_and_holds_what_the_notebook_shows(executed):
    content = (executed / "report.html").read_text()
    cells = nbformat.read(executed / "report.ipynb", as_version=4).cells
    pictures = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert content.count("<img ") == len(pictures) >= 5
    assert f"The report is in {executed / 'report.html'}" in printed(executed / "report.ipynb")
    assert "Out-of-fold predictions of cnn: 24 breasts" in content


def test_threshold_file_keeps_its_contract(executed):
    content = json.loads((executed / "threshold.json").read_text())
    assert {"threshold", "aggregation", "pf1", "pf1_nested", "runs"} <= content.keys()
    assert {"value", "low", "high"} <= content["pf1_nested"].keys()


def test_user_error_ends_in_one_clear_line(tmp_path):
    result = execute("preprocess", tmp_path / "out.ipynb", ROOT, competition_dir=tmp_path / "nowhere")
    assert result.returncode != 0
    last = result.stderr.rstrip().splitlines()[-1]
    assert last == f"KitError: competition_dir {tmp_path / 'nowhere'} does not exist. Correct the path."
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    errors = [output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert len(errors[0].traceback) == 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_stored_plain_and_thin(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in cells(name):
        assert not cell.outputs and cell.execution_count is None
        lines = cell.source.splitlines()
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(lines) <= 15, cell.id
            assert not re.search(r"^\s*(def |class |!|%|#)", cell.source, re.MULTILINE), cell.id


def test_imports_at_the_top_of_notebooks_leave_out_what_takes_long():
    """The first useful line comes after them."""
    imports = [cell.source for name in NOTEBOOKS for cell in cells(name) if cell.id == "imports"]
    assert len(imports) == len(NOTEBOOKS)
    code = "\n".join([*imports, "import sys", "print({'pandas', 'torch', 'sklearn', 'scipy.stats'} & set(sys.modules))"])
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "{'pandas'}\n", result.stderr


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_are_annotated_explained_literals_with_the_shared_names(name):
    found, source = parameters(name)
    groups = [line for line in source.splitlines() if line.startswith("#")]
    assert len(found) + len(groups) == len(source.splitlines())
    assert groups == (["# Usually changed", "# Sometimes changed", "# Rarely changed"] if name == "train" else [])
    assert len(found) <= (21 if name == "train" else 10)
    assert SHARED_PARAMETERS[name] <= found.keys()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_papermill_lists_every_parameter(name):
    """It reads each line by a regular expression, and warns of parameters that it does not find."""
    assert papermill.inspect_notebook(NOTEBOOKS[name]).keys() == parameters(name)[0].keys()


def test_defaults_of_train_leave_settings_to_the_recipe():
    declared = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(parameters("train")[1]).body}
    assert {name for name in declared if declared[name] is None} == set(declared) & set(KINDS)


DOCUMENTS = ["README.md", "Makefile", "docs/training.md", "docs/preprocessing.md", "docs/results.md", "docs/external-data.md"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_name_notebooks_and_parameters_that_exist(document):
    """papermill only warns of an unknown parameter, so a misspelt one would pass unseen."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    macros = dict(re.findall(r"^(\w+) :?\??= (.*)$", text, re.MULTILINE)) if document == "Makefile" else {}
    for _ in range(3):
        text = re.sub(r"\$\((\w+)\)", lambda match: macros.get(match[1], match[0]), text)
    commands = re.findall(r"papermill.*?notebooks/(\w+)\.ipynb(.*)", text)
    assert commands
    for name, arguments in commands:
        assert set(re.findall(r"-p (\w+)", arguments)) <= parameters(name)[0].keys(), (name, arguments)
