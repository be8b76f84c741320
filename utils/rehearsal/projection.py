"""Project the time of the hidden test, stage by stage, from a few images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from utils.core.devices import cpu_count
from utils.images.cache import build_cache
from utils.images.cached import picture_path
from utils.images.settings import CacheSettings
from utils.kaggle.machine import cpu_name
from utils.phantom.dicom import write_dicom
from utils.phantom.full_size import FULL_SIZES, FullSize
from utils.phantom.pictures import draw_image
from utils.tables.competition import image_paths

HIDDEN_PATIENTS, HIDDEN_IMAGES = 8_000, 37_000  # approximate, from the competition's data page and forum
LIMIT_HOURS = 9.0
STAGES = ("decode", "predict")  # their time grows with the images; all else counts once
DRAWN_ROWS = 694  # rows of the drawing that is then enlarged
COPIES = 8  # number of each full-sized file
UNSTEADY = 6  # cached images before the rate is measured
CORES = 2  # processes that measure preprocessing alone
REAL_SETTINGS = CacheSettings(image_height=1024, image_width=512)


@dataclass(frozen=True)
class Projection:
    """The projected seconds of a hidden test."""

    images: int
    once: float  # seconds that do not grow with the images
    by_stage: dict[str, float]  # seconds of each stage for all images
    overlaps: bool  # the stages run in parallel, one on the CPU and the other on a GPU

    @property
    def total(self) -> float:
        growing = self.by_stage.values()
        return self.once + (max(growing) if self.overlaps else sum(growing))


def project(stages: Mapping, measured: int, overlaps: bool, images: int = HIDDEN_IMAGES) -> Projection:
    """Project the seconds measured on ``measured`` images to the hidden test's ``images``.

    ``stages`` is from a submission's provenance: ``seconds`` of start, decode, predict and total. Without decode and
    predict, scale the total. Few images overestimate the time: process start-up and the first batch are scaled too.
    """
    seconds = {name: stage["seconds"] for name, stage in stages.items()}
    growing = {name: seconds[name] for name in STAGES if name in seconds}
    if not growing:
        return Projection(images, 0.0, {"total": seconds["total"] / measured * images}, overlaps)
    start = seconds.get("start", 0.0)
    rest = max(0.0, seconds.get("total", 0.0) - start - sum(growing.values()))  # below 0 if stages overlapped
    return Projection(images, start + rest, {name: spent / measured * images for name, spent in growing.items()}, overlaps)


def decode_seconds(seconds: float, sizes: int, cores: int) -> float:
    """Scale `project_preprocessing`'s seconds to this machine's cores and to the runs' number of image sizes."""
    return seconds * sizes * min(CORES, cores) / cores


def with_decode(projection: Projection, seconds: float) -> Projection:
    """Raise the projected decoding to at least ``seconds``; change nothing if decoding was not measured."""
    stages = projection.by_stage
    longer = {"decode": max(stages["decode"], seconds)} if "decode" in stages else {}
    return replace(projection, by_stage=stages | longer)


def project_preprocessing(folder: Path, images: int = HIDDEN_IMAGES) -> float:
    """Preprocess files of the real sizes to 1024 x 512 in two processes, and return the seconds for the hidden test.

    The files are drawn into ``folder`` (absent or empty), equally many of two sizes and two codecs. Unlike
    Kaggle's, they are in the page cache.
    """
    table = write_full_sized(folder)
    manifest = build_cache(table, folder, "test", folder / "cache", REAL_SETTINGS, CORES, quiet=True)
    written = [picture_path(folder / "cache", "test", name).stat().st_mtime for name in manifest.image_id]
    steady = sorted(written)[UNSTEADY:]  # by then both processes have started
    return (steady[-1] - steady[0]) / (len(steady) - 1) * images


def write_full_sized(folder: Path) -> pd.DataFrame:
    """Write test images with the real files' sizes and codecs in turn, and return their table."""
    kinds = [(size, codec) for size in FULL_SIZES for codec in (JPEG2000Lossless, JPEGLosslessSV1)]
    numbers = range(len(kinds))
    rows = pd.DataFrame([{"patient_id": str(copy), "image_id": f"{copy}{kind}"} for copy in range(COPIES) for kind in numbers])
    paths = image_paths(rows, folder, "test")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(_write_full_sized, paths, kinds))
    for place, path in enumerate(paths[len(kinds) :]):
        path.hardlink_to(paths[place % len(kinds)])
    return rows


def _write_full_sized(path: Path, kind: tuple[FullSize, str]) -> None:
    """Draw a small image, enlarge it, and add noise, which determines the decoding time."""
    size, codec = kind
    height, width = size.shape
    rng = np.random.default_rng(height)
    drawn = (DRAWN_ROWS, round(DRAWN_ROWS * width / height))
    small, _, mask = draw_image(size.drawings[0], drawn, rng)
    picture = cv2.resize(np.where(mask, small, 0), (width, height), interpolation=cv2.INTER_LINEAR)
    noise = np.float32(size.noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    picture = np.where(picture > 0, np.maximum(picture + noise, 0), np.float32(0))
    write_dicom(path, picture, replace(size.machine, transfer_syntax=codec), "1", path.stem)


@dataclass(frozen=True)
class Hardware:
    """The usable cores, the load of all programs, the processor and the GPUs, to report with a measurement."""

    cores: int
    load: str
    cpu: str
    gpus: str


def describe_hardware() -> Hardware:
    """Return this machine's hardware."""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Hardware(cpu_count(), f"{os.getloadavg()[0]:.1f}", cpu_name(), ", ".join(names) or "none")
