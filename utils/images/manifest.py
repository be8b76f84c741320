"""A cache's manifest: one row per image that was tried, appended at once so that a kill loses nothing."""

import contextlib
import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

# The settings' hash is last: a truncated row lacks it, and is dropped on reading.
MANIFEST_COLUMNS = [
    "image_id",
    "source",
    "source_height",
    "source_width",
    "crop_top",
    "crop_left",
    "crop_bottom",
    "crop_right",
    "flipped",
    "flags",
    "codec",
    "decoded",
    "halved",
    "bytes_read",
    "file_bytes",
    "picture_bytes",
    "error",
    "settings_hash",
]
LONGEST_ERROR = 500


def read_rows(path: Path, settings_hash: str) -> pd.DataFrame:
    """Read the rows with these settings, the last of each image, as text; none if there is no file."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    # Older versions had fewer columns. If a power cut destroyed the header, the rows have the current columns.
    headers = [line for line in lines if line.startswith(b"image_id,source,") and line.endswith(b",settings_hash")]
    header = headers[0] if headers else ",".join(MANIFEST_COLUMNS).encode()
    ending = f",{settings_hash}".encode()
    whole = [line for line in lines if line.endswith(ending) and _is_whole(line, header.count(b",") + 1)]
    manifest = pd.read_csv(io.BytesIO(b"\n".join([header, *whole])), dtype=str, keep_default_na=False)
    manifest = manifest.reindex(columns=MANIFEST_COLUMNS, fill_value="")
    return manifest.drop_duplicates("image_id", keep="last").reset_index(drop=True)


def _is_whole(line: bytes, columns: int) -> bool:
    """True if a line is one complete row, not what a kill, a full disk or a power cut left of one or two."""
    if b"\0" in line:
        return False
    try:
        text = line.decode()
        found = len(next(csv.reader([text], strict=True))) if '"' in text else text.count(",") + 1
    except (csv.Error, UnicodeDecodeError):
        return False
    image_id, source = text.split(",", 2)[:2]
    return found == columns and source.replace("\\", "/").endswith(f"/{image_id}.dcm")


def without_picture(manifest: pd.DataFrame, folder: Path) -> list[str]:
    """Return the ids of cached images whose file in ``folder`` is missing, or not as long as the row says."""
    cached = manifest[manifest.error == ""]
    lengths = (cached.image_id + ".png").map(_lengths(folder)).fillna(0).astype(int)
    # Rows of older versions don't say it; their files must not be empty.
    is_complete = np.where(cached.picture_bytes == "", lengths > 0, lengths.astype(str) == cached.picture_bytes)
    return cached.image_id[~is_complete].tolist()


def _lengths(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file that is not hidden, which a temporary file is."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if not entry.name.startswith(".")}
    return {}


def on_one_line(error: str) -> str:
    """Remove what a manifest row can't contain: line ends, NUL, characters outside Unicode, endless text."""
    printable = "".join(character if character.isprintable() else " " for character in error)
    return " ".join(printable.split())[:LONGEST_ERROR]


def append_rows(path: Path, rows: Iterable[dict]) -> None:
    """Append rows as they come, and flush each, so that a kill loses no finished image."""
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS, restval="")
        for row in rows:
            writer.writerow(row)
            file.flush()
