"""submissions/ledger.csv: what was sent to Kaggle, what it was worth out of fold, and what it scored.

CSV, since each submission is one row of plain values, which any spreadsheet opens.
"""

import hashlib
import itertools
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from utils.core.environment import KitError, read_json, submissions_dir, write_atomic, write_csv, write_json
from utils.metrics.intervals import Interval

NUMBERS = ["pf1_nested", "pf1_nested_low", "pf1_nested_high", "public_score", "private_score"]
COLUMNS = ["time", "ref", "file", "sha256", "kernel", "version", "runs", *NUMBERS[:3], "message", "status", *NUMBERS[3:]]
LOCK_SECONDS = 30


class LedgerError(KitError):
    """A ledger that can't be read or written; the message says what to do."""


def read_ledger() -> pd.DataFrame:
    """Read the ledger.

    Returns
    -------
    DataFrame
        One row per submission in the order sent, of `COLUMNS`; `NUMBERS` are floats, NaN where unknown, the others text.
        ``time`` is UTC, ``file`` the name of the CSV in the folder of submissions.

    Raises
    ------
    LedgerError
        If the file is not a ledger.
    """
    path = ledger_path()
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS, dtype=str).astype(dict.fromkeys(NUMBERS, float))
    try:
        ledger = pd.read_csv(path, dtype=str, keep_default_na=False)[COLUMNS]
        return ledger.replace(dict.fromkeys(NUMBERS, ""), np.nan).astype(dict.fromkeys(NUMBERS, float))
    except (ValueError, KeyError) as error:
        raise LedgerError(
            f"{path} is not a ledger of this kit ({error}): mend it, or move it away to start a new one."
        ) from None


def record(csv_path: Path, message: str, ref: str = "", kernel: str = "", version: str = "") -> pd.Series:
    """Add a row for a submission that was just sent.

    Parameters
    ----------
    csv_path : Path
        From `keep`: in the folder of submissions; what the JSON beside it says goes into the row.
    message : str
        As sent.
    ref : str
        Kaggle's number of the submission.
    kernel, version : str
        ``owner/slug`` and version of the notebook that was submitted; empty for a file.

    Returns
    -------
    Series
        The row.
    """
    provenance = read_provenance(csv_path)
    nested = provenance.get("tuned", {}).get("pf1_nested") or {}
    row = dict.fromkeys(COLUMNS, "") | {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ref": ref,
        "file": csv_path.name,
        "sha256": hash_file(csv_path),
        "kernel": kernel,
        "version": version,
        "runs": ", ".join(Path(run).name for run in provenance.get("runs", [])),
        "message": message,
        "status": "pending",
    }
    row |= {name: nested.get(bound, np.nan) for name, bound in zip(NUMBERS, ("value", "low", "high"), strict=False)}
    with _changing() as rows:
        rows.append(row)
    return pd.Series(row)


def update_scores(submissions: Mapping[str, Mapping]) -> pd.DataFrame:
    """Write what Kaggle says of submissions into the ledger, and into the provenance beside each CSV.

    Parameters
    ----------
    submissions : mapping
        By ref: ``status`` (text), ``public_score`` and ``private_score`` (float, NaN where Kaggle shows none yet).

    Returns
    -------
    DataFrame
        The ledger.
    """
    with _changing() as rows:
        scored = [row for row in rows if row["ref"] in submissions]
        for row in scored:
            row |= submissions[row["ref"]]
        for file in {row["file"] for row in scored}:
            _write_scores(file, [row for row in rows if row["file"] == file])
    return read_ledger()


def find_earlier(csv_path: Path, kernel: str = "", version: str = "") -> str:
    """Say when this very submission was already sent, and its score; empty where it was not.

    A notebook is known by its version too: its CSV for the few patients that one may see is often the same for other models.
    """
    ledger = read_ledger()
    same = ledger[(ledger.sha256 == hash_file(csv_path)) & (ledger.kernel == kernel) & (ledger.version == version)]
    if same.empty:
        return ""
    last = same.iloc[-1]
    scored = last.status if np.isnan(last.public_score) else f"public {last.public_score}, private {last.private_score}"
    return f"This very file was already submitted on {last.time} (ref {last.ref}), and scored: {scored}."


def keep(csv_path: Path) -> Path:
    """Put a CSV and the JSON of provenance beside it into the folder of submissions, unless they are there.

    Returns
    -------
    Path
        Of the CSV there, with the moment and a number in its name where other contents have the name.
    """
    moment = time.strftime("%Y%m%d-%H%M%S")
    numbered = (f"{moment}_{number}-{csv_path.name}" for number in itertools.count(2))
    names = itertools.chain([csv_path.name, f"{moment}-{csv_path.name}"], numbered)
    targets = (submissions_dir() / name for name in names)
    target = next(path for path in targets if not path.is_file() or hash_file(path) == hash_file(csv_path))
    for source, copy in ((csv_path, target), (csv_path.with_suffix(".json"), target.with_suffix(".json"))):
        if source.is_file() and not copy.is_file():
            with write_atomic(copy) as temporary:
                shutil.copyfile(source, temporary)
    return target


def find_named(csv_path: Path) -> Path:
    """Find the copy in the folder of submissions that has its provenance beside it; the CSV itself, where there is none.

    The notebook writes ``submission.csv``, and a named copy with a JSON there.
    """
    if csv_path.with_suffix(".json").is_file():
        return csv_path
    named = [path for path in sorted(submissions_dir().glob("*.csv")) if path.with_suffix(".json").is_file()]
    return next((path for path in reversed(named) if hash_file(path) == hash_file(csv_path)), csv_path)


def read_provenance(csv_path: Path) -> dict:
    """Read the JSON beside a submission; empty where there is none.

    Raises
    ------
    LedgerError
        If it is not a JSON object.
    """
    path = csv_path.with_suffix(".json")
    try:
        found = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise LedgerError(f"{path} is not JSON ({error}): take it away, and the submission counts as one without.") from None
    if not isinstance(found, dict):
        raise LedgerError(f"{path} is not a submission's provenance: take it away, and the submission counts as one without.")
    return found


def ranked(ledger: pd.DataFrame) -> pd.DataFrame:
    """Show the ledger, best private score first, then best public score.

    Returns
    -------
    DataFrame
        Text: time, runs, nested pF1 [95 %], public, private, status, kernel or file, message.
    """
    best = ledger.sort_values(["private_score", "public_score"], ascending=False, na_position="last")
    nested = [str(Interval(*bounds)) for bounds in best[NUMBERS[:3]].to_numpy(float)]
    kernels = (best.kernel + " v" + best.version).where(best.kernel != "", best.file)
    columns = {"time": best.time, "runs": best.runs, "nested pF1 [95 %]": nested}
    columns |= {name: best[f"{name}_score"].map(_score) for name in ("public", "private")}
    return pd.DataFrame(columns | {"status": best.status, "submitted": kernels, "message": best.message})


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _score(value: float) -> str:
    return "" if np.isnan(value) else f"{value:g}"


def ledger_path() -> Path:
    """Path of the ledger, whether it is there or not."""
    return submissions_dir() / "ledger.csv"


@contextmanager
def _changing() -> Iterator[list[dict]]:
    """Give the ledger's rows to change, alone: another process that sends at the same time loses none."""
    folder = submissions_dir()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".ledger.lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise LedgerError(f"Another process has held {lock.lock_file} for {LOCK_SECONDS} s: end it, and try again.") from None
    except (OSError, NotImplementedError) as error:  # older versions of filelock raise the second where there are no locks
        raise LedgerError(f"{lock.lock_file} can't be locked ({error}). If it is a link or a folder, delete it.") from error
    try:
        rows = read_ledger().to_dict("records")
        yield rows
        write_csv(ledger_path(), pd.DataFrame(rows, columns=COLUMNS))
    finally:
        lock.release()


def _write_scores(file: str, rows: list[dict]) -> None:
    csv_path = submissions_dir() / Path(file).name  # the ledger may have been edited: a name, no path
    provenance = read_provenance(csv_path)
    if provenance:
        scores = pd.DataFrame(rows)[["ref", "time", "status", "public_score", "private_score"]]
        known = scores.astype(object).where(scores.notna(), None)
        write_json(csv_path.with_suffix(".json"), provenance | {"kaggle": known.to_dict("records")})
