"""A synthetic competition in the layout of RSNA Screening Mammography Breast Cancer Detection, with known lesions.

It lets every notebook run without data. Its tables have the real columns, orders and quirks, its DICOMs the real
styles; the lesions' positions are kept apart in ``phantom_truth``. No real patient is in it.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.files import replace_folder
from utils.core.progress import progress_bar
from utils.phantom.dicom import MACHINES, Machine, picture_shape, write_dicom
from utils.phantom.pictures import Drawing, draw_breast, draw_image, draw_lesions
from utils.tables.boxes import COLUMNS as BOX_COLUMNS

FORMAT_VERSION = 1
TRUTH_FOLDER = "phantom_truth"
BOXES_FILE = f"{TRUTH_FOLDER}/boxes.csv"
PARAMETERS_FILE = "phantom.json"
SUBMISSION_CONSTANT = 0.021  # the share of positive images in the real training set, 2.1 %
TRAIN_COLUMNS = (
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS",
    "implant", "density", "machine_id", "difficult_negative_case",
)  # fmt: skip
TEST_COLUMNS = (
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id", "prediction_id",
)  # fmt: skip
# Share of breasts per set of views; in the real set 23 % have a duplicate, and few have one view or another view.
VIEW_SETS = {
    ("CC", "MLO"): 0.73,
    ("CC", "CC", "MLO"): 0.09,
    ("CC",): 0.02,
    ("CC", "MLO", "AT"): 0.02,
    ("CC", "MLO", "LM"): 0.02,
    ("CC", "MLO", "MLO"): 0.09,
    ("CC", "MLO", "ML"): 0.01,
    ("MLO",): 0.02,
}
DENSITIES = {"B": 0.42, "C": 0.40, "A": 0.10, "D": 0.08}
AGE_MEAN, AGE_DEVIATION, AGE_MORE_FOR_CANCER = 58.0, 10.0, 4.0
MACHINE_BY_ID = {machine.machine_id: machine for machine in MACHINES}
# First words of the generators' seeds, so that no two purposes share a stream.
TABLES, PICTURES = 1, 2


@dataclass(frozen=True)
class PhantomSettings:
    """The content of phantom.json: the same settings give the same files. `make_competition` explains them."""

    format_version: int = field(default=FORMAT_VERSION, init=False)
    n_train_patients: int = 120
    n_test_patients: int = 40
    height: int = 512
    positive_share: float = 0.25
    contrast: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"n_train_patients": 1, "n_test_patients": 1, "height": 64, "contrast": 0, "seed": 0}.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.positive_share <= 1:
            raise ValueError(f"positive_share must be in [0, 1], not {self.positive_share}")


def make_competition(
    folder: str | Path,
    n_train_patients: int = 120,
    n_test_patients: int = 40,
    height: int = 512,
    positive_share: float = 0.25,
    contrast: float = 1.0,
    seed: int = 0,
    n_jobs: int | None = None,
) -> Path:
    """Write a complete phantom competition, or find it already written.

    It is built in a hidden folder next to ``folder`` and renamed at the end, so ``folder`` is complete or absent. The
    same seed and parameters give the same files.

    Parameters
    ----------
    folder : str or Path
        Absent, empty, or a phantom of the same parameters.
    n_train_patients, n_test_patients : int
        At least 1 each; a patient has about 4.3 images.
    height : int
        Nominal rows of an image in pixels, at least 64; machines differ from it by a factor of 0.9 to 1.25.
    positive_share : float
        Share of patients with cancer in one of the two breasts, in [0, 1].
    contrast : float
        Scales the lesions' brightness: 0 hides them, 1 lets a small network see them at 128 columns.
    n_jobs : int, optional
        Threads; all CPUs by default. The files do not depend on it.

    Returns
    -------
    Path
        ``folder``, with train.csv, test.csv, sample_submission.csv, train_images, test_images and phantom_truth.

    Raises
    ------
    FileExistsError
        If ``folder`` contains anything else.
    ValueError
        If a parameter is out of range.
    """
    settings = PhantomSettings(
        int(n_train_patients), int(n_test_patients), int(height), float(positive_share), float(contrast), int(seed)
    )
    folder = Path(folder)
    if _is_finished(folder, settings):
        return folder
    try:
        with replace_folder(folder, overwrite=False) as unfinished:
            _build(unfinished, settings, n_jobs or os.cpu_count() or 1)
    except OSError:
        if not _is_finished(folder, settings):  # another process may have been first with the same phantom
            raise
    return folder


def is_phantom_competition(folder: str | Path) -> bool:
    """True if a competition's folder contains a phantom."""
    return (Path(folder) / PARAMETERS_FILE).is_file()


def read_truth(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read what a phantom competition hides from competitors.

    Returns
    -------
    boxes : DataFrame
        image_id (str), x_min, y_min, x_max, y_max (pixels of the stored image, half-open) and label, which is mass or
        calcification; train and test.
    test_labels : DataFrame
        prediction_id (str) and cancer (0 or 1).
    """
    truth = Path(folder) / TRUTH_FOLDER
    boxes = pd.read_csv(Path(folder) / BOXES_FILE, dtype={"image_id": str})
    return boxes, pd.read_csv(truth / "test_labels.csv", dtype={"prediction_id": str})


# Folder and images
# -------------------


def _is_finished(folder: Path, settings: PhantomSettings) -> bool:
    """True for a phantom of these settings, False if ``folder`` is absent or empty; else raise FileExistsError."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    notes = folder / PARAMETERS_FILE
    if not notes.is_file():
        raise FileExistsError(f"{folder} exists and is not a phantom competition: choose another folder")
    found, wanted = json.loads(notes.read_text(encoding="utf-8")), asdict(settings)
    if found == wanted:
        return True
    details = ", ".join(
        f"{name} is {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value
    )
    raise FileExistsError(f"{folder} contains another phantom ({details}): delete it or choose another folder")


def _build(folder: Path, settings: PhantomSettings, n_jobs: int) -> None:
    images = _plan_images(settings)
    (folder / TRUTH_FOLDER).mkdir(parents=True)
    _write_tables(images, folder)
    for row in images[["split", "patient_id"]].drop_duplicates().itertuples():
        (folder / f"{row.split}_images" / row.patient_id).mkdir(parents=True)
    boxes = _write_images(images, folder, settings, n_jobs)
    pd.DataFrame(boxes, columns=BOX_COLUMNS).to_csv(folder / BOXES_FILE, index=False)
    (folder / PARAMETERS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")


def _write_images(images: pd.DataFrame, folder: Path, settings: PhantomSettings, n_jobs: int) -> list[dict]:
    """Draw and write all images, one patient per task; return the lesions' boxes in the tables' order."""
    patients = [rows for _, rows in images.groupby("patient_index")]
    # Threads suffice: NumPy's generators and FFT, OpenCV and the codecs release the GIL. The pool waits for its threads
    # even on Ctrl-C, so that none still writes while the unfinished folder is removed.
    with ThreadPoolExecutor(n_jobs) as pool:
        results = pool.map(partial(_write_patient, folder=folder, settings=settings), patients)
        bar = progress_bar(results, "Phantom", "patients", len(patients))
        return [box for boxes in bar for box in boxes]


def _write_patient(rows: pd.DataFrame, folder: Path, settings: PhantomSettings) -> list[dict]:
    rng = np.random.default_rng([PICTURES, settings.seed, rows["patient_index"].iloc[0]])
    boxes = []
    for _, views in rows.groupby("laterality"):
        first = views.iloc[0]
        # Draw for every breast, so that a label does not shift what the generator draws next.
        lesions = draw_lesions(rng)
        breast = draw_breast(rng, first["true_density"], bool(first["implant"]), lesions if first["cancer"] else ())
        for row in views.itertuples():
            boxes += _write_image(row, breast, folder, settings, rng)
    return boxes


def _write_image(row, breast, folder: Path, settings: PhantomSettings, rng: np.random.Generator) -> list[dict]:
    machine = MACHINE_BY_ID[row.machine_id]
    drawing = Drawing(row.view, row.laterality, breast, row.mirrored, row.marker, row.framed)
    picture, boxes, _ = draw_image(drawing, picture_shape(machine, settings.height), rng, settings.contrast)
    path = folder / f"{row.split}_images" / row.patient_id / f"{row.image_id}.dcm"
    write_dicom(path, picture, machine, row.patient_id, row.image_id)
    return [{"image_id": row.image_id} | box for box in boxes]


# Tables
# ------


def _deal(rng: np.random.Generator, n: int, shares: dict) -> list:
    """Deal ``n`` values in the shares' proportions, in random order; each comes at least once if ``n`` allows.

    The first value takes what rounding leaves over. Dealing instead of drawing shows each quirk even in a small
    phantom.
    """
    common, *rare = shares
    dealt = [value for value in rare for _ in range(max(1, round(n * shares[value])))][: max(n - 1, 0)]
    dealt += [common] * (n - len(dealt))
    return [dealt[place] for place in rng.permutation(n)]


def _plan_images(settings: PhantomSettings) -> pd.DataFrame:
    """Return one row per image of train and test: all columns of the tables, and what only the images need."""
    rng = np.random.default_rng([TABLES, settings.seed])
    splits = []
    for split, n in (("train", settings.n_train_patients), ("test", settings.n_test_patients)):
        patients = _plan_patients(rng, n, split, settings.positive_share)
        splits.append(_plan_views(rng, _plan_breasts(rng, patients)))
    images = pd.concat(splits, ignore_index=True)
    images["patient_index"] = images.groupby(["split", "patient_number"], sort=False).ngroup()
    return _add_ids(rng, images)


def _plan_patients(rng: np.random.Generator, n: int, split: str, positive_share: float) -> pd.DataFrame:
    machines = _deal(rng, n, _machine_shares(split))
    positive = rng.permutation(n) < round(n * positive_share)
    age = np.rint(rng.normal(AGE_MEAN + AGE_MORE_FOR_CANCER * positive, AGE_DEVIATION)).clip(26, 89)
    return pd.DataFrame(
        {
            "split": split,
            "patient_number": np.arange(n),
            "site_id": [machine.site_id for machine in machines],
            "machine_id": [machine.machine_id for machine in machines],
            "age": np.where(_deal(rng, n, {False: 0.97, True: 0.03}), np.nan, age),
            "implant": _deal(rng, n, {0: 0.97, 1: 0.03}),
            "true_density": _deal(rng, n, DENSITIES),
            "positive_side": np.where(positive, rng.choice(["L", "R"], n), ""),
        }
    )


def _machine_shares(split: str) -> dict[Machine, float]:
    """Return a split's machines and shares: the most common first, then those only in the test, then the rest."""
    shares = {machine: machine.train_share if split == "train" else machine.test_share for machine in MACHINES}
    common, *others = [machine for machine in MACHINES if shares[machine] > 0]
    others.sort(key=lambda machine: machine.train_share > 0)
    return {machine: shares[machine] for machine in (common, *others)}


def _plan_breasts(rng: np.random.Generator, patients: pd.DataFrame) -> pd.DataFrame:
    """Return two rows per patient with the breast's labels.

    What radiologists noted follows from cancer, not from the pictures.
    """
    breasts = patients.merge(pd.DataFrame({"laterality": ["L", "R"]}), how="cross")
    n, cancer = len(breasts), breasts["laterality"] == breasts["positive_side"]
    breasts["cancer"] = cancer.astype(int)
    breasts["biopsy"] = (cancer | (rng.random(n) < 0.04)).astype(int)
    breasts["invasive"] = (cancer & (rng.random(n) < 0.7)).astype(int)
    suspicious = ~cancer & ((breasts["biopsy"] == 1) | (rng.random(n) < 0.12))
    breasts["difficult_negative_case"] = suspicious
    birads = np.where(cancer | suspicious, 0.0, rng.choice([1.0, 2.0], n))
    # Site 2 records no density and hardly any BIRADS; site 1 sometimes omits BIRADS.
    noted = rng.random(n) < np.where(breasts["site_id"] == 1, 0.9, 0.05)
    breasts["BIRADS"] = np.where(noted, birads, np.nan)
    breasts["density"] = breasts["true_density"].where(breasts["site_id"] == 1)
    return breasts


def _plan_views(rng: np.random.Generator, breasts: pd.DataFrame) -> pd.DataFrame:
    """Return one row per image; what varies from image to image does not depend on the label."""
    images = breasts.assign(view=_deal(rng, len(breasts), VIEW_SETS)).explode("view", ignore_index=True)
    n = len(images)
    machines = [MACHINE_BY_ID[machine_id] for machine_id in images["machine_id"]]
    images["mirrored"] = rng.random(n) < [machine.mirrored_share for machine in machines]
    # A file without a window is stretched over its own range: a marker on each keeps the brightness comparable.
    images["marker"] = (rng.random(n) < 0.35) | [not machine.windows for machine in machines]
    images["framed"] = _deal(rng, n, {False: 0.96, True: 0.04})
    return images


def _add_ids(rng: np.random.Generator, images: pd.DataFrame) -> pd.DataFrame:
    """Add ids: numbers as text, as in the real set, with patients in rising order within a split."""
    n_patients = images["patient_index"].nunique()
    patient_ids = np.sort(rng.choice(90_000, n_patients, replace=False) + 10_000)
    image_ids = rng.choice(2**31, len(images), replace=False)
    images["patient_id"] = patient_ids.astype(str)[images["patient_index"]]
    images["image_id"] = image_ids.astype(str)
    images["prediction_id"] = images["patient_id"] + "_" + images["laterality"]
    return images


def _write_tables(images: pd.DataFrame, folder: Path) -> None:
    train, test = (images[images["split"] == split] for split in ("train", "test"))
    train[list(TRAIN_COLUMNS)].to_csv(folder / "train.csv", index=False)
    test[list(TEST_COLUMNS)].to_csv(folder / "test.csv", index=False)
    labels = test[["prediction_id", "cancer"]].drop_duplicates("prediction_id")
    labels.to_csv(folder / TRUTH_FOLDER / "test_labels.csv", index=False)
    labels.assign(cancer=SUBMISSION_CONSTANT).to_csv(folder / "sample_submission.csv", index=False)


def main() -> None:
    """Write a phantom competition from the command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.phantom", description=main.__doc__)
    parser.add_argument("folder")
    parser.add_argument("--train-patients", type=int, default=120)
    parser.add_argument("--test-patients", type=int, default=40)
    parser.add_argument("--height", type=int, default=512, help="nominal rows of an image in pixels")
    parser.add_argument("--positive-share", type=float, default=0.25, help="of patients with cancer in one breast")
    parser.add_argument("--contrast", type=float, default=1.0, help="of the lesions; 0 hides them")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make_competition(
        given.folder,
        n_train_patients=given.train_patients,
        n_test_patients=given.test_patients,
        height=given.height,
        positive_share=given.positive_share,
        contrast=given.contrast,
        seed=given.seed,
    )
