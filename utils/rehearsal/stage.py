"""Set up a rehearsal: a hidden test, datasets where Kaggle mounts them, and a Python with only Kaggle's packages."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from packaging.utils import canonicalize_name, parse_wheel_filename

from utils.core.devices import cpu_count
from utils.core.errors import KitError
from utils.core.files import read_json
from utils.core.folders import COMPETITION, PROJECT, runs_dir, working_dir
from utils.decision.threshold import Threshold
from utils.decision.tuning import tune
from utils.images.inputs import open_inputs
from utils.kaggle.bundle import Options as BundleOptions
from utils.kaggle.bundle import write_bundle
from utils.kaggle.packages import read_requirements
from utils.kaggle.wheels import KAGGLE_IMAGE
from utils.phantom.competition import make_competition
from utils.phantom.hidden_test import HiddenTest, make_hidden_test
from utils.rehearsal.world import KagglePython, make_kaggle_python, python_version
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.found import find_runs
from utils.runs.run import Run
from utils.training.folds import train_run

DEMO = PROJECT / "outputs" / "demo"
OUT = PROJECT / "outputs" / "rehearsal"
USERNAME = "rehearsal"  # not an account: nothing is sent
FACTS = "Rehearsal: "
# The only cell that the rehearsal adds, at the notebook's end: it prints where the code and the Python came from.
FACTS_CELL = f"""import json
import utils

print("{FACTS}" + json.dumps({{"utils": utils.__file__, "python": sys.executable}}))"""
NO_RUN = ([], None, "no other runs found")
TO_CHOOSE = 'choose others with make rehearse REHEARSE="--runs FOLDER,FOLDER --threshold FILE".'
EXAMPLE = {"n_folds": 2, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "positive_share": 0.5}
EXAMPLE_SIZE = (64, 48)


class RehearsalError(KitError):
    """A rehearsal can't begin; the message says what to name."""


@dataclass(frozen=True)
class Options:
    """The options of a rehearsal."""

    patients: int = 12  # of the phantom hidden test
    height: int = 256  # nominal rows of its images in pixels
    seed: int = 0
    runs: tuple[Path, ...] = ()  # if empty, `choose_runs` chooses
    threshold: Path | None = None  # threshold.json of these runs
    python: Path = Path(sys.executable)  # an interpreter with the packages of Kaggle's image
    out: Path = OUT  # receives the report, the executed notebook and submission.csv
    time_budget_hours: float = 0.0  # 0 keeps the notebook's default
    isolated: bool = True  # False uses no namespaces, for systems that do not allow them
    full_sized: bool = True  # also measure preprocessing alone on files of the real sizes


@dataclass
class Stage:
    """The files and Python of one rehearsal; ``folder`` is deleted at its end."""

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
    """Lay out what Kaggle would mount, and make a Python without the packages that Kaggle's lacks."""
    version = python_version(options.python)
    runs, threshold = choose_runs(options)
    hidden = make_hidden_test(folder / "input" / COMPETITION, options.patients, options.height, options.seed)
    runs = runs or [_train_example(folder / "example")]
    if not threshold:
        threshold = folder / "threshold.json"
        tune(runs).save(threshold)
    print("Bundle ...", flush=True)
    write_bundle(folder / "bundle", USERNAME, runs, threshold, BundleOptions(version))
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
    """Choose the runs (perhaps none) and their threshold.json (None: still to be tuned), and print them.

    Take the first that exist: the named runs; those of the named threshold.json; those of the working folder's
    threshold.json, as ``make kaggle`` does; all real ones; the demo's. Raise KitError if named files are missing.
    """
    if options.threshold and not options.threshold.is_file():
        raise RehearsalError(f"--threshold {options.threshold} does not exist: name a threshold.json, or leave it out.")
    if options.runs or options.threshold:
        named = options.runs or Threshold.load(options.threshold).run_dirs
        runs, threshold, whose = find_runs([str(run) for run in named]), options.threshold, "as named"
    else:
        runs, threshold, whose = next((found for found in _found_runs() if found[0]), NO_RUN)
    tuned = f"with {threshold}" if threshold else "with a threshold to be tuned"
    print(f"Rehearsing {', '.join(run.name for run in runs) or 'a small run'} ({whose}) {tuned}; {TO_CHOOSE}", flush=True)
    return runs, threshold


def _found_runs() -> Iterator[tuple[list[Path], Path | None, str]]:
    """Yield runs, their threshold.json and a text on their origin, in order of preference."""
    own, demo = working_dir() / "threshold.json", DEMO / "threshold.json"
    yield _still_there(own), own, "the tuned ones"
    yield find_runs(), None, f"all under {runs_dir()}"
    yield _still_there(demo), demo, "the demo's"
    yield sorted(path.parent for path in DEMO.glob("runs/*/oof.csv")), None, "the demo's"


def _still_there(threshold: Path) -> list[Path]:
    """Return a threshold.json's runs; empty if the file or any of the runs is missing."""
    runs = Threshold.load(threshold).run_dirs if threshold.is_file() else []
    return runs if all((run / "oof.csv").is_file() for run in runs) else []


def picture_sizes(runs: Sequence[Path]) -> list[str]:
    """Return the distinct sizes of the cached images that runs read, as in "1024 x 512"."""
    settings = [Run(run).config.preprocessing for run in runs]
    return sorted({f"{one.image_height} x {one.image_width}" for one in settings})


def _train_example(folder: Path) -> Path:
    print("Training a small run on the phantom ...", flush=True)
    make_competition(folder / "competition", 16, 1, 96, positive_share=0.5)
    inputs = open_inputs(folder / "competition", folder / "cache", *EXAMPLE_SIZE)
    config = TrainConfig(ModelConfig("cnn", *EXAMPLE_SIZE), inputs.settings, **EXAMPLE)
    train_run(config, inputs.cached_training_data(cpu_count()), folder / "cnn-example")
    return folder / "cnn-example"


def mount_dataset(dataset: Path, input_dir: Path) -> None:
    """Copy a dataset to where Kaggle mounts it, under its slug, with each zip unpacked into a folder of its name."""
    slug = read_json(dataset / "dataset-metadata.json")["id"].split("/")[1]
    shutil.copytree(dataset, input_dir / slug, ignore=shutil.ignore_patterns("dataset-metadata.json", "*.zip"))
    for path in dataset.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(input_dir / slug / path.stem)


def lacking_packages(wheels: Sequence[str]) -> set[str]:
    """Return the packages that Kaggle's image lacks: the missing ones of requirements.txt, and the wheels'."""
    required = read_requirements(PROJECT / "requirements.txt")
    names = {str(canonicalize_name(need.name)) for need in required} - set(KAGGLE_IMAGE)
    return names | {str(parse_wheel_filename(name)[0]) for name in wheels}


def _parameters(options: Options) -> list[str]:
    return ["-p", "time_budget_hours", str(options.time_budget_hours)] if options.time_budget_hours else []


def _write_notebook(source: Path, target: Path) -> None:
    notebook = nbformat.read(source, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS_CELL, id="rehearsal"))
    nbformat.write(notebook, target)


def _go_without_isolation(stage: Stage) -> None:
    """Pass the folders that Kaggle has at fixed places as parameters, and copy the code to the working folder."""
    code = next(stage.input.glob("*/*/utils/core/folders.py")).parents[2]
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
