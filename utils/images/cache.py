"""The image cache: preprocess every DICOM once, keep a small 8-bit PNG, and record it in a manifest.

A cache folder contains ``settings.json``, and for each split ``{split}/{image_id}.png`` and ``{split}_manifest.csv``.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from utils.core.files import read_json, remove_leftovers, write_atomic, write_csv, write_json
from utils.core.folders import KAGGLE_INPUT, working_dir
from utils.core.parallel import Outcome, StopRunError, map_items
from utils.images.cached import manifest_path, picture_path, read_manifest
from utils.images.manifest import append_rows, on_one_line, without_picture
from utils.images.preprocessing import preprocess
from utils.images.settings import CacheError, CacheSettings
from utils.tables.competition import image_paths, name_files, read_images

# Loads in two thirds of the default filter's time and is no larger (benchmarks.cache_format); OpenCV before 4.11 lacks it.
PNG_OPTIONS = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []
SHOWN_ERRORS = 5
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
READ_AHEAD = 2**19  # bytes: enough for most images at 512 x 512


def default_cache_dir(competition_dir: str | Path, settings: CacheSettings) -> Path:
    """Return the cache folder of notebooks without a ``cache_dir``: one per data folder and settings."""
    folder = Path(competition_dir).resolve()
    place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:4]
    size = f"{settings.image_height}x{settings.image_width}"
    return working_dir() / "cache" / f"{folder.name}-{place}-{size}-{settings.hash[:6]}"


def attached_cache_dir(competition_dir: str | Path, settings: CacheSettings) -> Path | None:
    """Return this cache among Kaggle's inputs if another notebook filled it with the training set, else None."""
    name = default_cache_dir(competition_dir, settings).name
    for folder in [*KAGGLE_INPUT.glob(f"*/cache/{name}"), *KAGGLE_INPUT.glob(f"notebooks/*/*/cache/{name}")]:
        manifest = read_manifest(folder, "train", settings)
        all_tried = set(manifest.image_id) >= set(read_images(competition_dir, "train").image_id)
        if all_tried and not without_picture(manifest, folder / "train"):
            return folder
    return None


def build_cache(
    images: pd.DataFrame,
    competition_dir: str | Path,
    split: str,
    cache_dir: str | Path,
    settings: CacheSettings,
    num_workers: int = 0,
    cluster: str = "",
    quiet: bool = False,
) -> pd.DataFrame:
    """Preprocess the images that the cache lacks, and return the manifest rows of all ``images``.

    A killed run resumes where it stopped. Images that failed before, and those whose file is missing or truncated, are tried
    again. A second run on the same cache waits for the first. A read-only cache is only read: an image that it lacks gets an
    error in its row.

    Parameters
    ----------
    images : DataFrame
        From `utils.tables.read_images`.
    split : {"train", "test"}
    cache_dir : path
        Created if missing.
    num_workers : int
        Processes to use. 0 works in this process, which dies if a file crashes its decoder.
    cluster : str
        Address of a Dask scheduler whose workers see the same folders; empty works on this machine.
    quiet : bool
        Hide the progress bar.

    Returns
    -------
    DataFrame
        `utils.images.manifest.MANIFEST_COLUMNS`, one row per image in the order of ``images``. ``error`` is empty if the image
        is in the cache, else the reason, which may be ids that can't name a file (`utils.tables.competition.name_files`).

    Raises
    ------
    CacheError
        If the folder is a cache with other settings, is unusable, or is read-only and lacks images that its manifest names.
    StopRunError
        If the disk is full.
    """
    cache = Cache(Path(cache_dir), split, settings)
    named = name_files(images).to_numpy()
    sources = dict(zip(images.image_id[named], image_paths(images[named], competition_dir, split), strict=True))
    cache.fill(sources, num_workers, cluster, quiet)
    manifest = cache.manifest().set_index("image_id").reindex(images.image_id.where(named))
    manifest = manifest.reset_index().assign(image_id=images.image_id.to_numpy())
    if not cache.is_writable:
        cache.check(manifest)
    error = manifest.error.fillna(f"{cache_dir} lacks it, and is read-only")
    return manifest.fillna("").assign(error=error.where(named, "its patient_id or image_id can't name a file"))


@dataclass(frozen=True)
class Cache:
    """The images of one split in a cache folder, all preprocessed with the same settings."""

    folder: Path
    split: str
    settings: CacheSettings

    @property
    def pictures(self) -> Path:
        """Return the folder of the split's images."""
        return self.folder / self.split

    @property
    def is_writable(self) -> bool:
        """True if images can be added."""
        return os.access(self.folder, os.W_OK)

    def manifest(self) -> pd.DataFrame:
        """Read the rows of the images that were tried."""
        return read_manifest(self.folder, self.split, self.settings)

    def missing(self, sources: dict[str, Path]) -> list[tuple[str, Path]]:
        """Return the id and the file of each image that is not yet in the cache."""
        manifest = self.manifest()
        done = set(manifest.image_id[manifest.error == ""]) - set(without_picture(manifest, self.pictures))
        return [job for job in sources.items() if job[0] not in done]

    def check(self, manifest: pd.DataFrame) -> None:
        """Raise CacheError if images are missing that these rows of the manifest name."""
        lost = without_picture(manifest, self.pictures)
        if lost:
            raise CacheError(
                f"{self.folder} is read-only, and {len(lost)} of {(manifest.error == '').sum()} images that its"
                f" {self.split}_manifest.csv names are missing or truncated, first {lost[0]}.png. Copy it again from where it"
                " was made, or choose another cache_dir."
            )

    def fill(self, sources: dict[str, Path], num_workers: int = 0, cluster: str = "", quiet: bool = False) -> None:
        """Preprocess the images that are missing, and record each in the manifest, unless the folder is read-only."""
        with _usable(self.folder), _full_disk_stops_the_run(self.folder):
            self._claim()
            if not (self.is_writable and self.missing(sources)):
                return
            with self._alone():
                remove_leftovers(self.pictures)
                missing = self.missing(sources)  # again: another run may have finished just now
                title = "" if quiet else f"Preprocessing {self.split}"
                ahead = None if cluster else _read_ahead
                outcomes = map_items(self.make, missing, num_workers, title, "images", cluster, ahead)
                path = manifest_path(self.folder, self.split)
                write_csv(path, self.manifest())  # drops the row that a kill left half written
                append_rows(path, (self._row(outcome) for outcome in outcomes))
                write_csv(path, self.manifest())

    def make(self, job: tuple[str, Path]) -> dict:
        """Preprocess one image into the cache, and return its manifest columns; ``job`` is its id and file."""
        image_id, source = job
        picture, row = preprocess(source, *self.settings.arguments)
        return row | {"picture_bytes": _write_picture(picture_path(self.folder, self.split, image_id), picture)}

    def _row(self, outcome: Outcome) -> dict:
        image_id, source = outcome.item
        row = {"image_id": image_id, "source": str(Path(*source.parts[-3:])), "error": on_one_line(outcome.error)}
        return row | (outcome.value or {}) | {"settings_hash": self.settings.hash}

    def _claim(self) -> None:
        """Write the settings of a new cache, or raise CacheError if an existing one has others."""
        path = self.folder / "settings.json"
        wanted = asdict(self.settings) | {"hash": self.settings.hash}
        try:
            if not path.exists():
                write_json(path, wanted)
            found = dict(read_json(path))
        except (ValueError, TypeError, RecursionError) as error:
            raise CacheError(f"{path} is not valid JSON ({error}): delete it if the cache has this run's settings.") from error
        other = [f"{key} is {found.get(key)} there, {value} here" for key, value in wanted.items() if found.get(key) != value]
        if other:
            raise CacheError(f"{self.folder} is a cache with other settings ({'; '.join(other)}): choose another cache_dir.")

    def _alone(self) -> contextlib.AbstractContextManager:
        """Wait until no other run fills the split, and keep others out; the lock ends with the process, even if killed."""
        lock = FileLock(self.folder / f".{self.split}.lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            print(f"Another run is filling {self.folder}: waiting for it.")
            return lock.acquire()


def summarise(manifest: pd.DataFrame) -> str:
    """Return a text of a few lines: how many images are cached, how they were decoded, flags, and why others failed."""
    good, failed = manifest[manifest.error == ""], manifest[manifest.error != ""]
    lines = [f"{len(good)} of {len(manifest)} images in the cache, {len(failed)} failed."]
    for (codec, decoded), group in good.groupby(["codec", "decoded"]):
        read = group.bytes_read.astype(int).sum() / group.file_bytes.astype(int).sum()
        lines.append(f"  decoded {codec} at {decoded} size: {len(group)}, reading {read:.0%} of the files")
    flags = good["flags"][good["flags"] != ""].str.split().explode().value_counts()
    lines += [f"  flagged {flag}: {count}" for flag, count in flags.items()]
    lines += [f"  failed {row.image_id}: {row.error}" for row in failed.head(SHOWN_ERRORS).itertuples()]
    if len(failed) > SHOWN_ERRORS:
        lines.append(f"  ... and {len(failed) - SHOWN_ERRORS} more: see the manifest's column 'error'.")
    return "\n".join(lines)


def _read_ahead(job: tuple[str, Path]) -> None:
    """Ask the system to prefetch the beginning of a file while others are decoded; ignore failures."""
    with contextlib.suppress(OSError, AttributeError):  # Windows and macOS lack posix_fadvise
        file = os.open(job[1], os.O_RDONLY | os.O_NONBLOCK)  # opening a named pipe would wait for its writer
        try:
            os.posix_fadvise(file, 0, READ_AHEAD, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


def _write_picture(path: Path, picture: np.ndarray) -> int:
    """Write a cached image; return its size in bytes, which reveals files that a power cut truncated."""
    encoded = cv2.imencode(".png", picture, PNG_OPTIONS)[1]
    with _full_disk_stops_the_run(path.parent), write_atomic(path, sync=False) as temporary:
        return temporary.write_bytes(encoded)


@contextlib.contextmanager
def _usable(cache_dir: Path) -> Iterator[None]:
    """Turn OSErrors into a CacheError with a remedy, such as a link in place of a file, or a disk without locks."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # older filelocks raise the latter if the disk has no locks
        raise CacheError(
            f"{cache_dir} can't be used as a cache ({error}). Delete what is in the way, or choose another cache_dir."
        ) from error


@contextlib.contextmanager
def _full_disk_stops_the_run(folder: Path) -> Iterator[None]:
    """Turn the OSError of a full disk into StopRunError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            message = f"The disk of {folder} is full: free some space and run again; what is cached stays."
            raise StopRunError(message) from error
        raise
