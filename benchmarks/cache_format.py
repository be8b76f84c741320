"""Which format should the image cache have? ``python -m benchmarks.cache_format CACHE/train``.

Every picture of a cache is stored in each format; printed are the size of the competition's 54,706 images (Kaggle's working
folder holds 20 GB), the time to encode and to decode one on one core, and the images a second that a DataLoader of two workers
delivers in batches of 32, from the page cache.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.images.cache import PNG_OPTIONS

IMAGES = 54_706
ENOUGH = 600  # pictures through the loader


@dataclass(frozen=True)
class Format:
    """How one format turns a picture into bytes and back; ``decode`` gets the picture's shape too."""

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, tuple[int, int]], np.ndarray]


def _png(*options: int) -> Format:
    return Format(
        lambda picture: cv2.imencode(".png", picture, options)[1].tobytes(),
        lambda data, shape: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE),
    )


FORMATS = {
    "PNG, as the kit writes it": _png(*PNG_OPTIONS),
    "PNG, OpenCV's default": _png(),
    "PNG, level 1": _png(cv2.IMWRITE_PNG_COMPRESSION, 1),
    "zstd, level 3": Format(
        lambda picture: imagecodecs.zstd_encode(picture, level=3),
        lambda data, shape: np.frombuffer(imagecodecs.zstd_decode(data), np.uint8).reshape(shape),
    ),
    "JPEG-LS": Format(imagecodecs.jpegls_encode, lambda data, shape: imagecodecs.jpegls_decode(data)),
    "WebP, lossless": Format(
        lambda picture: imagecodecs.webp_encode(np.repeat(picture[..., None], 3, axis=2), lossless=True, level=0),
        lambda data, shape: np.ascontiguousarray(imagecodecs.webp_decode(data)[..., 0]),
    ),
    "raw (memory map)": Format(
        lambda picture: picture.tobytes(), lambda data, shape: np.frombuffer(data, np.uint8).reshape(shape)
    ),
}


class Stored(Dataset):
    """Pictures in one file after the other, as a cache in this format would give them to the loader."""

    def __init__(self, paths: list[Path], form: str, shape: tuple[int, int]):
        self.paths, self.form, self.shape = paths, form, shape

    def __len__(self) -> int:
        return ENOUGH

    def __getitem__(self, index: int) -> torch.Tensor:
        path = self.paths[index % len(self.paths)]
        if self.form.startswith("raw"):
            return torch.from_numpy(np.array(np.memmap(path, np.uint8, mode="r", shape=self.shape)))
        return torch.from_numpy(np.array(FORMATS[self.form].decode(path.read_bytes(), self.shape)))


def measure(form: str, pictures: list[np.ndarray], folder: Path) -> dict:
    """Time and size of one format."""
    start = time.perf_counter()
    encoded = [FORMATS[form].encode(picture) for picture in pictures]
    encoding = (time.perf_counter() - start) / len(pictures)
    start = time.perf_counter()
    decoded = [FORMATS[form].decode(data, pictures[0].shape) for data in encoded]
    decoding = (time.perf_counter() - start) / len(pictures)
    assert all(np.array_equal(one, other) for one, other in zip(pictures, decoded, strict=True))
    paths = [folder / f"{number}.bin" for number in range(len(encoded))]
    for path, data in zip(paths, encoded, strict=True):
        path.write_bytes(data)
    gigabytes = sum(map(len, encoded)) / len(encoded) * IMAGES / 1e9
    return {
        "GB": gigabytes,
        "encode ms": encoding * 1e3,
        "decode ms": decoding * 1e3,
        "loader": loader_rate(form, paths, pictures[0].shape),
    }


def loader_rate(form: str, paths: list[Path], shape: tuple[int, int]) -> float:
    """Images a second, without the start of the workers."""
    start = count = 0
    for batch in DataLoader(Stored(paths, form, shape), batch_size=32, num_workers=2):
        if not start:
            start = time.perf_counter()
        else:
            count += len(batch)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a cache's pictures, such as outputs/cache/NAME/train")
    cv2.setNumThreads(1)
    paths = sorted(parser.parse_args().folder.glob("*.png"))[:200]
    pictures = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    print(f"{len(pictures)} pictures of {pictures[0].shape}\n")
    print(f"| format | {IMAGES:,} images, GB | encode, ms | decode, ms | loader, images/s |\n|---|---|---|---|---|")
    for form in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(form, pictures, Path(folder))
        print(f"| {form} | {row['GB']:.1f} | {row['encode ms']:.1f} | {row['decode ms']:.2f} | {row['loader']:,.0f} |")


if __name__ == "__main__":
    main()
