"""Read public sets of mammograms, as they are distributed, into one kind of table: what each image shows, and its file.

What counts as cancer, by set:

- ``vindr``, VinDr-Mammo 1.0.0 (PhysioNet): no pathology; a breast's BI-RADS 5 is cancer, 1 to 3 are not.
- ``cmmd``, CMMD (TCIA): biopsy by breast; Malignant is cancer, Benign is not. A breast without a row, the healthy side
  of many patients, was not biopsied.
- ``cbis``, CBIS-DDSM (TCIA, in DICOM; not the lossy JPEG mirrors): pathology by finding; MALIGNANT is cancer, BENIGN
  and BENIGN_WITHOUT_CALLBACK are not. Scanned film.
- ``inbreast``, INbreast 1.0: BI-RADS 5 and 6 (proven) are cancer, 1 to 3 are not.
- ``mias``, mini-MIAS (PEIPA): severity M is cancer; B and normal breasts are not. Scanned film of 8 bits, as PGM.

BI-RADS 4 means anything from 2 to 95 % cancer (ACR BI-RADS Atlas, 5th edition), so its truth is unknown unless the user
decides what it counts as. Truth is per breast: one image with cancer makes it positive, else one of unknown truth makes
it unknown.

References: Nguyen et al. 2023, doi 10.13026/br2v-7517; Cui et al. 2021, doi 10.7937/tcia.eqde-4b16; Lee et al. 2017,
doi 10.7937/K9/TCIA.2016.7O02S9CY; Moreira et al. 2012, doi 10.1016/j.acra.2011.09.014; Suckling et al. 1994.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from utils.core.errors import KitError
from utils.core.progress import progress_bar
from utils.external.headers import read_facts
from utils.tables.competition import ID_PATTERN
from utils.tables.strict_csv import TableError, read_table

UNKNOWN = 0.5  # between 0 and 1, so that a breast's label is the maximum of its images: cancer, unknown, healthy
COLUMNS = ["patient", "image", "laterality", "view", "label", "category", "age", "density", "model", "file"]
BIRADS_LABELS = {"1": 0.0, "2": 0.0, "3": 0.0, "5": 1.0, "6": 1.0}
# RSNA's column is the result of screening: 0 recalled, 1 negative, 2 benign; 3, an early control, is none of these.
RSNA_BIRADS = {"1": 1.0, "2": 2.0, "4": 0.0, "5": 0.0, "6": 0.0}
DENSITIES = {"1": "A", "2": "B", "3": "C", "4": "D"}  # numbers of the older BI-RADS editions
CMMD_LABELS = {"BENIGN": 0.0, "MALIGNANT": 1.0}
CBIS_LABELS = CMMD_LABELS | {"BENIGN_WITHOUT_CALLBACK": 0.0}
INBREAST_FILE = re.compile(r"(\d+)_([0-9a-f]+)_MG_[LR]_\w+_ANON\.dcm", re.IGNORECASE)
MIAS_LINE = re.compile(r"^\s*mdb(\d{3})\s+[FGD]\s+([A-Z]{4})(?:\s+([BM]))?\b(?:\s+(\d+)\s+(\d+)\s+(\d+))?")
LOSSLESS = (".pgm", ".png")
DEPTHS = ("", "*/", "*/*/")  # below the given folder; downloads wrap a set in a folder or two
SHOWN = 3


class ExternalError(KitError):
    """A set that can't be converted as asked; the message names the file and what to do."""


@dataclass(frozen=True)
class ExternalSet:
    """How a set is read, where it comes from, and its ``site_id``: RSNA has 1 and 2.

    With a site of its own, a model that reads metadata can attribute the set's share of cancer to its origin.
    """

    site_id: int
    read: Callable[[Path], pd.DataFrame]
    origin: str


def read_vindr(source: Path) -> pd.DataFrame:
    """Read VinDr-Mammo, both splits: breast-level_annotations.csv, metadata.csv, and images/STUDY/IMAGE.dicom.

    Return one row per image with `COLUMNS`: ``label`` is 0, 1 or `UNKNOWN`; ``category`` is the digit of BI-RADS, empty
    if the set has none; ``file`` is a Path that need not exist, or missing; other unknown values are NaN or empty. Raise
    ExternalError if a table is missing or lacks a column.
    """
    path = find(source, "breast-level_annotations.csv")
    needed = ["study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density"]
    table = read_set_table(path, needed, ids=["study_id", "image_id"])
    category = _digits(table.breast_birads)
    known = _vindr_metadata(path.with_name("metadata.csv")).reindex(table.image_id)
    folder = path.parent / "images"
    return _as_images(
        patient=table.study_id,
        image=table.image_id,
        laterality=table.laterality,
        view=table.view_position,
        label=category.map(BIRADS_LABELS).fillna(UNKNOWN),
        category=category,
        age=known.age.to_numpy(),
        density=table.breast_density.str.removeprefix("DENSITY").str.strip(),
        model=known.model.to_numpy(),
        file=[folder / study / f"{image}.dicom" for study, image in zip(table.study_id, table.image_id, strict=True)],
    )


def _vindr_metadata(path: Path) -> pd.DataFrame:
    """Return each image's age and machine from metadata.csv; an empty table if there is no such file."""
    if not path.is_file():
        return pd.DataFrame({"age": [], "model": []}, dtype=object)
    table = read_set_table(path, ["SOP Instance UID", "Manufacturer's Model Name"]).drop_duplicates("SOP Instance UID")
    age = table["Patient's Age"].map(read_age) if "Patient's Age" in table else np.nan
    known = {"age": age, "model": table["Manufacturer's Model Name"]}
    return pd.DataFrame(known).set_axis(table["SOP Instance UID"])


def read_cmmd(source: Path) -> pd.DataFrame:
    """Read CMMD: CMMD_clinicaldata_revision as .csv or .xlsx, and DICOMs, whose headers give patient, side and view.

    As `read_vindr`; there is no BI-RADS.
    """
    path = find(source, "CMMD_clinicaldata_revision*.csv", "CMMD_clinicaldata_revision*.xlsx")
    table = read_set_table(path, ["ID1", "LeftRight", "classification"])
    table["label"] = table.classification.str.upper().map(CMMD_LABELS).fillna(UNKNOWN)
    labels = table.groupby(["ID1", "LeftRight"]).label.max()
    ages = table.drop_duplicates("ID1").set_index("ID1").Age.map(read_age) if "Age" in table else {}
    headers = pd.DataFrame(_cmmd_headers(source), columns=["patient", "image", "laterality", "view", "file"])
    breast = pd.MultiIndex.from_frame(headers[["patient", "laterality"]])
    return _as_images(
        patient=headers.patient,
        image=headers.image,
        laterality=headers.laterality,
        view=headers["view"],
        label=labels.reindex(breast).fillna(UNKNOWN).to_numpy(),
        age=headers.patient.map(ages).astype(float),
        file=headers.file,
    )


def _cmmd_headers(source: Path) -> Iterator[tuple[str, str, str, str, Path | None]]:
    files = sorted(source.rglob("*.dcm"))
    if not files:
        raise ExternalError(f"{source} contains no .dcm file: give the folder that the set was downloaded into.")
    for path in progress_bar(files, "Reading headers", "files"):
        facts = read_facts(path, path.name)
        if facts and all(re.fullmatch(ID_PATTERN, part) for part in (facts.patient, facts.instance)):
            yield facts.patient, facts.instance, facts.laterality, facts.view, path
        else:  # left out, and counted
            yield "unknown", f"unknown_{path.stem}", "", "", None


def read_cbis(source: Path) -> pd.DataFrame:
    """Read CBIS-DDSM: {mass,calc}_case_description_{train,test}_set.csv, and the full mammograms.

    As `read_vindr`; the truth is proven, so BI-RADS is not used. The tables name files 000000.dcm in folders of UIDs,
    the downloads 1-1.dcm in folders of dates: only the first folder has the same name in both. A film with masses and
    calcifications is in both tables, but only once in the result.
    """
    table = _cbis_tables(source)
    folders = _cbis_folders(source)
    table["file"] = [_cbis_file(path, folders) for path in table["image file path"]]
    films = table.groupby(["patient_id", "side", "view"], as_index=False, sort=False)
    films = films.agg({"label": "max", "density": "first", "file": "first"})  # first: the first that is not missing
    return _as_images(
        patient=films.patient_id,
        image=films.patient_id + "_" + films.side + "_" + films["view"],
        laterality=films.side,
        view=films["view"],
        label=films.label,
        density=films.density,
        file=films.file,
    )


def cbis_findings(source: Path) -> pd.DataFrame:
    """Return CBIS-DDSM's findings: ``image``, ``label``, and ``masks``, the files in the mask's folder."""
    table, folders = _cbis_tables(source), _cbis_folders(source)
    names = table.get("ROI mask file path", pd.Series("", table.index))
    masks = [sorted(folders[name].rglob("*.dcm")) if (name := path.split("/")[0]) in folders else [] for path in names]
    kind = table.get("abnormality type", pd.Series("finding", table.index)).str.lower()
    truth = table.pathology.str.lower().str.split("_").str[0]
    image = table.patient_id + "_" + table.side + "_" + table["view"]
    return pd.DataFrame({"image": image, "label": truth + " " + kind, "masks": masks})


def _cbis_tables(source: Path) -> pd.DataFrame:
    tables = [_cbis_table(path) for path in find_all(source, "*_case_description_*_set.csv")]
    return pd.concat(tables, ignore_index=True)


def _cbis_folders(source: Path) -> dict[str, Path]:
    return {folder.name: folder for depth in DEPTHS for folder in source.glob(f"{depth}*_P_*_*") if folder.is_dir()}


def _cbis_table(path: Path) -> pd.DataFrame:
    needed = ["patient_id", "left or right breast", "image view", "pathology", "image file path"]
    table = read_set_table(path, needed, ids=["patient_id", "image view"])
    table = table.rename(columns={"breast density": "breast_density"})  # the name differs from file to file
    return table.assign(
        side=table["left or right breast"].str[:1],
        view=table["image view"],
        label=table.pathology.str.upper().map(CBIS_LABELS).fillna(UNKNOWN),
        density=table.get("breast_density", pd.Series("", table.index)).map(DENSITIES),
    )


def _cbis_file(path: str, folders: dict[str, Path]) -> Path | None:
    folder = folders.get(path.split("/")[0])
    found = sorted(folder.rglob("*.dcm")) if folder else []
    if len(found) > 1:  # in some downloads crops and masks do not have folders of their own
        found = [file for file in found if "full mammogram" in str(file.relative_to(folder))]
    return found[0] if len(found) == 1 else None


def read_inbreast(source: Path) -> pd.DataFrame:
    """Read INbreast: INbreast.csv, and AllDICOMs/IMAGE_PATIENT_MG_SIDE_VIEW_ANON.dcm; only file names give the patient.

    As `read_vindr`; BI-RADS 6 is proven cancer.
    """
    path = find(source, "INbreast.csv")
    table = read_set_table(path, ["Laterality", "View", "File Name", "ACR", "Bi-Rads"], ids=["File Name"])
    matches = (INBREAST_FILE.fullmatch(file.name) for file in sorted((path.parent / "AllDICOMs").glob("*.dcm")))
    found = {match[1]: match for match in matches if match}
    names = [found.get(name) for name in table["File Name"]]
    category = _digits(table["Bi-Rads"])
    return _as_images(
        patient=[match[2] if match else "unknown" for match in names],
        image=table["File Name"],
        laterality=table.Laterality,
        view=table.View,
        label=category.map(BIRADS_LABELS).fillna(UNKNOWN),
        category=category,
        density=table.ACR.map(DENSITIES),
        file=[path.parent / "AllDICOMs" / match[0] if match else None for match in names],
    )


def read_mias(source: Path) -> pd.DataFrame:
    """Read mini-MIAS: Info.txt (README in the original archive), a line per finding, and mdbNNN.pgm, two per patient.

    As `read_vindr`; there is no BI-RADS, and the tissue's F, G, D is another scale than density's A to D. The README
    calls even numbers left, but the names of the original scans (mdb001lm, mdb002rl) call them right; this function
    follows the names.
    """
    lines = mias_lines(source)
    table = pd.DataFrame({"number": [line.number for line in lines]})
    table["label"] = [0.0 if line.kind == "NORM" else {"B": 0.0, "M": 1.0}.get(line.severity, UNKNOWN) for line in lines]
    films = table.groupby("number", as_index=False).label.max()
    files = {file.stem.lower(): file for file in sorted(source.rglob("mdb*")) if file.suffix.lower() in LOSSLESS}
    number = films.number.astype(int)
    return _as_images(
        patient="pair" + ((number + 1) // 2).astype(str).str.zfill(3),
        image="mdb" + films.number,
        laterality=np.where(number % 2 == 1, "L", "R"),
        view="MLO",
        label=films.label,
        file=("mdb" + films.number).map(files),
    )


@dataclass(frozen=True)
class MiasLine:
    """A finding of mini-MIAS; ``place`` is x, y from below, and radius in pixels, None if the film has none."""

    number: str
    kind: str
    severity: str
    place: tuple[int, int, int] | None


def mias_lines(source: Path) -> list[MiasLine]:
    """Return the lines of Info.txt that name a film; raise ExternalError if there are none."""
    path = find(source, "[Ii]nfo.txt", "README")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    groups = [match.groups() for match in map(MIAS_LINE.match, lines) if match]
    if not groups:
        raise ExternalError(f"{path} has no line such as 'mdb001 G CIRC B 535 425 197': give the folder of mini-MIAS.")
    return [
        MiasLine(number, kind, severity or "", None if x is None else (int(x), int(y), int(radius)))
        for number, kind, severity, x, y, radius in groups
    ]


SETS = {
    "vindr": ExternalSet(101, read_vindr, "VinDr-Mammo in DICOM from PhysioNet, doi 10.13026/br2v-7517"),
    "cmmd": ExternalSet(102, read_cmmd, "CMMD in DICOM from The Cancer Imaging Archive (TCIA), doi 10.7937/tcia.eqde-4b16"),
    "cbis": ExternalSet(
        103, read_cbis, "CBIS-DDSM in DICOM from The Cancer Imaging Archive (TCIA), doi 10.7937/K9/TCIA.2016.7O02S9CY"
    ),
    "inbreast": ExternalSet(104, read_inbreast, "INbreast in DICOM from its authors, doi 10.1016/j.acra.2011.09.014"),
    "mias": ExternalSet(105, read_mias, "mini-MIAS as PGM from the Pilot European Image Processing Archive (PEIPA)"),
}


def _as_images(**columns) -> pd.DataFrame:
    """Build a reader's table; columns that it does not give are unknown."""
    images = pd.DataFrame({"category": "", "age": np.nan, "density": "", "model": ""} | columns)
    for name in ("laterality", "view"):
        images[name] = images[name].fillna("").str.strip().str.upper()
    return images[COLUMNS].fillna({"density": "", "model": ""})


def _digits(categories: pd.Series) -> pd.Series:
    """Return the digits of BI-RADS categories such as "BI-RADS 5", "4a" or "6"; empty for those without one."""
    return categories.str.extract(r"(\d)", expand=False).fillna("")


def read_age(text: str) -> float:
    """Return the years of an age such as "053Y", "53" or "53.0"; NaN if it is 0 or no such number."""
    found = re.fullmatch(r"(\d{1,3})(?:\.0*)?Y?", text)
    return float(found[1]) if found and int(found[1]) else np.nan


def check_folders(source: Path, destination: Path, tables: Sequence[str]) -> None:
    """Raise ExternalError if ``source`` can't be searched, or ``destination`` is in it or contains one of ``tables``."""
    if not source.is_dir():
        problem = "is not a folder" if source.exists() else "does not exist"
        raise ExternalError(f"{source} {problem}: give the folder that contains the downloaded set or your DICOM files.")
    if destination.is_relative_to(source):
        raise ExternalError(f"{destination} is in {source}, whose files are searched: choose another place.")
    for name in tables:
        if (destination / name).exists():
            raise ExternalError(f"{destination} already contains {name}: delete the folder, or choose another.")


def find_all(source: Path, *patterns: str) -> list[Path]:
    """Return files of these names in a folder or up to two folders below; raise ExternalError if there are none."""
    found = [path for pattern in patterns for depth in DEPTHS for path in sorted(source.glob(depth + pattern))]
    if not found:
        raise ExternalError(
            f"{source} does not contain {' or '.join(patterns)}: give the folder that the set was downloaded into."
        )
    return found


def find(source: Path, *patterns: str) -> Path:
    """Return the first file of `find_all`."""
    return find_all(source, *patterns)[0]


def read_set_table(path: Path, needed: Sequence[str], ids: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table as stripped text; raise ExternalError if a column is missing or an id is not a plain name."""
    table = _read_excel(path) if path.suffix == ".xlsx" else read_separated(path)
    table.columns = table.columns.str.strip()
    missing = [column for column in needed if column not in table]
    if missing:
        raise ExternalError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(table.columns)}.")
    table = table.dropna(how="all").fillna("").apply(lambda column: column.str.strip()).reset_index(drop=True)
    for column in ids:
        bad = table[column][~table[column].str.fullmatch(ID_PATTERN).astype(bool)]
        if len(bad):
            raise ExternalError(f"{path}, column {column}: {bad.iloc[0]!r} is not a plain name. Download the table again.")
    return table


def read_separated(path: Path) -> pd.DataFrame:
    """Read a CSV with commas or semicolons as text; the index is the line."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    try:
        return read_table(path, ";" if header.count(";") > header.count(",") else ",")
    except TableError as error:
        raise ExternalError(str(error)) from error


def _read_excel(path: Path) -> pd.DataFrame:
    try:
        return pd.read_excel(path, dtype=str)
    except ImportError as error:
        raise ExternalError(f"{path} needs openpyxl (pip install openpyxl); or save it as .csv in the same folder.") from error
    except (ValueError, BadZipFile) as error:
        raise ExternalError(f"{path} is not a readable workbook ({error}); download it again.") from error
