"""The image cache: preprocess every DICOM once, keep a small 8-bit PNG, and record it in a manifest.

A cache folder contains ``settings.json``, and for each split ``{split}/{image_id}.png`` and ``{split}_manifest.csv``.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from utils.core.environment import (
    KAGGLE_INPUT,
    read_json,
    read_picture,
    remove_leftovers,
    working_dir,
    write_atomic,
    write_csv,
    write_json,
)
from utils.core.parallel import Outcome, StopRunError, map_items
from utils.images.manifest import appending, on_one_line, read_rows, without_picture
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
    folders = [folder for depth in ("*", "notebooks/*/*") for folder in KAGGLE_INPUT.glob(f"{depth}/cache/{name}")]
    return next((folder for folder in folders if _holds_training_set(folder, competition_dir, settings)), None)


def _holds_training_set(folder: Path, competition_dir: str | Path, settings: CacheSettings) -> bool:
    """True if every training image was tried and no image is missing from those that succeeded."""
    manifest = read_manifest(folder, "train", settings)
    tried = set(manifest.image_id) >= set(read_images(competition_dir, "train").image_id)
    return tried and not without_picture(manifest, folder / "train")


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
    cache_dir = Path(cache_dir)
    named = name_files(images).to_numpy()
    sources = dict(zip(images.image_id[named], image_paths(images[named], competition_dir, split), strict=True))
    missing = partial(_missing, sources, cache_dir, split, settings)
    with _usable(cache_dir), _full_disk_stops_the_run(cache_dir):
        _claim(cache_dir, settings)
        is_writable = os.access(cache_dir, os.W_OK)
        if missing() and is_writable:
            record = partial(_record, path=manifest_path(cache_dir, split), competition_dir=competition_dir, settings=settings)
            cache_one = partial(_cache_image, folder=cache_dir / split, settings=settings)
            with _alone(cache_dir, split):  # list again: another run may have finished just now
                remove_leftovers(cache_dir / split)
                ahead = None if cluster else _read_ahead
                title = "" if quiet else f"Preprocessing {split}"
                record(map_items(cache_one, missing(), num_workers, title, "images", cluster, ahead))
    manifest = read_manifest(cache_dir, split, settings).set_index("image_id").reindex(images.image_id.where(named))
    manifest = manifest.reset_index().assign(image_id=images.image_id.to_numpy())
    if not is_writable:
        _check_pictures(manifest, cache_dir, split)
    never_tried = manifest.settings_hash.isna()
    error = manifest.error.mask(never_tried, f"{cache_dir} lacks it, and is read-only")
    return manifest.fillna("").assign(error=error.where(named, "its patient_id or image_id can't name a file"))


def _missing(sources: dict[str, Path], cache_dir: Path, split: str, settings: CacheSettings) -> list[tuple[str, Path]]:
    """Return the id and the file of each image that is not yet in the cache."""
    manifest = read_manifest(cache_dir, split, settings)
    done = set(manifest.image_id[manifest.error == ""]) - set(without_picture(manifest, cache_dir / split))
    return [(image_id, source) for image_id, source in sources.items() if image_id not in done]


def _check_pictures(manifest: pd.DataFrame, cache_dir: Path, split: str) -> None:
    """Raise CacheError if a read-only cache lacks images that its manifest names."""
    named, lost = (manifest.error == "").sum(), without_picture(manifest, cache_dir / split)
    if lost:
        raise CacheError(
            f"{cache_dir} lacks {len(lost)} of the {named} pictures that its {split}_manifest.csv names, or has only parts of"
            f" them, first {lost[0]}.png, and it is read-only. Copy it again from where it was made, or give another cache_dir."
        )


@contextlib.contextmanager
def _alone(cache_dir: Path, split: str) -> Iterator[None]:
    """Keep other runs from filling the same split; the lock ends with the process, even if it is killed."""
    lock = FileLock(cache_dir / f".{split}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another run is filling {cache_dir}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _record(outcomes: Iterable[Outcome], path: Path, competition_dir: str | Path, settings: CacheSettings) -> None:
    """Append a manifest row for each outcome as it arrives."""
    with _full_disk_stops_the_run(path.parent):
        write_csv(path, read_rows(path, settings.hash))  # drops the row that a kill left half written
        with appending(path) as write_row:
            for outcome in outcomes:
                write_row(_manifest_row(outcome, competition_dir, settings))
        write_csv(path, read_rows(path, settings.hash))


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


def manifest_path(cache_dir: str | Path, split: str) -> Path:
    """Return the path of a split's manifest."""
    return Path(cache_dir) / f"{split}_manifest.csv"


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


def read_manifest(cache_dir: str | Path, split: str, settings: CacheSettings) -> pd.DataFrame:
    """Read a split's manifest: one row per image that was tried, none if there is no manifest yet."""
    return read_rows(manifest_path(cache_dir, split), settings.hash)


def _claim(cache_dir: Path, settings: CacheSettings) -> None:
    """Write the settings of a new cache, or raise CacheError if an existing one has others."""
    path = cache_dir / "settings.json"
    wanted = asdict(settings) | {"hash": settings.hash}
    try:
        if not path.exists():
            write_json(path, wanted)
        found = dict(read_json(path))
    except (ValueError, TypeError, RecursionError) as error:
        raise CacheError(f"{path} is not readable JSON ({error}): delete it if the cache has this run's settings.") from error
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise CacheError(f"{cache_dir} holds no cache, and none can be made ({error}): choose another cache_dir.") from error
    differing = [f"{key} is {found.get(key)} there, {value} here" for key, value in wanted.items() if found.get(key) != value]
    if differing:
        raise CacheError(f"{cache_dir} holds a cache with other settings ({'; '.join(differing)}): choose another cache_dir.")


def _read_ahead(job: tuple[str, Path]) -> None:
    """Ask the system to prefetch the beginning of a file while others are decoded; ignore failures."""
    with contextlib.suppress(OSError, AttributeError):  # Windows and macOS lack posix_fadvise
        file = os.open(job[1], os.O_RDONLY | os.O_NONBLOCK)  # opening a named pipe would wait for its writer
        try:
            os.posix_fadvise(file, 0, READ_AHEAD, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


def _cache_image(job: tuple[str, Path], folder: Path, settings: CacheSettings) -> dict:
    """Preprocess one image into ``folder``, and return its manifest columns."""
    image_id, source = job
    picture, row = preprocess(source, *settings.arguments)
    return row | {"picture_bytes": _write_picture(folder / f"{image_id}.png", picture)}


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
            f"{cache_dir} can't be used ({error}). Delete what is in the way, or choose another cache_dir."
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


def _manifest_row(outcome: Outcome, competition_dir: str | Path, settings: CacheSettings) -> dict:
    """Make the manifest row of an outcome."""
    image_id, source = outcome.item
    row = {"image_id": image_id, "source": str(Path(source).relative_to(competition_dir)), "error": on_one_line(outcome.error)}
    return row | (outcome.value or {}) | {"settings_hash": settings.hash}
