"""Boxes around the findings of public sets, in the columns of boxes.csv and in pixels of the stored pictures.

- ``vindr``: finding_annotations.csv has boxes; the label is the finding's categories and BI-RADS.
- ``cbis``: the box of each ROI mask image; malignant or benign, mass or calcification.
- ``inbreast``: the box of each outline in AllXML; its name and the image's BI-RADS.
- ``mias``: centre and radius in Info.txt, whose y axis points up; the kind, and B or M.
"""

import ast
import plistlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.parsers.expat import ExpatError

import cv2
import numpy as np
import pandas as pd

from utils.core.progress import progress_bar
from utils.dicom.file import DicomError, open_dicom
from utils.external.sets import cbis_findings, find, mias_lines, read_set_table
from utils.images.cached import read_picture
from utils.tables.boxes import CORNERS

COLUMNS = ["image", *CORNERS, "label"]
POINT = re.compile(r"\(\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\)")
WHOLE_SHAPE_RATIO = 0.02  # a mask with another aspect ratio than its film is a crop


def vindr_boxes(source: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Read VinDr-Mammo's boxes of ``images``, as `utils.external.sets` reads them; an image may have several.

    Columns are `COLUMNS`; corners are half-open, in pixels of the stored picture.
    """
    path = find(source, "finding_annotations.csv")
    corners = ["xmin", "ymin", "xmax", "ymax"]
    table = read_set_table(path, ["image_id", "finding_categories", "finding_birads", *corners], ids=["image_id"])
    table[CORNERS] = table[corners].apply(pd.to_numeric, errors="coerce")
    table = table.dropna(subset=CORNERS)  # an image without a finding has a row, but no box
    table["label"] = [
        f"{_names(found)} {birads}".strip()
        for found, birads in zip(table.finding_categories, table.finding_birads, strict=True)
    ]
    return table.rename(columns={"image_id": "image"})[COLUMNS]


def _names(categories: str) -> str:
    """Return the findings of a cell such as "['Mass', 'Nipple Retraction']", separated by commas."""
    try:
        names = ast.literal_eval(categories)
    except (ValueError, SyntaxError):
        return categories
    return ", ".join(map(str, names)) if isinstance(names, list | tuple) else str(names)


def cbis_boxes(source: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Read CBIS-DDSM's boxes from its ROI mask images, in the form of `vindr_boxes`.

    A finding's mask and crop share a folder, and downloads confuse their names: the mask is the one with the film's
    shape. A mask of another size than its film is scaled to it.
    """
    findings = cbis_findings(source)
    films = images.set_index("image").file
    findings = findings[findings.image.map(films).notna()]
    rows = []
    for finding in progress_bar(findings.itertuples(), "Reading masks", "masks", len(findings)):
        box = _box_of_masks(finding.masks, films[finding.image])
        if box is not None:
            rows.append([finding.image, *box, finding.label])
    return pd.DataFrame(rows, columns=COLUMNS)


def _box_of_masks(masks: Iterable[Path], film: Path) -> np.ndarray | None:
    """Return the box of the first mask that can be read and has the film's shape; None if there is none."""
    try:
        with open_dicom(film) as file:
            rows, columns = file.shape
    except DicomError:
        return None
    for path in masks:
        try:
            with open_dicom(path) as file:
                height, width = file.shape
                if abs(height * columns / (width * rows) - 1) > WHOLE_SHAPE_RATIO or height * 2 < rows:
                    continue
                left, top, across, down = cv2.boundingRect((file.stored() > 0).astype(np.uint8))
        except DicomError:
            continue
        if across:
            scale_x, scale_y = columns / width, rows / height
            return np.array([left * scale_x, top * scale_y, (left + across) * scale_x, (top + down) * scale_y])
    return None


def inbreast_boxes(source: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Read INbreast's boxes from its outlines, AllXML/IMAGE.xml, in the form of `vindr_boxes`."""
    table = find(source, "INbreast.csv")
    known = read_set_table(table, ["File Name", "Bi-Rads"], ids=["File Name"]).set_index("File Name")["Bi-Rads"]
    rows = []
    for path in sorted((table.parent / "AllXML").glob("*.xml")):
        for name, points in _outlines(path):
            low, high = points.min(axis=0), points.max(axis=0) + 1
            label = f"{name} BI-RADS {known[path.stem]}" if path.stem in known.index else name
            rows.append([path.stem, *low, *high, label])
    return pd.DataFrame(rows, columns=COLUMNS)


def _outlines(path: Path) -> Iterable[tuple[str, np.ndarray]]:
    """Yield the name and the points (x, y) of each of an image's outlines; nothing if the file can't be read."""
    try:
        with open(path, "rb") as file:
            images = plistlib.load(file)["Images"]
        regions = [region for image in images for region in image["ROIs"]]
        found = [(str(region["Name"]), [POINT.match(point) for point in region["Point_px"]]) for region in regions]
    except (plistlib.InvalidFileException, ExpatError, ValueError, KeyError, TypeError, AttributeError):
        return
    for name, matches in found:
        points = [(float(match[1]), float(match[2])) for match in matches if match]
        if points:
            yield name, np.array(points)


def mias_boxes(source: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Read mini-MIAS's circles as boxes, in the form of `vindr_boxes`; its y axis points up."""
    files, rows = images.set_index("image").file, []
    for line in mias_lines(source):
        image, file = f"mdb{line.number}", files.get(f"mdb{line.number}")
        picture = read_picture(file, cv2.IMREAD_UNCHANGED) if line.place and isinstance(file, Path) else None
        if picture is not None:
            x, up, radius = line.place
            y = picture.shape[0] - up
            rows.append([image, x - radius, y - radius, x + radius, y + radius, f"{line.kind} {line.severity}"])
    return pd.DataFrame(rows, columns=COLUMNS)


def clip_boxes(boxes: pd.DataFrame, files: pd.Series) -> pd.DataFrame:
    """Clip boxes (``image_id`` and corners) to their images, and drop those that are then empty.

    ``files`` maps image_id to DICOM file.
    """
    shapes = {}
    for image_id in boxes.image_id.unique():
        try:
            with open_dicom(files[image_id]) as file:
                shapes[image_id] = file.shape
        except DicomError:  # preprocessing reports it
            shapes[image_id] = (np.inf, np.inf)
    height, width = np.array([shapes[image_id] for image_id in boxes.image_id], dtype=float).reshape(-1, 2).T
    clipped = boxes.copy()
    for corner, limit in zip(CORNERS, (width, height, width, height), strict=True):
        clipped[corner] = boxes[corner].clip(0, limit)
    return clipped[(clipped.x_max > clipped.x_min) & (clipped.y_max > clipped.y_min)]


BOXES: dict[str, Callable[[Path, pd.DataFrame], pd.DataFrame]] = {
    "vindr": vindr_boxes,
    "cbis": cbis_boxes,
    "inbreast": inbreast_boxes,
    "mias": mias_boxes,
}
