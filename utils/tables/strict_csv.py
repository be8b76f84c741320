"""Strict reading of CSV files as text."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils.core.errors import KitError


class TableError(KitError, ValueError):
    """A table breaks a rule; the message names the file, the column and the first bad rows."""


def read_table(path: str | Path, separator: str = ",", required: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV as text, strictly: refuse what a lenient reader would guess.

    Parameters
    ----------
    path : path
        UTF-8, with or without a byte order mark.
    separator : str
        Between fields.
    required : sequence of str
        Columns that must be there.

    Returns
    -------
    DataFrame of str
        NaN where a field is empty. The index is each row's line in the file; empty rows are left out.

    Raises
    ------
    TableError
        If the file does not exist or can't be read, a required column is missing, two columns have the same name (ignoring case
        and surrounding blanks), or a row has more or fewer fields than the header.
    """
    try:
        header, rows = _split_csv(path, separator)
    except FileNotFoundError as error:
        raise TableError(f"{path} does not exist.") from error
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not a readable CSV ({error}); correct it, or download it again.") from error
    counts = Counter(name.strip().casefold() for name in header if name.strip())
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise TableError(f"{path} has the column(s) {', '.join(repeated)} more than once; keep one of each.")
    missing = [column for column in required if column not in header]
    if missing:
        raise TableError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(filter(None, header))}.")
    names = [name or f"unnamed {place}" for place, name in enumerate(header)]  # such as a saved index
    table = pd.DataFrame(list(rows.values()), index=list(rows), columns=names)
    return table.where(table != "")


def _split_csv(path: str | Path, separator: str) -> tuple[list[str], dict[int, list[str]]]:
    """Return the fields of a CSV's header, and of each non-empty row by its line."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        text = file.read()
    if "\0" in text:
        raise csv.Error("it contains NUL bytes")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header = next(reader, [])
    if not any(header):
        raise csv.Error("it has no header")
    rows, line = {}, reader.line_num + 1
    for row in reader:
        if any(row):
            if len(row) != len(header):
                raise csv.Error(f"line {line} has {len(row)} fields, and the header has {len(header)}")
            rows[line] = row
        line = reader.line_num + 1  # a quoted field may contain line ends
    return header, rows
