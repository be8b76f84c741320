"""A user's table for a folder of DICOMs: cancer, and what the headers lack or state wrongly.

One row per file (column ``file``, or ``image_id``) or one row per breast (``patient_id`` and ``laterality``, as in the
headers).
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.formats import shown
from utils.external.headers import LONGEST_LIFE, SIDES
from utils.external.sets import SHOWN, ExternalError, read_age, read_separated

FILE_KEYS = ("file", "image_id")  # the first that a table has
OF_A_FILE = ("patient_id", "laterality", "view", "age", "implant", "cancer")
OF_A_BREAST = ("age", "implant", "cancer")


class Labels:
    """The checked rows of a user's CSV, separated by commas or semicolons; empty fields change nothing.

    Raise ExternalError if the table can't be read, lacks its key columns, has no column that the kit uses, or has an
    invalid value.
    """

    def __init__(self, path: Path):
        self.path = path
        table = read_separated(path)
        table.columns = table.columns.str.strip().str.lower()
        table = table.apply(lambda column: column.str.strip()).replace("", np.nan)
        self.key = next((name for name in FILE_KEYS if name in table), "")
        if not self.key and not {"patient_id", "laterality"} <= set(table):
            raise ExternalError(
                f"{path} needs the column file, or the columns patient_id and laterality; it has {', '.join(table.columns)}."
            )
        self.columns = [name for name in (OF_A_FILE if self.key else OF_A_BREAST) if name in table]
        if not self.columns:
            raise ExternalError(f"{path} has no column of {', '.join(OF_A_FILE if self.key else OF_A_BREAST)}: add one.")
        if table.empty:
            raise ExternalError(f"{path} has a header and no rows: add one row for each file or breast.")
        self.rows = self._checked(table)

    @property
    def has_cancer(self) -> bool:
        """True if the table labels breasts, so that they can be trained on."""
        return "cancer" in self.columns

    def add_to(self, images: pd.DataFrame, source: Path) -> pd.DataFrame:
        """Return the images with the table's values in place of the headers', and a column ``cancer``, NaN if unknown.

        Raise ExternalError if a row names no file or several, no row fits any breast, rows contradict each other, or a
        breast has two labels.
        """
        places = self._places_by_file(images, source) if self.key else self._places_by_breast(images)
        images = images.assign(cancer=np.nan)
        for column in self.columns:
            values, lines = {}, {}
            for line, value in self.rows[column].dropna().items():
                for row in places[line]:
                    if values.setdefault(row, value) != value:
                        self._refuse(line, column, value, f"contradicts line {lines[row]}: keep one of them")
                    lines.setdefault(row, line)
            name = "patient" if column == "patient_id" else column
            images[name] = images[name].where(~images.index.isin(values), images.index.map(values))
        self._check_breasts(images)
        return images

    def _checked(self, table: pd.DataFrame) -> pd.DataFrame:
        readers = {
            "laterality": (lambda text: SIDES.get(text.upper()), "must be L or R"),
            "view": (lambda text: text.upper() if text.isascii() and text.isalpha() else None, "must be letters, such as MLO"),
            "age": (_read_age, f"must be years from 1 to {LONGEST_LIFE}"),
            "implant": (_read_flag, "must be 0 or 1"),
            "cancer": (_read_flag, "must be 0 or 1, or empty"),
        }
        needed = [self.key] if self.key else ["patient_id", "laterality"]
        for column in needed:
            for line in table.index[table[column].isna()][:1]:
                self._refuse(line, column, "", "must not be empty")
        checked = table[[*dict.fromkeys([*needed, *self.columns])]].astype(object)
        for column in [name for name in readers if name in checked]:
            read, rule = readers[column]
            for line, text in table[column].dropna().items():
                checked.at[line, column] = read(text)
                if checked.at[line, column] is None:
                    self._refuse(line, column, text, rule)
        return checked

    def _refuse(self, line: int, column: str, value: object, rule: str) -> None:
        raise ExternalError(f"{self.path}, line {line}, column {column}: {shown(value)} {rule}.")

    def _places_by_file(self, images: pd.DataFrame, source: Path) -> dict[int, list[int]]:
        """Map each line to the row of the file it names: path below the folder, name, name without ending, or UID."""
        names = defaultdict(set)
        for row, file, instance in zip(images.index, images.file, images.instance, strict=True):
            name = file.rsplit("/", 1)[-1]
            for key in (file, name, name.rsplit(".", 1)[0], instance):
                names[key].add(row)
        written = [file.encode(errors="backslashreplace").decode() for file in images.file]  # as files.csv has it
        exact = dict(zip(written, images.index, strict=True))
        places = {}
        for line, text in self.rows[self.key].items():
            name = text if text in exact else _below(text, source)
            found = [exact[name]] if name in exact else sorted(names.get(name, ()))
            if not found:
                self._refuse(line, self.key, text, f"is not a DICOM file in {source}: correct the name, or delete the line")
            if len(found) > 1:
                listed = ", ".join(images.file[found[:SHOWN]])
                self._refuse(line, self.key, text, f"names {len(found)} files ({listed}): give the path within {source}")
            places[line] = found
        return places

    def _places_by_breast(self, images: pd.DataFrame) -> dict[int, list[int]]:
        groups = images.groupby(["patient", "laterality"]).groups
        keys = zip(self.rows.index, self.rows.patient_id, self.rows.laterality, strict=True)
        places = {line: list(groups.get((patient, side), ())) for line, patient, side in keys}
        if not any(places.values()):
            known = ", ".join(sorted({*images.patient} - {""})[:SHOWN]) or "none"
            raise ExternalError(
                f"{self.path}, columns patient_id and laterality: no line matches an image. Patients in headers: {known}, …;"
                " if headers do not say the side, use the column file."
            )
        unused = sum(not rows for rows in places.values())
        if unused:
            print(f"{self.path}: {unused} of {len(places)} lines match no image.")
        return places

    def _check_breasts(self, images: pd.DataFrame) -> None:
        sided = images[images.laterality.isin(["L", "R"])]
        labels = sided.groupby(["patient", "laterality"]).cancer.nunique()
        for patient, side in labels.index[labels > 1][:1]:
            raise ExternalError(
                f"{self.path}, column cancer: breast {side} of patient {patient!r} is 0 in one line and 1 in another."
                " A breast has one label; give the images of another year another patient_id."
            )


def _below(text: str, source: Path) -> str:
    """Return the path below the folder, as in `Facts.file`; ``text`` may be a full path."""
    name = text.replace("\\", "/").removeprefix("./")
    return Path(name).relative_to(source).as_posix() if Path(name).is_relative_to(source) else name


def _read_age(text: str) -> float | None:
    age = read_age(text)
    return age if 0 < age <= LONGEST_LIFE else None


def _read_flag(text: str) -> int | None:
    return {"0": 0, "0.0": 0, "1": 1, "1.0": 1}.get(text)
