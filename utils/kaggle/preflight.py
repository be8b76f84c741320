"""Preflight of preprocessing: find within seconds problems that would appear hours later.

It leaves out problems that the notebook's next cells report within seconds.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from utils.core.parallel import dask_client
from utils.dicom.file import DicomError, open_dicom
from utils.images.inputs import Inputs
from utils.kaggle.findings import Finding, refusals, report
from utils.kaggle.machine import check_disks, check_memory, describe_machine
from utils.tables.competition import image_paths, name_files

IMAGE_BYTES = 8.3e9 / 54_706 / (1024 * 512)  # per cached pixel; README, "The cache"
SAMPLED = 5  # image files to open, spread over the table


def preflight_images(inputs: Inputs, splits: list[str], num_workers: int, cluster: str = "") -> None:
    """Check the requirements of preprocessing, and print warnings.

    Parameters
    ----------
    splits : list of str
        Splits that will be preprocessed.
    num_workers : int
        Number of decoding processes.
    cluster : str
        Address of a Dask scheduler; empty without one.

    Raises
    ------
    PreflightError
        If a problem is fatal; it lists all fatal problems.
    """
    tables = {split: inputs.images(split) for split in splits}
    missing = count_missing(inputs, tables)
    findings = [*check_disks(room_for(inputs, missing)), *check_memory(num_workers)]
    if any(missing.values()):
        findings += check_images(inputs, tables)
    if cluster:
        findings += refusals(lambda: dask_client(cluster).close())
    report(findings, describe_machine())


def count_missing(inputs: Inputs, tables: Mapping[str, pd.DataFrame]) -> dict[str, int]:
    """Count the images of each split's table that the cache lacks."""
    cached = {split: sum(1 for _ in (inputs.cache_dir / split).glob("*.png")) for split in tables}
    return {split: max(0, len(table) - cached[split]) for split, table in tables.items()}


def room_for(inputs: Inputs, missing: Mapping[str, int]) -> dict[Path, float]:
    """Estimate the bytes that the missing images will add to the cache, by folder."""
    if not any(missing.values()):
        return {}
    pixels = inputs.settings.image_height * inputs.settings.image_width
    return {inputs.cache_dir: sum(missing.values()) * pixels * IMAGE_BYTES}


def check_images(inputs: Inputs, tables: Mapping[str, pd.DataFrame]) -> Iterator[Finding]:
    """Check that a sample of each split's image files can be read."""
    for split, table in tables.items():
        table = table[name_files(table)]
        paths = image_paths(table.iloc[:: max(1, len(table) // SAMPLED)][:SAMPLED], inputs.competition_dir, split)
        bad = {path: problem for path in paths if (problem := _problem_of(path))}
        for path, problem in list(bad.items())[:1]:
            found = f"{len(bad)} of {len(paths)} checked images of {split}.csv can't be read: {path} ({problem})."
            folder = path.parent.parent
            lacking = "must contain PATIENT/IMAGE.dcm" if folder.is_dir() else "does not exist"
            remedy = f"{folder} {lacking}; attach or download what is missing."
            yield Finding(found, remedy, is_fatal=len(bad) == len(paths))


def _problem_of(path: Path) -> str:
    try:
        with open_dicom(path):
            return ""
    except DicomError as error:
        return error.reason
