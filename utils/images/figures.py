"""Figures of cached images, and helpers that all figures share."""

import math
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.text import Text

from utils.images.cached import load_picture, picture_path

SHOWN = 12  # images at most
COLUMNS = 6


def show_pictures(images: pd.DataFrame, cache_dir: str | Path, split: str) -> plt.Figure:
    """Show cached images, half of them with cancer if the table has labels, titled with view, laterality and label.

    Parameters
    ----------
    images : DataFrame
        From `utils.tables.read_images`.
    split : {"train", "test"}
    """
    present = images[[picture_path(cache_dir, split, image_id).is_file() for image_id in images.image_id]]
    if "cancer" in present:
        present = pd.concat([present[present.cancer == label].head(SHOWN // 2) for label in (1, 0)])
    present = present.head(SHOWN)
    rows = max(1, math.ceil(len(present) / COLUMNS))
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2 * COLUMNS, 3.4 * rows), squeeze=False, layout="tight")
    draw_pictures(axes.flat, present, cache_dir, split)
    return finished(figure)


def draw_pictures(axes: Iterable[plt.Axes], images: pd.DataFrame, cache_dir: str | Path, split: str) -> None:
    """Draw one cached image into each of the axes, titled with view, laterality and label; blank the remaining axes."""
    for axis, row in zip_longest(axes, images.itertuples()):
        axis.axis("off")
        if row is None:
            continue
        axis.imshow(load_picture(cache_dir, split, row.image_id), cmap="gray", vmin=0, vmax=255)
        label = ", cancer" if getattr(row, "cancer", 0) == 1 else ""
        axis.set_title(f"{row.laterality} {row.view}{label}", fontsize=9)


def in_legend(name: str) -> str:
    """Return a name so that matplotlib shows it in a legend: it omits names that begin with "_"."""
    drawable = name.encode(errors="replace").decode()  # a folder's name may not be Unicode
    return f" {drawable}" if drawable.startswith("_") else drawable


def finished(figure: plt.Figure) -> plt.Figure:
    """Close a pyplot figure and return it, for a notebook to show.

    Its texts are shown literally: matplotlib would read names with two "$" as mathematics.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    plt.close(figure)  # else a notebook shows it twice: when returned, and as an open figure
    return figure
