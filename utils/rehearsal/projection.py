"""From a few images to the hidden test: how long it would take, stage by stage."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from utils.core.environment import cpu_count
from utils.images.cache import build_cache, picture_path
from utils.images.settings import CacheSettings
from utils.phantom.dicom import Machine, write_dicom
from utils.phantom.pictures import Breast, draw_image
from utils.tables.competition import image_paths

HIDDEN_PATIENTS, HIDDEN_IMAGES = 8_000, 37_000  # of the competition's data page and forum: about so many
LIMIT_HOURS = 9.0
STAGES = ("decode", "predict")  # whose time grows with the images; all else is counted once
# Sizes of RSNA's original files and how they are stored, with a breast that fills them as theirs do; with this noise, a share
# of the brightest tissue, JPEG 2000 takes about as many bits per pixel as in the real ones (see benchmarks/files.py).
FULL_SIZED = {
    (2776, 2082): Machine(49, 1, JPEG2000Lossless, "MONOCHROME2", 12, ((2048, 4096),), "LINEAR", boxed=True),
    (5355, 4915): Machine(29, 2, JPEG2000Lossless, "MONOCHROME1", 16, ((1800, 1090), (2020, 1090)), "SIGMOID", boxed=True),
}
BREASTS = {49: Breast("B", 0.44, 0.31, 0.5, wobble=0.5), 29: Breast("B", 0.37, 0.22, 0.5, wobble=0.5)}
NOISE = 0.019
DRAWN_ROWS = 694  # of the picture that is then enlarged
COPIES = 8  # of each full-sized file
UNSTEADY = 6  # pictures that are written before the rate is taken
CORES = 2  # of the processes that measure preprocessing alone
REAL_SETTINGS = CacheSettings(image_height=1024, image_width=512)


@dataclass(frozen=True)
class Projection:
    """Seconds that a hidden test of ``images`` would take.

    Parameters
    ----------
    images : int
    once : float
        What does not grow with the images.
    by_stage : dict of str to float
        Seconds of each stage for all images.
    overlaps : bool
        Whether the stages run side by side, the one on the CPU and the other on a GPU.
    """

    images: int
    once: float
    by_stage: dict[str, float]
    overlaps: bool

    @property
    def total(self) -> float:
        growing = self.by_stage.values()
        return self.once + (max(growing) if self.overlaps else sum(growing))


def project(stages: Mapping, measured: int, overlaps: bool, images: int = HIDDEN_IMAGES) -> Projection:
    """Project what was measured on a few images to many.

    Starting processes and the first batch count as if they came again with every ``measured`` images, so few of them give
    too long a time, never too short a one.

    Parameters
    ----------
    stages : mapping
        As in a submission's provenance: ``seconds`` of start, decode, predict and total. Where decode and predict are both
        absent, the total is taken to grow with the images.
    measured : int
        Images of the test that the stages worked through, in whatever many sizes.
    overlaps : bool
        Whether decode and predict run side by side.
    images : int
        Of the hidden test.

    Returns
    -------
    Projection
    """
    seconds = {name: stage["seconds"] for name, stage in stages.items()}
    growing = {name: seconds[name] for name in STAGES if name in seconds}
    if not growing:
        return Projection(images, 0.0, {"total": seconds["total"] / measured * images}, overlaps)
    start = seconds.get("start", 0.0)
    rest = max(0.0, seconds.get("total", 0.0) - start - sum(growing.values()))  # below 0 where stages overlapped
    return Projection(images, start + rest, {name: spent / measured * images for name, spent in growing.items()}, overlaps)


def decode_seconds(seconds: float, sizes: int, cores: int) -> float:
    """Scale what `project_preprocessing` measured to this machine's cores, and to runs whose pictures have several sizes."""
    return seconds * sizes * min(CORES, cores) / cores


def with_decode(projection: Projection, seconds: float) -> Projection:
    """Let decoding take ``seconds``, if that is longer than what was projected; where it was not measured apart, all stays."""
    stages = projection.by_stage
    longer = {"decode": max(stages["decode"], seconds)} if "decode" in stages else {}
    return replace(projection, by_stage=stages | longer)


def project_preprocessing(folder: Path, images: int = HIDDEN_IMAGES) -> float:
    """Preprocess files of the real sizes to 1024 x 512 in two processes, and project the time to the hidden test.

    The files are drawn: two sizes and two codecs, as many of each. They lie in the page cache, as Kaggle's do not.

    Parameters
    ----------
    folder : Path
        Gets the files and their pictures; absent or empty.
    images : int
        Of the hidden test.

    Returns
    -------
    float
        Seconds.
    """
    table = write_full_sized(folder)
    manifest = build_cache(table, folder, "test", folder / "cache", REAL_SETTINGS, CORES, quiet=True)
    written = [picture_path(folder / "cache", "test", name).stat().st_mtime for name in manifest.image_id]
    steady = sorted(written)[UNSTEADY:]  # by then both processes have started
    return (steady[-1] - steady[0]) / (len(steady) - 1) * images


def write_full_sized(folder: Path) -> pd.DataFrame:
    """Write test images of the real files' sizes and codecs, and return their rows, the kinds in turn."""
    kinds = [(shape, codec) for shape in FULL_SIZED for codec in (JPEG2000Lossless, JPEGLosslessSV1)]
    rows = pd.DataFrame([{"patient_id": str(copy), "image_id": f"{copy}{kind}"} for copy in range(COPIES) for kind in range(4)])
    paths = image_paths(rows, folder, "test")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(_write_full_sized, kinds, paths))
    for place, path in enumerate(paths[len(kinds) :]):
        path.hardlink_to(paths[place % len(kinds)])
    return rows


def _write_full_sized(kind: tuple[tuple[int, int], str], path: Path) -> None:
    """Draw a small picture, enlarge it, and add noise, which decides how long it takes to decode."""
    (height, width), codec = kind
    machine = replace(FULL_SIZED[height, width], transfer_syntax=codec)
    rng = np.random.default_rng(height)
    drawn = DRAWN_ROWS, round(DRAWN_ROWS * width / height)
    small, _, mask = draw_image(BREASTS[machine.machine_id], "CC", "L", drawn, rng)
    picture = cv2.resize(np.where(mask, small, 0), (width, height), interpolation=cv2.INTER_LINEAR)
    noise = np.float32(NOISE) * rng.standard_normal(picture.shape, dtype=np.float32)
    write_dicom(path, np.where(picture > 0, np.maximum(picture + noise, 0), np.float32(0)), machine, "1", path.stem)


def describe_hardware() -> dict[str, str | int]:
    """Say what a measurement was made on: cores that may be used, their load by all programs, the processor, and the GPUs."""
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    load = f"{os.getloadavg()[0]:.1f}"
    return {"cores": cpu_count(), "load": load, "cpu": _cpu_name(), "gpus": ", ".join(names) or "none"}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
    return platform.processor() or platform.machine()
