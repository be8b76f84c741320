"""Decode test images into the cache of each image size, and delete them again if they are not kept."""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.core.folders import on_kaggle
from utils.images.cache import build_cache, default_cache_dir, summarise
from utils.images.cached import picture_path
from utils.images.settings import CacheSettings
from utils.submission.deadline import Plan
from utils.tables.competition import name_files

SPARE_DISK = 2**30  # bytes of disk space that the cache leaves free


@dataclass(frozen=True)
class Source:
    """Test images and where they are decoded to.

    Parameters
    ----------
    images : DataFrame
        From `utils.tables.read_images`.
    competition_dir : Path
    cache_dir : Path, optional
        None for each preprocessing's default; if there are several, each gets a subfolder.
    num_workers : int
        Number of decoding processes; 0 decodes in this process.
    """

    images: pd.DataFrame
    competition_dir: Path
    cache_dir: Path | None = None
    num_workers: int = 0


@dataclass(frozen=True)
class Chunk:
    """Test images of some patients, in the caches.

    Parameters
    ----------
    manifests, seconds : list
        Manifest and decoding time for each image size.
    written : list of Path
        Cached images that did not exist before.
    """

    images: pd.DataFrame
    plan: Plan
    manifests: list[pd.DataFrame]
    seconds: list[float]
    written: list[Path]

    def by_patient(self) -> Iterator["Chunk"]:
        """Yield a chunk for each patient."""
        for rows in self.images.groupby("patient_id", sort=False).indices.values():
            share = len(rows) / len(self.images)
            manifests = [manifest.iloc[rows] for manifest in self.manifests]
            yield Chunk(self.images.iloc[rows], self.plan, manifests, [seconds * share for seconds in self.seconds], [])


class Decoder:
    """Decodes images for several preprocessings, each with a cache of its own."""

    def __init__(self, source: Source, settings: Sequence[CacheSettings]):
        self.source, self.settings = source, settings
        self.cache_dirs = [default_cache_dir(source.competition_dir, each) for each in settings]
        if source.cache_dir and len(settings) == 1:
            self.cache_dirs = [source.cache_dir]
        elif source.cache_dir:
            self.cache_dirs = [source.cache_dir / default.name for default in self.cache_dirs]
        self._keeps_images = source.cache_dir is not None or not on_kaggle()  # on Kaggle, files become the notebook's output
        self._deletable: list[Path] = []
        self._manifests: list[list[pd.DataFrame]] = [[] for _ in settings]

    def decode(self, images: pd.DataFrame, plan: Plan) -> Chunk:
        """Decode images into the cache of each size in the plan."""
        folder, num_workers = self.source.competition_dir, self.source.num_workers
        manifests, seconds = [], []
        absent = []  # from the cache, until now
        sizes = zip(self.settings[: plan.variants], self.cache_dirs, self._manifests, strict=False)
        for settings, cache_dir, seen in sizes:
            start = time.perf_counter()
            paths = [picture_path(cache_dir, "test", name) for name in images.image_id[name_files(images)]]
            absent += [path for path in paths if not path.is_file()]
            manifests.append(build_cache(images, folder, "test", cache_dir, settings, num_workers=num_workers, quiet=True))
            seen.append(manifests[-1])
            seconds.append(time.perf_counter() - start)
        return Chunk(images, plan, manifests, seconds, [path for path in absent if path.is_file()])

    def free_disk(self, chunk: Chunk, images_left: int) -> None:
        """Delete predicted images from the cache if they are not kept, or if the disk has no space for the rest."""
        self._deletable += chunk.written
        needed = sum(path.stat().st_size for path in chunk.written) / len(chunk.images) * images_left
        if not self._keeps_images or shutil.disk_usage(self.cache_dirs[0]).free < needed + SPARE_DISK:
            for path in self._deletable:
                path.unlink(missing_ok=True)
            self._deletable = []

    def summarise(self) -> None:
        """Print how each image size was decoded."""
        for settings, manifests in zip(self.settings, self._manifests, strict=True):
            if manifests:
                print(f"Images of {settings.image_height} x {settings.image_width} px: {summarise(pd.concat(manifests))}")
