"""The image cache: every DICOM once through the preprocessing, kept as a small 8-bit PNG, and a manifest of what was done.

A cache folder holds ``settings.json``, and for each split ``{split}/{image_id}.png`` and ``{split}_manifest.csv``.
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

# Loads in two thirds of the default filter's time and is no larger (benchmarks.cache_format); OpenCV before 4.11 has no choice.
PNG_OPTIONS = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []
SHOWN_ERRORS = 5
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
READ_AHEAD = 2**19  # bytes: most pictures of 512 x 512 need fewer


def default_cache_dir(competition_dir: str | Path, settings: CacheSettings) -> Path:
    """Folder that notebooks without a ``cache_dir`` share: one for each data folder and settings."""
    folder = Path(competition_dir).resolve()
    place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:4]
    size = f"{settings.image_height}x{settings.image_width}"
    return working_dir() / "cache" / f"{folder.name}-{place}-{size}-{settings.hash[:6]}"


def attached_cache_dir(competition_dir: str | Path, settings: CacheSettings) -> Path | None:
    """Folder of the same cache among Kaggle's inputs, filled with the training set by another notebook; None without one."""
    name = default_cache_dir(competition_dir, settings).name
    folders = [folder for depth in ("*", "notebooks/*/*") for folder in KAGGLE_INPUT.glob(f"{depth}/cache/{name}")]
    return next((folder for folder in folders if _holds_training_set(folder, competition_dir, settings)), None)


def _holds_training_set(folder: Path, competition_dir: str | Path, settings: CacheSettings) -> bool:
    """Tell whether every training image was tried, and the pictures of those that did not fail are there."""
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
    """Preprocess the images that the cache lacks, and return the manifest's rows for all of ``images``.

    A run that was killed resumes where it stopped; images that failed before are tried again, and so are those whose picture is
    missing or shorter than it was written. A second run on the same cache waits for the first. In a folder that can't be
    written to, images that were never tried stay missing, with an error in their row.

    Parameters
    ----------
    images : DataFrame
        From `utils.tables.read_images`.
    competition_dir : path
    split : {"train", "test"}
    cache_dir : path
        Made if needed.
    settings : CacheSettings
    num_workers : int
        Number of processes; 0 works in this one, which a file that crashes its decoder would end.
    cluster : str
        Address of a Dask scheduler whose workers see the same folders; empty works on this machine.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    DataFrame
        One row per image, in the order of ``images``, with `utils.images.manifest.MANIFEST_COLUMNS`. ``error`` is empty where
        the picture is in the cache, else it says why it is not. An image whose ids can't name a file
        (`utils.tables.competition.name_files`) has none.

    Raises
    ------
    CacheError
        If the folder holds a cache with other settings, or can't be written to and lacks pictures that its manifest names.
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
            with _alone(cache_dir, split):  # another run may have been here until now
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
    manifest = read_manifest(cache_dir, split, settings)
    done = set(manifest.image_id[manifest.error == ""]) - set(without_picture(manifest, cache_dir / split))
    return [(image_id, source) for image_id, source in sources.items() if image_id not in done]


def _check_pictures(manifest: pd.DataFrame, cache_dir: Path, split: str) -> None:
    """Refuse a cache whose manifest and pictures disagree: for one that can't be mended."""
    named, lost = (manifest.error == "").sum(), without_picture(manifest, cache_dir / split)
    if lost:
        raise CacheError(
            f"{cache_dir} lacks {len(lost)} of the {named} pictures that its {split}_manifest.csv names, or has only parts of"
            f" them, first {lost[0]}.png, and it is read-only. Copy it again from where it was made, or give another cache_dir."
        )


@contextlib.contextmanager
def _alone(cache_dir: Path, split: str) -> Iterator[None]:
    """Keep other runs from adding to the same split; the lock ends with the process, however that ends."""
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
    """Add a row for each outcome as it comes."""
    with _full_disk_stops_the_run(path.parent):
        write_csv(path, read_rows(path, settings.hash))  # drops what a kill left half written
        with appending(path) as write_row:
            for outcome in outcomes:
                write_row(_manifest_row(outcome, competition_dir, settings))
        write_csv(path, read_rows(path, settings.hash))


def summarise(manifest: pd.DataFrame) -> str:
    """Say in a few lines how many images are in the cache, how they were decoded, which are flagged, and why others failed."""
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
    """Path of a split's manifest."""
    return Path(cache_dir) / f"{split}_manifest.csv"


def picture_path(cache_dir: str | Path, split: str, image_id: str) -> Path:
    """Path of a cached picture."""
    return Path(cache_dir) / split / f"{image_id}.png"


def load_picture(cache_dir: str | Path, split: str, image_id: str) -> np.ndarray:
    """Load a cached picture.

    Returns
    -------
    ndarray of shape (image_height, image_width), uint8

    Raises
    ------
    CacheError
        If the picture is missing or broken.
    """
    path = picture_path(cache_dir, split, image_id)
    picture = read_picture(path, cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise CacheError(f"{path} is missing or broken; delete it and run preprocess.ipynb again with the same cache_dir.")
    return picture


def read_manifest(cache_dir: str | Path, split: str, settings: CacheSettings) -> pd.DataFrame:
    """Read a split's manifest: one row per image, empty where nothing has been cached yet."""
    return read_rows(manifest_path(cache_dir, split), settings.hash)


def _claim(cache_dir: Path, settings: CacheSettings) -> None:
    """Write the settings into a new cache, or check that they are those of an existing one."""
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
    """Ask the system to fetch the beginning of a file, while others are decoded; only a wish, so nothing can go wrong."""
    with contextlib.suppress(OSError, AttributeError):  # Windows and macOS have no such call
        file = os.open(job[1], os.O_RDONLY | os.O_NONBLOCK)  # else opening a named pipe would wait for its writer
        try:
            os.posix_fadvise(file, 0, READ_AHEAD, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


def _cache_image(job: tuple[str, Path], folder: Path, settings: CacheSettings) -> dict:
    image_id, source = job
    picture, row = preprocess(source, *settings.arguments)
    return row | {"picture_bytes": _write_picture(folder / f"{image_id}.png", picture)}


def _write_picture(path: Path, picture: np.ndarray) -> int:
    """Write a picture, and return its size in bytes: the manifest keeps it, to find files that a power cut left short."""
    encoded = cv2.imencode(".png", picture, PNG_OPTIONS)[1]
    with _full_disk_stops_the_run(path.parent), write_atomic(path, sync=False) as temporary:
        return temporary.write_bytes(encoded)


@contextlib.contextmanager
def _usable(cache_dir: Path) -> Iterator[None]:
    """Name the remedy where something else is in a file's place, such as a link for a lock, or the disk has no locks."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # older versions of filelock raise the second where there are no locks
        raise CacheError(
            f"{cache_dir} can't be used ({error}). Delete what is in the way, or choose another cache_dir."
        ) from error


@contextlib.contextmanager
def _full_disk_stops_the_run(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            message = f"The disk of {folder} is full: free some space and run again; what is cached stays."
            raise StopRunError(message) from error
        raise


def _manifest_row(outcome: Outcome, competition_dir: str | Path, settings: CacheSettings) -> dict:
    image_id, source = outcome.item
    row = {"image_id": image_id, "source": str(Path(source).relative_to(competition_dir)), "error": on_one_line(outcome.error)}
    return row | (outcome.value or {}) | {"settings_hash": settings.hash}
