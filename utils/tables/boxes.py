"""boxes.csv of a competition folder: boxes around findings, in pixels of the stored images."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.tables.strict_csv import TableError, read_table

CORNERS = ["x_min", "y_min", "x_max", "y_max"]
COLUMNS = ["image_id", *CORNERS, "label"]
BOXES_FILE = "boxes.csv"  # of a competition folder


def read_boxes(path: str | Path) -> pd.DataFrame:
    """Read and check a table of boxes: image_id, x_min, y_min, x_max, y_max, label.

    Parameters
    ----------
    path : path
        A CSV. Corners are pixels of the stored image, half open; an image may have several boxes.

    Returns
    -------
    DataFrame
        image_id and label as str, corners as float.

    Raises
    ------
    TableError
        If the file does not exist or can't be read, a column or a value is missing, a corner is not a finite number, or a box
        is empty.
    """
    try:
        boxes = read_table(path, required=COLUMNS)
    except TableError as error:
        raise TableError(f"{error} boxes_path must name a CSV with {', '.join(COLUMNS)}.") from error
    for column in CORNERS:
        boxes[column] = pd.to_numeric(boxes[column], errors="coerce").astype(float)
    whole = np.isfinite(boxes[CORNERS]).all(axis=1) & boxes.image_id.notna() & boxes.label.notna()
    bad = boxes[~(whole & (boxes.x_max > boxes.x_min) & (boxes.y_max > boxes.y_min))]
    if len(bad):
        raise TableError(
            f"{path}, line {bad.index[0]}: a box needs an image_id, a label, and numbers with x_min < x_max and y_min < y_max."
        )
    return boxes[COLUMNS].reset_index(drop=True)
