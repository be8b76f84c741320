"""Turn a public set of mammograms into a competition folder of this kit, as additional training data.

``python -m utils.external vindr SOURCE DEST`` writes ``DEST/train.csv``, ``DEST/train_images/PATIENT/IMAGE.dcm``, and
``DEST/boxes.csv`` if the set has boxes. train.ipynb takes such folders as ``extra_competition_dirs``.
`utils.external.sets` defines what is read of each set and what counts as cancer, `utils.external.boxes` the boxes.
``folder`` takes any folder of DICOMs: see `utils.external.folder`.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from utils.core.errors import KitError
from utils.core.files import link_or_copy, write_atomic, write_csv
from utils.core.folders import resolve
from utils.core.progress import progress_bar
from utils.external import folder
from utils.external.boxes import BOXES, clip_boxes
from utils.external.sets import LOSSLESS, RSNA_BIRADS, SETS, UNKNOWN, ExternalError, check_folders
from utils.images.cached import read_picture
from utils.phantom.competition import TRAIN_COLUMNS
from utils.tables.boxes import BOXES_FILE
from utils.tables.boxes import COLUMNS as BOX_COLUMNS
from utils.tables.competition import image_paths

CONVERTED = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}  # what mirrors of DICOM sets contain
NO_FILE = "its file is missing, or its header can't be read"
NO_VIEW = "its side or view is unknown"
NO_TRUTH = "the truth of its breast is unknown (BI-RADS 4, or no row in the set's table)"
MACHINES_OF_SITE = 100  # machine_id is site_id * 100 + the model's number: far from RSNA's, which end at 216


def convert(
    name: str, source: str | Path, destination: str | Path, copy: bool = False, birads_4: int | None = None
) -> pd.DataFrame:
    """Write a public set as a competition folder, print what is used and left out, and return the rows of train.csv.

    DICOMs are linked or copied; PGM and PNG become uncompressed DICOMs, without loss. Ids begin with the set's name, so
    that sets do not share ids. ``birads_4`` is what BI-RADS 4 counts as; None leaves those breasts out. Unknown ages
    are NaN, unknown implants 0. train.csv is written last, so a killed run starts again. Raise ExternalError if the set
    or its files are not as expected, no image can be used, or ``destination`` is taken.
    """
    if name not in SETS:
        raise ExternalError(f"There is no set {name!r}: choose from {', '.join(SETS)}.")
    if birads_4 not in (None, 0, 1):
        raise ExternalError(f"birads_4 is {birads_4!r}, but must be 0, 1 or None.")
    source, destination = resolve(source), resolve(destination)
    check_folders(source, destination, ("train.csv",))
    images = SETS[name].read(source)
    if birads_4 is not None:
        images.loc[images.category == "4", "label"] = float(birads_4)
    images = _settle(images)
    table = _as_train_table(images, name)
    targets = image_paths(table, destination, "train")
    rows = np.flatnonzero(images.reason == "")
    progress = progress_bar(rows, f"Converting {name}", "images")
    images.loc[rows, "reason"] = [_place(images.file[row], targets[row], copy) for row in progress]
    is_used = (images.reason == "").to_numpy()
    used = table[is_used]
    left_out = images.reason[~is_used].value_counts()
    if not len(used):
        reasons = "; ".join(left_out.index)
        raise ExternalError(f"{source}: none of {len(images)} images can be used: {reasons}.{_mirror(source, name)}")
    boxes, summary = _read_boxes(name, source, images[is_used], destination, used)
    (destination / BOXES_FILE).unlink(missing_ok=True)
    if len(boxes):
        write_csv(destination / BOXES_FILE, boxes)
    used = used.sort_values(["patient_id", "image_id"]).reset_index(drop=True)
    write_csv(destination / "train.csv", used)
    print(describe(used, left_out, name), summary, sep="\n")
    return used


def _mirror(source: Path, name: str) -> str:
    """Return a sentence if a folder contains images that were converted from a set's files, else an empty string."""
    found = next((path for path in source.rglob("*") if path.suffix.lower() in CONVERTED), None)
    if found is None:
        return ""
    kind, path = CONVERTED[found.suffix.lower()], found.relative_to(source)
    return (
        f" It is a mirror of the set with {kind} images, such as {path}, whose values are not the original ones. Download the"
        f" original files: {SETS[name].origin}."
    )


def _read_boxes(
    name: str, source: Path, images: pd.DataFrame, destination: Path, table: pd.DataFrame
) -> tuple[pd.DataFrame, str]:
    """Return the boxes of the used images in the columns of boxes.csv, and a line that describes them."""
    if name not in BOXES:
        return pd.DataFrame(columns=BOX_COLUMNS), "  no boxes: the set has none"
    try:
        boxes = BOXES[name](source, images)
    except ExternalError as error:
        return pd.DataFrame(columns=BOX_COLUMNS), f"  no boxes: {error}"
    files = dict(zip(table.image_id, image_paths(table, destination, "train"), strict=True))
    boxes = boxes.assign(image_id=f"{name}_" + boxes.image)
    boxes = clip_boxes(boxes[boxes.image_id.isin(files)], files)[BOX_COLUMNS]
    return boxes, f"  {len(boxes)} boxes in {boxes.image_id.nunique()} of {len(table)} images"


def describe(table: pd.DataFrame, left_out: pd.Series, name: str) -> str:
    """Return a text on what was converted, and how many images were left out for each reason."""
    breasts = table.drop_duplicates(["patient_id", "laterality"])
    lines = [
        f"{name}: {len(table)} images of {table.patient_id.nunique()} patients; {breasts.cancer.sum()} of {len(breasts)}"
        f" breasts have cancer. Site {SETS[name].site_id}, {table.machine_id.nunique()} machine(s), age known of"
        f" {table.age.notna().mean():.0%}."
    ]
    return "\n".join(lines + [f"  left out {count}: {reason}" for reason, count in left_out.items()])


def _settle(images: pd.DataFrame) -> pd.DataFrame:
    """Add ``cancer``, one label per breast, and ``reason``: why an image is left out, empty if it is used."""
    label = images.groupby(["patient", "laterality"]).label.transform("max")
    there = [isinstance(file, Path) and file.is_file() for file in images.file]
    is_seen = images.laterality.isin(["L", "R"]) & (images["view"] != "")
    reason = np.select(
        [~np.array(there, dtype=bool), ~is_seen, label == UNKNOWN, images.image.duplicated()],
        [NO_FILE, NO_VIEW, NO_TRUTH, "it is listed twice"],
        default="",
    )
    return images.assign(cancer=(label == 1).astype(int), reason=reason)


def _as_train_table(images: pd.DataFrame, name: str) -> pd.DataFrame:
    site = SETS[name].site_id
    models = {model: number for number, model in enumerate(sorted(set(images.model) - {""}), start=1)}
    table = images[["laterality", "view", "age", "cancer", "density"]].assign(
        site_id=site,
        patient_id=f"{name}_" + images.patient,
        image_id=f"{name}_" + images.image,
        BIRADS=images.category.map(RSNA_BIRADS),
        implant=0,
        machine_id=site * MACHINES_OF_SITE + images.model.map(models).fillna(0).astype(int),
    )
    return table.reindex(columns=list(TRAIN_COLUMNS))


def _place(file: Path, target: Path, copy: bool) -> str:
    """Link, copy or convert an image's file to ``target``; return the reason if that fails, else an empty text."""
    if file.suffix.lower() not in LOSSLESS:
        link_or_copy(file, target, copy)
        return ""
    picture = read_picture(file, cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 2:
        return "its image can't be read, or is in colour"
    _write_dicom(target, picture)
    return ""


def _write_dicom(path: Path, picture: np.ndarray) -> None:
    """Write a grey image, uint8 or uint16, uncompressed, with a window that leaves its values as they are."""
    bits = 8 * picture.itemsize
    dataset = Dataset()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.stem])
    dataset.set_pixel_data(picture, "MONOCHROME2", bits, generate_instance_uid=False)
    dataset.WindowCenter = 2 ** (bits - 1)
    dataset.WindowWidth = 2**bits
    with write_atomic(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def main(arguments: list[str] | None = None) -> None:
    """Convert one set, or a folder of DICOMs, from the command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.external", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*SETS, folder.NAME], help="a public set, or folder: any folder of DICOMs")
    parser.add_argument("source", help="folder of the set as it is distributed, or of your DICOMs")
    parser.add_argument("destination", help="new folder, for extra_competition_dirs of train.ipynb, or competition_dir")
    parser.add_argument("--copy", action="store_true", help="copy DICOMs instead of linking them")
    sets = parser.add_argument_group("public sets")
    sets.add_argument("--birads-4", type=int, choices=(0, 1), help="what BI-RADS 4 counts as; left out by default")
    own = parser.add_argument_group("folder")
    own.add_argument("--labels", help="CSV: file, or patient_id and laterality; cancer, and what headers lack")
    own.add_argument("--prefix", default=folder.PREFIX, help=f"ids begin with it; {folder.PREFIX} by default")
    own.add_argument("--any-modality", action="store_true", help="take other Modalities and secondary captures too")
    given = parser.parse_args(arguments)
    is_folder = given.name == folder.NAME
    if not is_folder and (given.labels or given.any_modality or given.prefix != folder.PREFIX):
        parser.error("--labels, --prefix and --any-modality go with folder")
    if is_folder and given.birads_4 is not None:
        parser.error("--birads-4 goes with a public set")
    try:
        if is_folder:
            folder.convert_folder(
                given.source,
                given.destination,
                labels=given.labels,
                copy=given.copy,
                prefix=given.prefix,
                any_modality=given.any_modality,
            )
        else:
            convert(given.name, given.source, given.destination, copy=given.copy, birads_4=given.birads_4)
    except KitError as error:
        sys.exit(f"{type(error).__name__}: {error}")
