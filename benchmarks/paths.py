"""One way from DICOM files to small PNGs, in a process of its own: ``python -m benchmarks.paths NAME --files DIR --out DIR …``.

- ``usual`` is what public notebooks do: full decode with dicomsdl, min-max, inversion, contour crop, linear resize.
- ``pydicom`` follows the standard with pydicom's own functions, then does the same.
- ``kit`` is `utils.images.cache.build_cache`.

What a path alone needs is imported inside it, so that no path pays for another.
"""

import argparse
from pathlib import Path

import cv2
import joblib
import numpy as np

from benchmarks.files import SPLIT, first_files


def run_usual(folder: Path, out: Path, shape: tuple[int, int], workers: int, count: int) -> None:
    """Write one PNG a file as most public notebooks would."""
    pool = joblib.Parallel(n_jobs=workers)
    pool(joblib.delayed(_usual_one)(path, out, shape) for path in first_files(folder, count))


def run_pydicom(folder: Path, out: Path, shape: tuple[int, int], workers: int, count: int) -> None:
    """Write one PNG a file with pydicom's decoders and look-up tables."""
    pool = joblib.Parallel(n_jobs=workers)
    pool(joblib.delayed(_pydicom_one)(path, out, shape) for path in first_files(folder, count))


def run_kit(folder: Path, out: Path, shape: tuple[int, int], workers: int, count: int) -> None:
    """Let the kit make its cache."""
    from utils.images.cache import build_cache
    from utils.images.settings import CacheSettings
    from utils.tables.competition import read_images

    settings = CacheSettings(image_height=shape[0], image_width=shape[1])
    manifest = build_cache(read_images(folder, SPLIT).head(count), folder, SPLIT, out, settings, workers)
    failed = manifest[manifest.error != ""]
    if len(failed):
        raise SystemExit(f"{len(failed)} of {len(manifest)} images failed, first: {failed.error.iloc[0]}")


PATHS = {"kit": run_kit, "usual": run_usual, "pydicom": run_pydicom}


def _usual_one(path: Path, out: Path, shape: tuple[int, int]) -> None:
    import dicomsdl

    dataset = dicomsdl.open(str(path))
    image = _stretch(dataset.pixelData())
    if dataset.getPixelDataInfo()["PhotometricInterpretation"] == "MONOCHROME1":
        image = 1 - image
    _crop_and_write(image, out / f"{path.stem}.png", shape)


def _pydicom_one(path: Path, out: Path, shape: tuple[int, int]) -> None:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    dataset = pydicom.dcmread(path)
    image = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    image = _stretch(image)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        image = 1 - image
    _crop_and_write(image, out / f"{path.stem}.png", shape)


def _stretch(image: np.ndarray) -> np.ndarray:
    image = image - image.min()
    return image / image.max()


def _crop_and_write(image: np.ndarray, path: Path, shape: tuple[int, int]) -> None:
    """Crop to the largest contour's bounding box, resize and write; ``image`` is in [0, 1]."""
    image = (image * 255).astype(np.uint8)
    bright = cv2.threshold(image, 0.05 * 255, 255, cv2.THRESH_BINARY)[1]
    contours, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    left, top, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
    cropped = image[top : top + height, left : left + width]
    cv2.imwrite(str(path), cv2.resize(cropped, shape[::-1]))


def main() -> None:
    """Run one path."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=PATHS)
    parser.add_argument("--files", type=Path, required=True, help="one kind's folder, made by benchmarks.files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=8, help="number of files, the first ones of the folder")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    PATHS[given.name](given.files, given.out, (given.height, given.width), given.workers, given.count)


if __name__ == "__main__":
    main()
