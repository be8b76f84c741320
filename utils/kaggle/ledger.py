"""submissions/ledger.csv: one row per submission, with its out-of-fold pF1 and Kaggle's scores."""

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from utils.core.errors import KitError
from utils.core.files import read_json, write_atomic, write_csv, write_json
from utils.core.folders import submissions_dir
from utils.metrics.intervals import Interval

NESTED = ["pf1_nested", "pf1_nested_low", "pf1_nested_high"]
SCORES = ["public_score", "private_score"]
NUMBERS = [*NESTED, *SCORES]
COLUMNS = ["time", "ref", "file", "sha256", "kernel", "version", "runs", *NESTED, "message", "status", *SCORES]
LOCK_SECONDS = 30


class LedgerError(KitError):
    """The ledger can't be read or written; the message says what to do."""


def read_ledger() -> pd.DataFrame:
    """Read the ledger, one row per submission in the order sent; raise LedgerError if the file is not a ledger.

    `NUMBERS` are floats, NaN if unknown; the other `COLUMNS` are text. ``time`` is UTC, ``file`` is a name only.
    """
    path = ledger_path()
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS, dtype=str).astype(dict.fromkeys(NUMBERS, float))
    try:
        ledger = pd.read_csv(path, dtype=str, keep_default_na=False)[COLUMNS]
        return ledger.replace(dict.fromkeys(NUMBERS, ""), np.nan).astype(dict.fromkeys(NUMBERS, float))
    except (ValueError, KeyError) as error:
        raise LedgerError(
            f"{path} is not a ledger of this kit ({error}): repair it, or move it away to start a new one."
        ) from None


def record(csv_path: Path, message: str, ref: str = "", kernel: str = "", version: str = "") -> pd.Series:
    """Add and return the row of a submission just sent; ``csv_path`` is from `keep`, ``ref`` is Kaggle's number.

    ``kernel`` (``owner/slug``) and ``version`` are empty for a file. The CSV's provenance gives runs and nested pF1.
    """
    provenance = read_provenance(csv_path)
    nested = provenance.get("tuned", {}).get("pf1_nested") or {}
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ref": ref,
        "file": csv_path.name,
        "sha256": hash_file(csv_path),
        "kernel": kernel,
        "version": version,
        "runs": ", ".join(Path(run).name for run in provenance.get("runs", [])),
        "message": message,
        "pf1_nested": nested.get("value", np.nan),
        "pf1_nested_low": nested.get("low", np.nan),
        "pf1_nested_high": nested.get("high", np.nan),
        "status": "pending",
        "public_score": np.nan,
        "private_score": np.nan,
    }
    with _changing() as rows:
        rows.append(row)
    return pd.Series(row)


def update_scores(submissions: Mapping[str, Mapping]) -> pd.DataFrame:
    """Write Kaggle's scores into the ledger and into each CSV's provenance, and return the ledger.

    ``submissions`` gives for each ref ``status``, ``public_score`` and ``private_score`` (NaN until Kaggle shows them).
    """
    with _changing() as rows:
        scored = [row for row in rows if row["ref"] in submissions]
        for row in scored:
            row |= submissions[row["ref"]]
        for file in {row["file"] for row in scored}:
            _write_scores(file, [row for row in rows if row["file"] == file])
    return read_ledger()


def find_earlier(csv_path: Path, kernel: str = "", version: str = "") -> str:
    """Describe the last time that the same submission was sent, with its score; empty if it was not.

    The notebook's version counts too: different models often give the same CSV for the few visible patients.
    """
    ledger = read_ledger()
    same = ledger[(ledger.sha256 == hash_file(csv_path)) & (ledger.kernel == kernel) & (ledger.version == version)]
    if same.empty:
        return ""
    last = same.iloc[-1]
    scored = last.status if np.isnan(last.public_score) else f"public {last.public_score}, private {last.private_score}"
    return f"This file was already submitted on {last.time} (ref {last.ref}). Result: {scored}."


def keep(csv_path: Path) -> Path:
    """Copy a CSV and its JSON into the submissions folder, unless they are there, and return the CSV's new path.

    If a different file has the name already, add the content's hash to it.
    """
    target = submissions_dir() / csv_path.name
    if target.is_file() and hash_file(target) != hash_file(csv_path):
        target = target.with_stem(f"{target.stem}-{hash_file(csv_path)[:12]}")
    for source, copy in ((csv_path, target), (csv_path.with_suffix(".json"), target.with_suffix(".json"))):
        if source.is_file() and not copy.is_file():
            with write_atomic(copy) as temporary:
                shutil.copyfile(source, temporary)
    return target


def read_provenance(csv_path: Path) -> dict:
    """Read a submission's JSON of provenance, empty if there is none; raise LedgerError if it is not a JSON object."""
    path = csv_path.with_suffix(".json")
    try:
        found = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise LedgerError(f"{path} is not JSON ({error}): delete it to submit without provenance.") from None
    if not isinstance(found, dict):
        raise LedgerError(f"{path} is not a submission's provenance: delete it to submit without provenance.")
    return found


def ranked(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger as text columns for display, best private score first, then best public score."""
    best = ledger.sort_values(["private_score", "public_score"], ascending=False, na_position="last")
    nested = [str(Interval(*bounds)) for bounds in best[NESTED].to_numpy(float)]
    kernels = (best.kernel + " v" + best.version).where(best.kernel != "", best.file)
    return pd.DataFrame(
        {
            "time": best.time,
            "runs": best.runs,
            "nested pF1 [95 %]": nested,
            "public": best.public_score.map(_score),
            "private": best.private_score.map(_score),
            "status": best.status,
            "submitted": kernels,
            "message": best.message,
        }
    )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _score(value: float) -> str:
    return "" if np.isnan(value) else f"{value:g}"


def ledger_path() -> Path:
    """Return the ledger's path, whether or not it exists."""
    return submissions_dir() / "ledger.csv"


@contextmanager
def _changing() -> Iterator[list[dict]]:
    """Yield the ledger's rows for changes, then write them back; a lock keeps the rows of other processes."""
    folder = submissions_dir()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".ledger.lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise LedgerError(f"Another process has held {lock.lock_file} for {LOCK_SECONDS} s: end it, and try again.") from None
    except (OSError, NotImplementedError) as error:  # older versions of filelock raise the latter if locks are unavailable
        raise LedgerError(f"{lock.lock_file} can't be locked ({error}). If it is a link or a folder, delete it.") from error
    try:
        rows = read_ledger().to_dict("records")
        yield rows
        write_csv(ledger_path(), pd.DataFrame(rows, columns=COLUMNS))
    finally:
        lock.release()


def _write_scores(file: str, rows: list[dict]) -> None:
    csv_path = submissions_dir() / Path(file).name  # name only: the ledger may have been edited
    provenance = read_provenance(csv_path)
    if provenance:
        scores = pd.DataFrame(rows)[["ref", "time", "status", "public_score", "private_score"]]
        known = scores.astype(object).where(scores.notna(), None)
        write_json(csv_path.with_suffix(".json"), provenance | {"kaggle": known.to_dict("records")})
