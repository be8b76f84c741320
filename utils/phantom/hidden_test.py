"""A phantom hidden test, which differs from the visible one as on the day that a submission is scored.

Kaggle runs a submitted notebook on a test.csv that nobody has seen: other machines, other gaps, and files that may be
broken.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.core.errors import KitError
from utils.core.files import replace_folder
from utils.phantom.competition import SUBMISSION_CONSTANT, TRUTH_FOLDER, make_competition
from utils.tables.competition import image_paths

FEWEST_PATIENTS = 3  # six breasts: one for each of five defects, one intact
NEW_MACHINES = (901, 902)  # neither a phantom's training table nor the real one has these
EXTRA_COLUMN = "scanner_software"
PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"  # (7FE0,0010), little endian
BYTES_OF_PIXELS = 64  # kept in a cut file: too few for any size of image


@dataclass(frozen=True)
class HiddenTest:
    """A hidden test, and what a submission must make of it.

    Parameters
    ----------
    folder : Path
        A phantom competition.
    unreadable : tuple of str
        prediction_ids without a readable file: they, and no others, get the prior.
    partly_readable : str
        prediction_id of a breast with one broken file and other readable ones.
    images : int
        Rows of test.csv.
    """

    folder: Path
    unreadable: tuple[str, ...]
    partly_readable: str
    images: int


def make_hidden_test(
    folder: str | Path, n_patients: int = 12, height: int = 256, seed: int = 0, n_train_patients: int = 2
) -> HiddenTest:
    """Write a phantom competition whose test part differs from what training and the visible test show.

    It has machines that no training table has, ages missing for a patient and for one image, a breast with a single
    view, one more column, and broken files. All files of one breast are cut off, of a second empty, of a third absent;
    in a fourth breast only the first is cut off. The same seed and parameters give the same files.

    Parameters
    ----------
    folder : path
        Absent; at the end it is complete, or still absent.
    n_patients : int
        Patients of the test, at least 3; a patient has about 4.3 images.
    height : int
        Nominal rows of an image in pixels, at least 64.
    n_train_patients : int
        Kaggle mounts the training images too; a few are enough.

    Raises
    ------
    KitError
        If ``n_patients`` is too small.
    FileExistsError
        If ``folder`` exists.
    """
    folder = Path(folder)
    if n_patients < FEWEST_PATIENTS:
        raise KitError(f"A hidden test needs at least {FEWEST_PATIENTS} patients, not {n_patients}: give --patients.")
    if folder.exists():
        raise FileExistsError(f"{folder} exists: delete it or choose another folder.")
    with replace_folder(folder, overwrite=False) as unfinished:
        make_competition(unfinished, n_train_patients, n_patients, height, contrast=2.0, seed=seed)
        shutil.rmtree(unfinished / TRUTH_FOLDER)  # Kaggle does not mount the answers
        table = pd.read_csv(unfinished / "test.csv", dtype=str, keep_default_na=False)
        defects = _choose_breasts(table)
        table = _keep_one_view(table, defects.one_view, unfinished)
        _damage_files(table, defects, unfinished)
        _change(table)
        table.to_csv(unfinished / "test.csv", index=False)
        wanted = table[["prediction_id"]].drop_duplicates().assign(cancer=SUBMISSION_CONSTANT)
        wanted.to_csv(unfinished / "sample_submission.csv", index=False)
    unreadable = (defects.cut_off, defects.empty, defects.absent)
    return HiddenTest(folder, unreadable, defects.partly_readable, images=len(table))


@dataclass(frozen=True)
class _Defects:
    """The prediction_id of the breast that has each defect."""

    one_view: str
    partly_readable: str
    cut_off: str
    empty: str
    absent: str


def _choose_breasts(table: pd.DataFrame) -> _Defects:
    """Choose one breast for each defect, spread over the patients.

    The two that lose a view or have one broken file have at least two images.
    """
    counts = table.groupby("prediction_id", sort=False).size()
    several = counts.index[counts > 1]
    one_view, partly_readable = several[0], several[-1]
    others = counts.index.difference([one_view, partly_readable], sort=False)
    cut_off, empty, absent = (others[place * len(others) // 3] for place in range(3))
    return _Defects(one_view, partly_readable, cut_off, empty, absent)


def _keep_one_view(table: pd.DataFrame, prediction_id: str, folder: Path) -> pd.DataFrame:
    spare = (table.prediction_id == prediction_id) & table.duplicated("prediction_id")
    for path in image_paths(table[spare], folder, "test"):
        path.unlink()
    return table[~spare].reset_index(drop=True)


def _damage_files(table: pd.DataFrame, defects: _Defects, folder: Path) -> None:
    paths = pd.Series(image_paths(table, folder, "test")).groupby(table.prediction_id).agg(list)
    for path in [*paths[defects.cut_off], paths[defects.partly_readable][0]]:
        content = path.read_bytes()
        path.write_bytes(content[: content.index(PIXEL_DATA_TAG) + BYTES_OF_PIXELS])
    for path in paths[defects.empty]:
        path.write_bytes(b"")
    for path in paths[defects.absent]:
        path.unlink()


def _change(table: pd.DataFrame) -> None:
    """Add what training has not seen: a column, new machines for the first patients, missing ages for the last ones."""
    patients = table.patient_id.unique()
    table[EXTRA_COLUMN] = "v" + table.machine_id
    for patient, machine in zip(patients, NEW_MACHINES, strict=False):
        table.loc[table.patient_id == patient, "machine_id"] = str(machine)
    table.loc[table.patient_id == patients[-1], "age"] = ""
    table.loc[table.index[table.patient_id == patients[-2]][0], "age"] = ""
