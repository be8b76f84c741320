"""Any folder of DICOMs as a competition folder, from the files' headers alone.

Without labels it becomes a test part, for which submit.ipynb predicts one probability per breast. With labels it
becomes a training part. ``files.csv`` in the new folder has a row per DICOM: its ids in the competition, what its
header lacks, and why it was left out. Fill in what is missing, and pass it as ``--labels``.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.files import link_or_copy, write_csv
from utils.core.folders import resolve
from utils.core.progress import progress_bar
from utils.external.headers import Facts, read_facts
from utils.external.labels import Labels
from utils.external.sets import SHOWN, ExternalError, check_folders
from utils.phantom.competition import TEST_COLUMNS, TRAIN_COLUMNS
from utils.tables.competition import ID_PATTERN, image_paths

NAME = "folder"
PREFIX = "own"
FILES_FILE = "files.csv"
FILES_COLUMNS = [
    "file", "patient_id", "laterality", "view", "age", "implant",
    "competition_patient_id", "competition_image_id", "prediction_id",
    "lacking", "taken_from", "notes", "left_out", "machine", "institution", "study",
]  # fmt: skip
UNKNOWN_SITE = 106  # the public sets have 101 to 105
UNKNOWN_MACHINE = 10600
FIRST_CODE, CODES = 10_000_000, 90_000_000  # for named institutions and machines; far from RSNA's
LONGEST_PLAIN = 64  # characters of a file's or patient's name that an id repeats
DIGEST = 10  # hexadecimal digits that distinguish texts that can't name a file
CONSEQUENCES = {"patient": "; each study counts as a patient of its own", "implant": "; these count as 0"}  # of missing values
NEXT = {
    "train": "Next: papermill notebooks/train.ipynb outputs/train.ipynb -p competition_dir {}",
    "test": "Next: papermill notebooks/submit.ipynb outputs/submit.ipynb -p competition_dir {}",
}
GIVEN = "the CSV"
NO_SIDE = "its header does not say left or right: add it in the column laterality of a CSV (--labels)"
NO_LABEL = "the CSV does not say whether its breast has cancer"
BOTH_SIDES = "it shows both breasts"
RAW = "it is for processing, and an image of the same view for presentation exists"


def convert_folder(
    source: str | Path,
    destination: str | Path,
    labels: str | Path | None = None,
    copy: bool = False,
    prefix: str = PREFIX,
    any_modality: bool = False,
) -> pd.DataFrame:
    """Write a folder of DICOMs as a competition folder, print a summary, and return the rows of train.csv or test.csv.

    ``labels`` is a CSV as `utils.external.labels.Labels` reads it; with a column ``cancer`` it makes the folder a
    training part. Ids begin with ``prefix``; the same patient has the same id in all folders of one prefix.
    ``any_modality`` takes images whose Modality or class is not a mammogram's, such as scanned films. Unknown values
    are empty, but an unknown implant is 0. Raise ExternalError if no DICOM can be used, ``labels`` is not as expected,
    or ``destination`` is taken.
    """
    source, destination = resolve(source), resolve(destination)
    labels = resolve(labels) if labels else None
    check_folders(source, destination, ("train.csv", "test.csv"))
    if labels and labels.is_relative_to(destination):
        raise ExternalError(f"{labels} is in {destination}, where {FILES_FILE} is written: move it elsewhere first.")
    if not re.fullmatch(r"[A-Za-z0-9]{1,20}", prefix):
        raise ExternalError(f"The prefix is {prefix!r}, but must be 1 to 20 letters and digits.")
    table = Labels(labels) if labels else None
    split = "train" if table and table.has_cancer else "test"
    images, others = _read_folder(source)
    images = _name_patients(images)
    images = _mark_given(images, table.add_to(images, source)) if table else images.assign(cancer=np.nan)
    images = _settle(images, source, any_modality, split == "train")
    images = _with_ids(images, prefix)
    images = images.assign(lacking=_lacking(images), notes=_notes(images))
    write_csv(destination / FILES_FILE, _files_table(images))
    used = images[images.left_out == ""]
    if used.empty:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in images.left_out.value_counts().items())
        raise ExternalError(
            f"{source}: none of {len(images)} DICOM files can be used. {reasons}. See {destination / FILES_FILE}."
        )
    rows = _competition_table(used, split)
    targets = image_paths(rows, destination, split)
    files = [source / name for name in used.file]
    for file, target in progress_bar([*zip(files, targets, strict=True)], "Placing files", "files"):
        link_or_copy(file, target, copy)
    rows = rows.sort_values(["patient_id", "image_id"]).reset_index(drop=True)
    write_csv(destination / f"{split}.csv", rows)
    for line in _describe(images, rows, others, destination, split):
        print(line.encode(errors="backslashreplace").decode())  # a file's name need not be Unicode
    return rows


def _read_folder(source: Path) -> tuple[pd.DataFrame, int]:
    """Return the facts of each DICOM file, in the order of their paths, and the number of other files."""
    paths = sorted(_walk(source))
    progress = progress_bar(paths, "Reading headers", "files")
    facts = [read_facts(path, path.relative_to(source).as_posix()) for path in progress]
    found = [asdict(one) for one in facts if one is not None]
    if not found:
        raise ExternalError(f"{source} contains no DICOM file among {len(paths)} files: give the folder that contains them.")
    images = pd.DataFrame(found, columns=[*Facts.__dataclass_fields__])
    text = ["patient", "issuer", "study", "instance", "laterality", "view", "machine", "institution", "left_out"]
    return images.astype(dict.fromkeys(text, object) | {"age": float, "implant": float}), len(paths) - len(found)


def _walk(source: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ExternalError(f"{error.filename} can't be listed ({error.strerror}): make it readable, or move it away.")

    for folder, _, names in os.walk(source, onerror=refuse):
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def _name_patients(images: pd.DataFrame) -> pd.DataFrame:
    """Give each image a patient, never the same for two who may be different people.

    If a header names no patient, its study stands in; if it names no study either, the file does. An issuer is added to
    an id that several hospitals gave.
    """
    is_shared = (images.patient != "") & (images.groupby("patient").issuer.transform("nunique") > 1)
    named = images.patient.where(~is_shared, images.patient + " (" + images.issuer + ")")
    stand_in = images.study.where(images.study != "", images.file)
    source = np.select([images.patient != "", images.study != ""], ["", "StudyInstanceUID"], "the file")
    return images.assign(patient=named.where(images.patient != "", stand_in), patient_from=source)


def _mark_given(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Note in ``taken_from`` and ``patient_from`` what the user's table changed."""
    for column in ("laterality", "view", "age", "implant"):
        changed = (before[column] != after[column]) & after[column].notna()
        for taken_from in after.taken_from[changed]:
            taken_from[column] = GIVEN
    return after.assign(patient_from=after.patient_from.where(before.patient == after.patient, GIVEN))


def _settle(images: pd.DataFrame, source: Path, any_modality: bool, is_train: bool) -> pd.DataFrame:
    """Set ``left_out``, the reason why an image is left out, else empty; for training, also one ``cancer`` a breast."""
    left_out = images.left_out.where(~(images.is_other_kind & any_modality), "")
    left_out = left_out.where(~images.is_other_kind | (left_out == ""), left_out + " (--any-modality includes it)")
    images = images.assign(left_out=left_out)
    images = _leave_out(images, images.laterality == "B", BOTH_SIDES)
    images = _leave_out(images, ~images.laterality.isin(["L", "R"]), NO_SIDE)
    repeated = _repeated(images, source)
    images.loc[repeated.index, "left_out"] = "it is the same file as " + repeated
    is_used = images.left_out == ""
    view = ["patient", "study", "laterality", "view"]
    presented = (is_used & ~images.for_processing).groupby([images[name] for name in view]).transform("any")
    images = _leave_out(images, images.for_processing & presented, RAW)
    if is_train:
        images["cancer"] = images.groupby(["patient", "laterality"]).cancer.transform("max")
        images = _leave_out(images, images.cancer.isna(), NO_LABEL)
    return images


def _leave_out(images: pd.DataFrame, which: pd.Series, reason: str) -> pd.DataFrame:
    return images.assign(left_out=images.left_out.mask(which & (images.left_out == ""), reason))


def _repeated(images: pd.DataFrame, source: Path) -> pd.Series:
    """Return the rows whose file is a copy of an earlier one (same UID, same bytes), with that file's name.

    Careless anonymisers give all images one UID, so the UID alone proves nothing.
    """
    used = images[(images.left_out == "") & (images.instance != "")]
    used = used.assign(size=[(source / file).stat().st_size for file in used.file])
    used = used[used.duplicated(["instance", "size"], keep=False)]
    used = used.assign(digest=[hashlib.sha256((source / file).read_bytes()).digest() for file in used.file])
    first = used.groupby(["instance", "digest"]).file.transform("first")
    return first[first != used.file]


def _with_ids(images: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """Add patient_id, image_id and prediction_id, which can name files and differ wherever the originals do."""
    patient_id = f"{prefix}_" + plain_names(images.patient)
    return images.assign(
        patient_id=patient_id,
        image_id=f"{prefix}_" + _image_names(images.file),
        prediction_id=patient_id + "_" + images.laterality,
    )


def _image_names(files: pd.Series) -> pd.Series:
    """Return each file's name without its ending, with a digest of the path if several files have that name."""
    stems = files.str.rsplit("/", n=1).str[-1].str.replace(r"\.(dcm|dicom|ima)$", "", case=False, regex=True)
    is_repeated = stems.str.casefold().duplicated(keep=False)
    return plain_names(stems).where(~is_repeated, _cleaned(stems) + "-" + files.map(_digest))


def plain_names(texts: pd.Series) -> pd.Series:
    """Map texts to names that can be part of a file's name: equal for equal texts, different for different texts.

    A text that is such a name stays as it is. Others get "_" for special characters, and a digest of the text. So do
    texts that differ only in case, since some file systems ignore it, and texts that look like a name with a digest.
    """
    unique = texts.drop_duplicates()
    folded = unique.str.casefold()
    is_plain = unique.str.fullmatch(ID_PATTERN).astype(bool) & (unique.str.len() <= LONGEST_PLAIN)
    is_plain &= ~folded.duplicated(keep=False) & ~folded.str.contains(rf"-[0-9a-f]{{{DIGEST}}}$")
    altered = _cleaned(unique) + "-" + unique.map(_digest)
    return texts.map(dict(zip(unique, unique.where(is_plain, altered), strict=True)))


def _cleaned(texts: pd.Series) -> pd.Series:
    return texts.str.replace(r"[^A-Za-z0-9_.-]", "_", regex=True).str[:LONGEST_PLAIN]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:DIGEST]


def code_of(name: str, unknown: int) -> int:
    """Return the number of an institution or machine, the same in every folder, or ``unknown`` if the name is blank.

    Blanks and capitals do not count.
    """
    plain = " ".join(name.casefold().split())
    return FIRST_CODE + int(hashlib.sha256(plain.encode()).hexdigest(), 16) % CODES if plain else unknown


def _competition_table(images: pd.DataFrame, split: str) -> pd.DataFrame:
    table = images.assign(
        site_id=[code_of(name, UNKNOWN_SITE) for name in images.institution],
        machine_id=[code_of(name, UNKNOWN_MACHINE) for name in images.machine],
        implant=images.implant.fillna(0).astype(int),
    )
    if split == "train":
        table["cancer"] = table.cancer.astype(int)
    return table.reindex(columns=list(TRAIN_COLUMNS if split == "train" else TEST_COLUMNS))


def _lacking(images: pd.DataFrame) -> list[list[str]]:
    """Return, for each image, the names of what neither header nor label states."""
    missing = pd.DataFrame(
        {
            "patient": ~images.patient_from.isin(["", GIVEN]),
            "laterality": images.laterality == "",
            "view": images["view"] == "",
            "age": images.age.isna(),
            "implant": images.implant.isna(),
            "machine": images.machine == "",
            "institution": images.institution == "",
        }
    )
    return [list(missing.columns[row]) for row in missing.to_numpy()]


def _notes(images: pd.DataFrame) -> list[list[str]]:
    births = images.birth_date.where(images.birth_date != "").groupby(images.patient).transform("nunique")
    notes = []
    for row, n_births in zip(images.itertuples(), births, strict=True):
        notes.append([*row.notes])
        if row.for_processing:
            notes[-1].append("for processing: raw values")
        if n_births > 1:
            notes[-1].append("its patient has two dates of birth: if these are two people, give each their own patient_id")
    return notes


def _files_table(images: pd.DataFrame) -> pd.DataFrame:
    """Return the table of all DICOM files; its first columns are those that `Labels` reads."""
    is_used = images.left_out == ""
    taken_from = [{"patient_id": row.patient_from} | row.taken_from for row in images.itertuples()]
    table = images.assign(
        patient_id=images.patient,
        laterality=images.laterality.replace("B", ""),
        competition_patient_id=images.patient_id.where(is_used, ""),
        competition_image_id=images.image_id.where(is_used, ""),
        prediction_id=images.prediction_id.where(is_used, ""),
        lacking=images.lacking.str.join(", "),
        taken_from=["; ".join(f"{name}: {element}" for name, element in taken.items() if element) for taken in taken_from],
        notes=images.notes.str.join("; "),
    )
    return table[FILES_COLUMNS]


def _describe(images: pd.DataFrame, rows: pd.DataFrame, others: int, destination: Path, split: str) -> Iterator[str]:
    """Yield lines about what was written, what the headers lack, and what was left out."""
    is_used = images.left_out == ""
    used = images[is_used]
    breasts = rows.drop_duplicates(["patient_id", "laterality"])
    cancer = f", {int(breasts.cancer.sum())} with cancer" if split == "train" else ""
    counted = {"image": len(rows), "patient": rows.patient_id.nunique(), "breast": len(breasts)}
    counts = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counted.items())
    yield f"{destination / split}.csv: {counts}{cancer}."
    yield f"  skipped, not DICOM: {others}"
    for reason, count in images.left_out[~is_used].value_counts().items():
        yield f"  left out {count}: {reason}"
    for name, count in used.lacking.explode().value_counts().items():
        yield f"  headers without {name}: {count} of {len(used)}{CONSEQUENCES.get(name, '')}"
    described = used.file[[taken.get("laterality", GIVEN) != GIVEN for taken in used.taken_from]]
    if len(described):
        yield f"  sides read from descriptions: {len(described)}, first {', '.join(described[:SHOWN])}; check them"
    noted = (used.notes.str.len() > 0).sum()
    if noted:
        yield f"  images with notes in {FILES_FILE}: {noted}"
    is_named = ["patient" not in names for names in used.lacking]
    several = (used[is_named].groupby("patient").study.nunique() > 1).sum()
    if several:
        yield f"  patients with several exams: {several}; they count as one, unless a CSV gives each its own patient_id"
    yield f"{destination / FILES_FILE} describes every file. It names patients: do not share it."
    yield NEXT[split].format(destination)
