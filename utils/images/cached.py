"""Reading a cache folder: ``{split}/{image_id}.png`` and ``{split}_manifest.csv``; `utils.images.cache` fills it."""

import contextlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from utils.images.manifest import read_rows
from utils.images.settings import CacheError, CacheSettings


def manifest_path(cache_dir: str | Path, split: str) -> Path:
    """Return the path of a split's manifest."""
    return Path(cache_dir) / f"{split}_manifest.csv"


def read_manifest(cache_dir: str | Path, split: str, settings: CacheSettings) -> pd.DataFrame:
    """Read a split's manifest: one row per image that was tried, none if there is no manifest yet."""
    return read_rows(manifest_path(cache_dir, split), settings.hash)


def picture_path(cache_dir: str | Path, split: str, image_id: str) -> Path:
    """Return the path of a cached image."""
    return Path(cache_dir) / split / f"{image_id}.png"


def load_picture(cache_dir: str | Path, split: str, image_id: str) -> np.ndarray:
    """Load a cached image.

    Returns
    -------
    ndarray of shape (image_height, image_width), uint8

    Raises
    ------
    CacheError
        If the file is missing or broken.
    """
    path = picture_path(cache_dir, split, image_id)
    picture = read_picture(path, cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise CacheError(f"{path} is missing or broken; delete it and run preprocess.ipynb again with the same cache_dir.")
    return picture


def read_picture(path: str | Path, flags: int) -> np.ndarray | None:
    """Decode an image file like ``cv2.imread``; return None if it is unreadable.

    On Windows, imread fails on paths that are not ASCII; on paths that are not Unicode it crashes.
    """
    with contextlib.suppress(OSError, cv2.error):
        return cv2.imdecode(np.fromfile(path, dtype=np.uint8), flags)
    return None
