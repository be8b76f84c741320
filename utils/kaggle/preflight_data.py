"""Preflight of the data: the competition's tables and images, and the cache of pictures."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from utils.core.environment import COMPETITION, on_kaggle, read_json
from utils.kaggle.preflight_job import READ, TABLES, Finding, Job, hollow, mounted, refusals

OPTIONAL = {"submit": ("sample_submission",), "preprocess": ("train", "test")}  # of the last, one is enough
SAMPLED = 5  # image files that are looked at, spread over the table


def check_tables(job: Job) -> Iterator[Finding]:
    """The competition's folder is there, and its tables have the columns that the notebook reads."""
    from utils.tables.competition import REQUIRED

    if job.competition is None:
        if on_kaggle() and not job.smoke_test:
            problem = "The competition's data is not attached: a synthetic competition takes its place."
            yield Finding(problem, f"accept the rules of {COMPETITION}, and attach it with 'Add Input'.", fatal=False)
        return
    get = "attach the competition again" if on_kaggle() else f"kaggle competitions download {COMPETITION}"
    if not any((job.competition / f"{name}.csv").is_file() for name in ("train", "test")):
        yield Finding(
            f"competition_dir {job.competition} holds no train.csv and no test.csv.", f"give the folder that does, or {get}."
        )
        return
    for name in TABLES[job.notebook]:
        path = job.competition / f"{name}.csv"
        if name in OPTIONAL.get(job.notebook, ()) and not path.exists():
            continue
        problem = hollow(path) or _table_problem(path, REQUIRED[name])
        if problem:
            yield Finding(f"{path} {problem}.", f"{get}.")


def _table_problem(path: Path, columns: Iterable[str]) -> str:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing, first = [name for name in columns if name not in (reader.fieldnames or ())], next(reader, None)
    except (csv.Error, UnicodeDecodeError) as error:
        return f"is not a readable CSV ({error})"
    return f"lacks the column(s) {', '.join(missing)}" if missing else "" if first else "has no rows"


def check_images(job: Job) -> Iterator[Finding]:
    """Some of the images that the tables name are there, and their headers can be read."""
    if job.notebook != "explore" and not job.smoke_test and job.caches and not any(job.missing.values()):
        return  # all pictures are made
    for split in READ[job.notebook]:
        paths = _sampled_paths(job, split)
        bad = {path: problem for path in paths if (problem := image_problem(path))}
        for path, problem in list(bad.items())[:1]:
            found = f"{len(bad)} of {len(paths)} images of {split}.csv that were looked at can't be read: {path} {problem}."
            remedy = f"{path.parent.parent} must hold PATIENT/IMAGE.dcm; attach or download what is missing."
            yield Finding(found, remedy, fatal=len(bad) == len(paths) and job.notebook != "explore")


def _sampled_paths(job: Job, split: str) -> list[Path]:
    import pandas as pd

    from utils.tables.competition import FILE_IDS, image_paths, name_files

    sample = pd.DataFrame(spread(job.images.get(split, [])), columns=FILE_IDS, dtype=str)
    return image_paths(sample[name_files(sample)], job.competition, split)


def spread(items: Sequence) -> Sequence:
    """A few of many, from the first on."""
    return items[:: max(1, len(items) // SAMPLED)][:SAMPLED]


def image_problem(path: Path) -> str:
    """Say why a file's header can't be read; empty if it can."""
    from utils.dicom.file import DicomError, open_dicom

    problem = hollow(path)
    if problem:
        return problem
    try:
        with open_dicom(path):
            return ""
    except DicomError as error:
        return f"({error.reason})"


def check_cache(job: Job) -> Iterator[Finding]:
    """A cache has the settings that are asked for; on Kaggle, no GPU waits for hours of preprocessing."""
    for cache, settings in job.caches.items():
        found = _hash_of(cache)
        if found and found != settings.hash:
            remedy = "choose another cache_dir, or the image_height, image_width and exact that it was made with."
            yield Finding(f"The cache {cache} was made with other settings.", remedy)
        elif on_kaggle() and job.notebook == "train" and job.missing[cache]:
            attached = next((folder for folder in mounted("settings.json") if _hash_of(folder) == settings.hash), None)
            make = "run preprocess.ipynb in a notebook without a GPU, attach its output, and give its folder as cache_dir."
            problem = f"{cache} lacks {job.missing[cache]} pictures: they are made first, while the GPU's hours run."
            yield Finding(problem, f"set cache_dir to {attached}." if attached else make, fatal=False)


def check_true_boxes(job: Job) -> Iterator[Finding]:
    """True boxes, of the file that is named or of the competition's folder, can be read."""
    from utils.images.cache import CacheSettings
    from utils.images.inputs import Inputs

    path = job.parameters.values.get("boxes_path", "")
    if job.competition:
        inputs = Inputs(job.competition, job.is_phantom, CacheSettings(), Path(), job.smoke_test)  # no picture is looked at
        yield from refusals(lambda: inputs.boxes(path))


def _hash_of(cache: Path) -> str:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return read_json(cache / "settings.json").get("hash", "")
    return ""
