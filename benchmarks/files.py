"""The files that every path reads: phantom mammograms of RSNA's two main sizes, each in two codecs, as heavy as the real ones.

`utils.phantom.full_size` says how they were matched to RSNA's original files.
"""

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from utils.phantom.dicom import write_dicom
from utils.phantom.full_size import FULL_SIZES, FullSize
from utils.phantom.pictures import NOISE, draw_image

CODECS = {"jpeg2000": JPEG2000Lossless, "jpeg-lossless": JPEGLosslessSV1}
COLUMNS = ("site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "implant", "machine_id")
SPLIT = "train"
SEED = 2776
KINDS = tuple(f"{codec}-{size.name}" for size in FULL_SIZES for codec in CODECS)


def make_files(folder: str | Path, counts: dict[str, int]) -> None:
    """Write, or find already written, a small competition for every kind of file.

    Parameters
    ----------
    folder : path
        Gets a folder for each of `KINDS`, with train.csv and train_images.
    counts : dict
        Number of files of each kind, at least 4: the distinct pictures come in turn, as copies under names of their own.
    """
    for size in FULL_SIZES:
        kinds = {Path(folder) / f"{codec}-{size.name}": syntax for codec, syntax in CODECS.items()}
        if any(len(_rows(kind)) < counts[kind.name] for kind in kinds):
            _write_originals(kinds, size)
        for kind in kinds:
            _write_copies(kind, size, max(counts[kind.name], len(_rows(kind))))


def first_files(kind: str | Path, count: int) -> list[Path]:
    """Paths of the first ``count`` files of a kind, in the order of its table."""
    return [_path(Path(kind), row) for row in _rows(Path(kind))[:count]]


def bits_per_pixel(kind: str | Path) -> float:
    """Mean over the distinct pictures of a kind."""
    size = next(size for size in FULL_SIZES if Path(kind).name.endswith(size.name))
    files = first_files(kind, len(size.drawings))
    return 8 * sum(path.stat().st_size for path in files) / (len(files) * size.shape[0] * size.shape[1])


def draw(size: FullSize) -> Iterator[np.ndarray]:
    """Draw the pictures of one size, float32, ``air`` outside the breast and about 1 for the brightest tissue."""
    for number, drawing in enumerate(size.drawings):
        rng = np.random.default_rng([SEED, size.shape[0], number])
        picture, _, mask = draw_image(drawing, size.shape, rng)
        missing = np.sqrt(max(size.noise**2 - NOISE**2, 0))  # the phantom has some noise already
        picture += np.float32(missing) * rng.standard_normal(size.shape, dtype=np.float32)
        yield np.where(mask, np.maximum(picture, size.air), np.float32(size.air))


def _write_originals(kinds: dict[Path, str], size: FullSize) -> None:
    rows = [_row(size, number) for number in range(len(size.drawings))]
    if all(_path(kind, row).exists() for kind in kinds for row in rows):
        return
    for row, picture in zip(rows, draw(size), strict=True):
        for kind, syntax in kinds.items():
            path = _path(kind, row)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_dicom(path, picture, replace(size.machine, transfer_syntax=syntax), row["patient_id"], row["image_id"])


def _write_copies(kind: Path, size: FullSize, count: int) -> None:
    rows = [_row(size, number) for number in range(count)]
    for number, row in enumerate(rows):
        path = _path(kind, row)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            shutil.copyfile(_path(kind, rows[number % len(size.drawings)]), path)
    with open(kind / f"{SPLIT}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _row(size: FullSize, number: int) -> dict:
    drawing = size.drawings[number % len(size.drawings)]
    return {
        "site_id": size.machine.site_id,
        "patient_id": str(10_000 + number // len(size.drawings)),
        "image_id": str(1_000_000 + number),
        "laterality": drawing.laterality,
        "view": drawing.view,
        "age": 60,
        "cancer": 0,
        "implant": 0,
        "machine_id": size.machine.machine_id,
    }


def _rows(kind: Path) -> list[dict]:
    table = kind / f"{SPLIT}.csv"
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines())) if table.exists() else []


def _path(kind: Path, row: dict) -> Path:
    return kind / f"{SPLIT}_images" / row["patient_id"] / f"{row['image_id']}.dcm"
