"""What a rehearsal needs: a hidden test, the datasets where Kaggle mounts them, and a Python that lacks what Kaggle's lacks."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from packaging.utils import canonicalize_name, parse_wheel_filename

from utils.core.environment import COMPETITION, PROJECT, KitError, cpu_count, read_json, runs_dir, working_dir
from utils.decision.threshold import Threshold
from utils.decision.tuning import tune
from utils.images.inputs import open_inputs
from utils.kaggle.bundle import write_bundle
from utils.kaggle.wheels import KAGGLE_IMAGE
from utils.phantom.competition import make_competition
from utils.phantom.hidden_test import HiddenTest, make_hidden_test
from utils.rehearsal.world import KagglePython, make_kaggle_python, python_version
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.oof import find_runs
from utils.training.folds import train_run

DEMO = PROJECT / "outputs" / "demo"
OUT = PROJECT / "outputs" / "rehearsal"
USERNAME = "rehearsal"  # of no account: nothing is sent
FACTS = "Rehearsal: "
# The one cell that the rehearsal adds, at the notebook's end: whose code and whose Python it was.
FACTS_CELL = f"""import json
import utils

print("{FACTS}" + json.dumps({{"utils": utils.__file__, "python": sys.executable}}))"""
NO_RUN = ([], None, "there is no other, and no demo's")
TO_CHOOSE = 'choose others with make rehearse REHEARSE="--runs FOLDER,FOLDER --threshold FILE".'
EXAMPLE = {"n_folds": 2, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "positive_share": 0.5}
EXAMPLE_SIZE = (64, 48)


class RehearsalError(KitError):
    """A rehearsal that can't begin; the message says what to name."""


@dataclass(frozen=True)
class Options:
    """What is rehearsed.

    Parameters
    ----------
    patients, height, seed : int
        Of the phantom hidden test: its patients, and nominal rows of an image in pixels.
    runs : tuple of Path
        Empty chooses: see `choose_runs`.
    threshold : Path, optional
        threshold.json of these runs.
    python : Path
        An interpreter that has the packages of Kaggle's image.
    out : Path
        Gets the report, the executed notebook and submission.csv.
    time_budget_hours : float
        As the notebook's; 0 leaves it to the notebook.
    isolated : bool
        False goes without namespaces, where a system does not allow them.
    full_sized : bool
        Measure preprocessing alone on files of the real sizes too.
    """

    patients: int = 12
    height: int = 256
    seed: int = 0
    runs: tuple[Path, ...] = ()
    threshold: Path | None = None
    python: Path = Path(sys.executable)
    out: Path = OUT
    time_budget_hours: float = 0.0
    isolated: bool = True
    full_sized: bool = True


@dataclass
class Stage:
    """What is set up for one rehearsal; ``folder`` is thrown away at its end."""

    folder: Path
    hidden: HiddenTest
    python: KagglePython
    runs: list[Path]
    parameters: list[str] = field(default_factory=list)

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def results(self) -> Path:
        return self.folder / "results"


def set_up(options: Options, folder: Path) -> Stage:
    """Lay out what Kaggle would mount, and a Python that lacks what Kaggle's does."""
    version = python_version(options.python)
    runs, threshold = choose_runs(options)
    hidden = make_hidden_test(folder / "input" / COMPETITION, options.patients, options.height, options.seed)
    runs = runs or [_train_example(folder / "example")]
    if not threshold:
        threshold = folder / "threshold.json"
        tune(runs).save(threshold)
    print("Bundle ...", flush=True)
    write_bundle(folder / "bundle", USERNAME, runs, threshold, version)
    for dataset in sorted((folder / "bundle" / "datasets").iterdir()):
        mount_dataset(dataset, folder / "input")
    wheels = sorted((folder / "bundle" / "datasets").glob("wheels/*.whl"))
    lacking = lacking_packages([path.name for path in wheels]) if options.isolated else ()
    python = make_kaggle_python(options.python, folder / "python", lacking)
    stage = Stage(folder, hidden, python, runs, _parameters(options))
    stage.results.mkdir()
    notebook = folder / "bundle" / "kernels" / "submit" / "submit.ipynb"
    _write_notebook(notebook, stage.results / "asked.ipynb")
    if not options.isolated:
        _go_without_isolation(stage)
    return stage


def choose_runs(options: Options) -> tuple[list[Path], Path | None]:
    """Choose what is rehearsed, and say so.

    Runs that are named; else those that the named threshold.json was tuned on; else those of the working folder's, as
    ``make kaggle`` takes them; else all real ones; else the demo's.

    Returns
    -------
    list of Path
        Empty where there is none.
    Path or None
        Their threshold.json; None where it is to be tuned.

    Raises
    ------
    KitError
        If what is named is not there.
    """
    if options.threshold and not options.threshold.is_file():
        raise RehearsalError(f"--threshold {options.threshold} does not exist: name a threshold.json, or leave it out.")
    if options.runs or options.threshold:
        named = options.runs or runs_of(options.threshold)
        runs, threshold, whose = find_runs([str(run) for run in named]), options.threshold, "as named"
    else:
        runs, threshold, whose = next((found for found in _found_runs() if found[0]), NO_RUN)
    tuned = f"with {threshold}" if threshold else "with a threshold that is tuned now"
    print(f"Rehearsing {', '.join(run.name for run in runs) or 'a small run'} ({whose}) {tuned}; {TO_CHOOSE}", flush=True)
    return runs, threshold


def _found_runs() -> Iterator[tuple[list[Path], Path | None, str]]:
    """Runs, their threshold.json and whose they are, best first."""
    own, demo = working_dir() / "threshold.json", DEMO / "threshold.json"
    yield _still_there(own), own, "those that it was tuned on"
    yield find_runs(), None, f"all under {runs_dir()}"
    yield _still_there(demo), demo, "the demo's"
    yield sorted(path.parent for path in DEMO.glob("runs/*/oof.csv")), None, "the demo's"


def _still_there(threshold: Path) -> list[Path]:
    """Runs of a threshold.json, if there is one, and all of them are where they were."""
    runs = runs_of(threshold) if threshold.is_file() else []
    return runs if all((run / "oof.csv").is_file() for run in runs) else []


def runs_of(threshold: Path) -> list[Path]:
    """Runs that a threshold.json was tuned on.

    Raises
    ------
    PredictionError
        If the file is none.
    """
    return [Path(run) for run in Threshold.load(threshold).runs]


def picture_sizes(runs: Sequence[Path]) -> list[str]:
    """Sizes of the pictures that runs read, as in "1024 x 512", each once."""
    settings = [read_json(run / "config.json")["preprocessing"] for run in runs]
    return sorted({f"{one['image_height']} x {one['image_width']}" for one in settings})


def _train_example(folder: Path) -> Path:
    print("Training a small run on the phantom ...", flush=True)
    make_competition(folder / "competition", 16, 1, 96, positive_share=0.5)
    inputs = open_inputs(folder / "competition", folder / "cache", *EXAMPLE_SIZE)
    images, manifest = inputs.cached("train", cpu_count())
    config = TrainConfig(ModelConfig("cnn", *EXAMPLE_SIZE), inputs.settings, **EXAMPLE)
    train_run(config, images[(manifest.error == "").to_numpy()], inputs.cache_dir, folder / "cnn-example", is_phantom=True)
    return folder / "cnn-example"


def mount_dataset(dataset: Path, input_dir: Path) -> None:
    """Put a dataset where Kaggle mounts it, under its slug, zip archives unpacked into folders of their names."""
    slug = read_json(dataset / "dataset-metadata.json")["id"].split("/")[1]
    shutil.copytree(dataset, input_dir / slug, ignore=shutil.ignore_patterns("dataset-metadata.json", "*.zip"))
    for path in dataset.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(input_dir / slug / path.stem)


def lacking_packages(wheels: Sequence[str]) -> set[str]:
    """Names of what Kaggle's image lacks: what requirements.txt names and the image does not have, and the bundle's wheels."""
    required = re.findall(
        r"^[A-Za-z0-9][A-Za-z0-9._-]*", (PROJECT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    names = {str(canonicalize_name(name)) for name in required} - set(KAGGLE_IMAGE)
    return names | {str(parse_wheel_filename(name)[0]) for name in wheels}


def _parameters(options: Options) -> list[str]:
    return ["-p", "time_budget_hours", str(options.time_budget_hours)] if options.time_budget_hours else []


def _write_notebook(source: Path, target: Path) -> None:
    notebook = nbformat.read(source, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS_CELL, id="rehearsal"))
    nbformat.write(notebook, target)


def _go_without_isolation(stage: Stage) -> None:
    """Name the folders that Kaggle would have at fixed places; the code lies in the working folder, where it is found first."""
    code = next(stage.input.glob("*/*/utils/core/environment.py")).parents[2]
    working = stage.results / "working"
    shutil.copytree(code, working)
    runs = [path.parent for path in stage.input.glob("*/*/oof.csv")]
    named = {
        "competition_dir": stage.hidden.folder,
        "run_dirs": ",".join(str(run) for run in sorted(runs)),
        "threshold_path": next(stage.input.glob("*/threshold.json")),
        "submission_path": working / "submission.csv",
    }
    stage.parameters += [part for name, value in named.items() for part in ("-p", name, str(value))]
