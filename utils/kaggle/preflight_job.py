"""What a preflight looks at: a notebook with its parameters, what it will read and write, and what a check finds."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

from utils.core import environment
from utils.core.environment import competition_folder, resolve, walk_small_folders, working_dir
from utils.core.parameters import Parameters

TABLES = {
    "explore": ("train", "test"),
    "preprocess": ("train", "test"),
    "train": ("train",),
    "report": ("train",),
    "submit": ("test", "sample_submission"),
}
CACHED = {"preprocess": ("train", "test"), "train": ("train",), "submit": ("test",)}  # splits that are preprocessed whole
READ = CACHED | {"explore": ("train",)}  # splits whose DICOMs are read
OUTPUTS = {"tune_threshold": "threshold_path", "report": "report_path", "submit": "submission_path"}
GIGABYTE = 10**9
PICTURE_BYTES = 8.3e9 / 54_706 / (1024 * 512)  # of a pixel; README, "The cache"
RUN_BYTES = 2 * GIGABYTE  # four folds of resnet50, 0.1 GB each, and the checkpoints of two while they are replaced
MOUNT_DEPTH = 4
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Finding:
    """What would go wrong, and what to do about it.

    Parameters
    ----------
    problem : str
    remedy : str
        Empty where ``problem`` is the message of an error that says it.
    fatal : bool
        Whether the notebook would fail, or its hours be wasted; else it is a warning.
    """

    problem: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.problem} Remedy: {self.remedy}" if self.remedy else self.problem


Check = Callable[["Job"], Iterator[Finding]]


@dataclass(frozen=True)
class Job:
    """A notebook and those of its parameters that decide what can fail; an empty one means what it means there.

    Parameters
    ----------
    run_dirs : str or sequence of Path
        As text with commas between, or as the caller found them.
    output_path : str
        The file that it writes: see `OUTPUTS`.
    num_workers : int
        Processes that preprocess.
    parameters : Parameters
        All of the notebook's.
    """

    notebook: str
    competition_dir: str = ""
    run_dirs: str | Sequence[Path] = ""
    weights_path: str = ""
    cache_dir: str = ""
    threshold_path: str = ""
    run_dir: str = ""
    output_path: str = ""
    image_height: int = 0
    image_width: int = 0
    exact: bool = False
    num_workers: int = 0
    pretrained: bool = False
    smoke_test: bool = False
    parameters: Parameters = field(default_factory=lambda: Parameters({}, {}))

    @classmethod
    def of(cls, notebook: str, parameters: Parameters) -> Job:
        """Take what is looked at from all of a notebook's parameters."""
        output = OUTPUTS.get(notebook, "")
        own = {one.name for one in fields(cls)} - {output}
        if notebook == "train":
            own.remove("num_workers")  # those of train load data
        given = {name: value for name, value in parameters.values.items() if name in own}
        return cls(notebook, output_path=parameters.values.get(output, ""), parameters=parameters, **given)

    @cached_property
    def competition(self) -> Path | None:
        """The competition's folder; None where the phantom will be made."""
        return competition_folder(self.competition_dir)

    @cached_property
    def is_phantom(self) -> bool:
        """Whether the pictures are synthetic."""
        from utils.phantom.competition import is_phantom_competition

        return self.competition is None or is_phantom_competition(self.competition)

    @cached_property
    def images(self) -> dict[str, list[tuple[str, str]]]:
        """Patient and image ids of the tables that the notebook reads; none of a table that can't be read."""
        names = TABLES.get(self.notebook, ()) if self.competition else ()
        return {name: _read_ids(self.competition / f"{name}.csv") for name in names}

    @cached_property
    def runs(self) -> list[Path]:
        """Run folders that are named, else those that the notebook will find; they need not be whole."""
        from utils.decision.tuning import tuned_runs
        from utils.runs.oof import find_runs

        if self.run_dirs:
            names = self.run_dirs.split(",") if isinstance(self.run_dirs, str) else self.run_dirs
            return [resolve(str(name).strip()) for name in names]
        found = [] if self.smoke_test else find_runs()
        if self.notebook == "submit":
            with contextlib.suppress(environment.KitError):  # of threshold.json or its runs: check_threshold tells
                return tuned_runs(self.threshold_path, self.smoke_test, self.competition_dir) or found
        return found

    @cached_property
    def caches(self) -> dict[Path, object]:
        """Folders of pictures that the notebook reads, and makes where they lack some; each with its `CacheSettings`."""
        from utils.images.cache import attached_cache_dir, default_cache_dir

        if self.notebook not in READ or self.competition is None:
            return {}
        defaults = {default_cache_dir(self.competition, settings): settings for settings in self._settings()}
        if not self.cache_dir and self.notebook != "submit":
            return {attached_cache_dir(self.competition, made) or folder: made for folder, made in defaults.items()}
        if not self.cache_dir:
            return defaults
        named = resolve(self.cache_dir)
        return {named if len(defaults) == 1 else named / default.name: settings for default, settings in defaults.items()}

    def _settings(self) -> list:
        from utils.images.inputs import picture_settings

        if self.notebook == "submit":
            return list(dict.fromkeys(config.preprocessing for run in self.runs if (config := config_of(run))))
        return [picture_settings(self.image_height, self.image_width, self.exact, self.is_phantom, self.smoke_test)]

    @cached_property
    def missing(self) -> dict[Path, int]:
        """How many pictures each cache lacks; a smoke test makes next to none."""
        splits = () if self.smoke_test else CACHED.get(self.notebook, ())
        return {
            cache: sum(max(0, len(self.images[split]) - sum(1 for _ in (cache / split).glob("*.png"))) for split in splits)
            for cache in self.caches
        }

    @cached_property
    def written(self) -> dict[Path, float]:
        """Folders that the notebook writes into, and about how many bytes."""
        folders = {} if self.competition else {working_dir(): 0.0}
        for cache, settings in self.caches.items():
            attached = cache.is_relative_to(environment.KAGGLE_INPUT)  # by another notebook, and only read
            if not attached and (self.missing[cache] or not cache.is_dir()):
                folders[cache] = self.missing[cache] * settings.image_height * settings.image_width * PICTURE_BYTES
        if self.notebook == "train":
            place = resolve(self.run_dir) if self.run_dir else environment.runs_dir()
            folders[place] = 0.0 if self.smoke_test or self.is_phantom else RUN_BYTES
        if self.notebook in ("tune_threshold", "report", "submit"):
            folders[resolve(self.output_path).parent if self.output_path else working_dir()] = 0.0
        if self.notebook == "submit":
            folders[environment.submissions_dir()] = 0.0
        return folders


def _read_ids(path: Path) -> list[tuple[str, str]]:
    with (
        contextlib.suppress(OSError, csv.Error, ValueError, StopIteration),
        open(path, newline="", encoding="utf-8-sig", errors="replace") as file,
    ):
        reader = csv.reader(file)
        header = next(reader)
        patient, image = header.index("patient_id"), header.index("image_id")
        return [(row[patient], row[image]) for row in reader if len(row) == len(header)]
    return []


def config_of(run: Path):
    """Read a run's `utils.runs.config.TrainConfig`; None where it can't be read."""
    from utils.runs.run import Run

    try:
        return Run(run).config
    except environment.KitError:  # check_weights tells
        return None


def refusals(read: Callable[[], object], fatal: bool = True) -> Iterator[Finding]:
    """What a reader refuses, as a finding; its message holds the remedy."""
    try:
        read()
    except environment.KitError as error:
        yield Finding(str(error), "", fatal)


def hollow(path: Path) -> str:
    """Say why a file can't hold what its name says; empty if it may."""
    if not path.is_file():
        return "does not exist"
    try:
        with open(path, "rb") as file:
            head = file.read(len(LFS_POINTER))
    except OSError as error:
        return f"can't be opened ({error.strerror})"
    return "is empty" if not head else "is a Git LFS pointer, not the file itself" if head == LFS_POINTER else ""


def mounted(ending: str) -> list[Path]:
    """Folders of Kaggle's input that hold a file with such a name."""
    found = []
    for folder, names, files in walk_small_folders(environment.KAGGLE_INPUT):
        if any(name.endswith(ending) for name in files):
            found.append(folder)
        if len(folder.relative_to(environment.KAGGLE_INPUT).parts) >= MOUNT_DEPTH:
            names.clear()
    return found
