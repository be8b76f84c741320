"""The files that every path reads: phantom mammograms of RSNA's two main sizes, each in two codecs, as heavy as the real ones.

Decoding time follows the bits per pixel, so these were matched to nine of RSNA's original files (numbers only; the pictures are
drawn by `utils.phantom.pictures`):

- Air is one constant value. It covers 41 to 73 % of a real 2776 x 2082 picture (here 45 to 71 %) and 83 % of the one of
  5355 x 4915 (here 80 to 86 %). A box around the breast spans 83 to 100 % of the height and 46 to 77 % of the width (here 88 to
  96 and 42 to 68), or 75 % and 24 % (here 74 to 86 and 25 to 30).
- White detector noise lies over the breast, so strong that JPEG 2000 takes as many bits per pixel as in the real files: 2.3 to
  5.0, mean 3.5 (here 2.6 to 4.9, mean 3.5), or 1.2 (here 1.0 to 1.4, mean 1.2). The lower resolutions then have nearly their
  real shares of the bytes: 26, 7 and 2 % for half, quarter and eighth size (here 24, 6 and 1.6 %).
- The 12-bit files have one wide LINEAR window; the 16-bit ones use 1,600 of their values and show them through a SIGMOID.
"""

import csv
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from utils.phantom.dicom import Machine, write_dicom
from utils.phantom.pictures import NOISE, Breast, draw_image

CODECS = {"jpeg2000": JPEG2000Lossless, "jpeg-lossless": JPEGLosslessSV1}
COLUMNS = ("site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "implant", "machine_id")
SPLIT = "train"
SEED = 2776


@dataclass(frozen=True)
class Drawing:
    """One picture: its view, and the breast's density letter and size; lengths are shares of the picture's height."""

    view: str
    laterality: str
    density: str
    half_height: float
    depth: float
    center: float


@dataclass(frozen=True)
class Size:
    """The pictures of one size; ``air`` and the standard deviation of the ``noise`` are shares of the brightest tissue."""

    shape: tuple[int, int]
    machine: Machine
    air: float
    noise: float
    drawings: tuple[Drawing, ...]

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))


SIZES = (
    Size(
        (2776, 2082),
        Machine(49, 1, JPEG2000Lossless, "MONOCHROME2", 12, ((2048, 4096),), "LINEAR", boxed=True),
        0.0,
        0.0190,
        (
            Drawing("CC", "L", "B", 0.44, 0.31, 0.50),
            Drawing("CC", "R", "C", 0.46, 0.36, 0.50),
            Drawing("MLO", "L", "B", 0.38, 0.38, 0.47),
            Drawing("MLO", "R", "A", 0.42, 0.50, 0.48),
        ),
    ),
    Size(
        (5355, 4915),
        Machine(29, 2, JPEG2000Lossless, "MONOCHROME1", 16, ((1800, 1090), (2020, 1090)), "SIGMOID", boxed=True),
        0.01,
        0.0180,
        (
            Drawing("CC", "L", "B", 0.37, 0.22, 0.50),
            Drawing("CC", "R", "C", 0.40, 0.26, 0.50),
            Drawing("MLO", "L", "B", 0.27, 0.22, 0.50),
            Drawing("MLO", "R", "A", 0.30, 0.26, 0.50),
        ),
    ),
)
KINDS = tuple(f"{codec}-{size.name}" for size in SIZES for codec in CODECS)


def make_files(folder: str | Path, counts: dict[str, int]) -> None:
    """Write, or find already written, a small competition for every kind of file.

    Parameters
    ----------
    folder : path
        Gets a folder for each of `KINDS`, with train.csv and train_images.
    counts : dict
        Number of files of each kind, at least 4: the distinct pictures come in turn, as copies under names of their own.
    """
    for size in SIZES:
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
    size = next(size for size in SIZES if Path(kind).name.endswith(size.name))
    files = first_files(kind, len(size.drawings))
    return 8 * sum(path.stat().st_size for path in files) / (len(files) * size.shape[0] * size.shape[1])


def draw(size: Size) -> Iterator[np.ndarray]:
    """Draw the pictures of one size, float32, ``air`` outside the breast and about 1 for the brightest tissue."""
    for number, drawing in enumerate(size.drawings):
        rng = np.random.default_rng([SEED, size.shape[0], number])
        breast = Breast(drawing.density, drawing.half_height, drawing.depth, drawing.center, wobble=number / 4)
        picture, _, mask = draw_image(breast, drawing.view, drawing.laterality, size.shape, rng)
        missing = np.sqrt(max(size.noise**2 - NOISE**2, 0))  # the phantom has some noise already
        picture += np.float32(missing) * rng.standard_normal(size.shape, dtype=np.float32)
        yield np.where(mask, np.maximum(picture, size.air), np.float32(size.air))


def _write_originals(kinds: dict[Path, str], size: Size) -> None:
    rows = [_row(size, number) for number in range(len(size.drawings))]
    if all(_path(kind, row).exists() for kind in kinds for row in rows):
        return
    for row, picture in zip(rows, draw(size), strict=True):
        for kind, syntax in kinds.items():
            path = _path(kind, row)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_dicom(path, picture, replace(size.machine, transfer_syntax=syntax), row["patient_id"], row["image_id"])


def _write_copies(kind: Path, size: Size, count: int) -> None:
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


def _row(size: Size, number: int) -> dict:
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
