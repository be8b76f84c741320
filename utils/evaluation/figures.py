"""Figures of explanations: maps over the original images, right and wrong decisions side by side."""

import textwrap
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from utils.dicom.file import open_dicom
from utils.evaluation.explanation import to_source_map
from utils.evaluation.pointing import strongest_place
from utils.images.cached import read_manifest
from utils.images.figures import finished
from utils.images.inputs import Inputs
from utils.metrics.scores import decide
from utils.tables.competition import image_paths

TALLEST = 600  # px; height of a shown image, at most
LEAST_SHOWN = 0.5  # share of a map's maximum; nothing is drawn below it
DENSEST = 0.55  # opacity where a map is strongest, so that the tissue still shows through
DPI = 80
MOST_DIGITS = 6  # of a probability that is close to its threshold
COLUMN_WIDTH, TITLE_HEIGHT = 2.4, 0.6  # inches
TALLEST_SHAPE = 1.25  # height over width of an axis, at most
HEAT = LinearSegmentedColormap.from_list("heat", ["#e69f00", "#ffe34d"])  # orange to yellow; nobody takes it for grey
BOX_COLOUR, MARK_COLOUR = "#56b4e9", "#f0a3cc"  # sky blue; pink
CAPTION = (
    f"Orange to yellow: where the map is {LEAST_SHOWN:.0%} to 100% of the image's strongest; not comparable between images."
    " Cross: its strongest place."
)


def show_explanations(
    examples: pd.DataFrame,
    maps: dict[str, np.ndarray],
    inputs: Inputs,
    boxes: pd.DataFrame | None = None,
    heading: str = "",
) -> plt.Figure:
    """Show maps on the original images, one row per kind of decision; an image without a map is shown bare.

    ``examples`` are image rows with kind and probability, and threshold if one decided. ``inputs`` has the images and
    the cache that the maps are of. ``boxes`` are outlined, those with a true ``predicted`` dashed. ``heading`` says
    whose the probabilities are.
    """
    manifest = read_manifest(inputs.cache_dir, "train", inputs.settings).set_index("image_id")
    paths = dict(zip(examples.image_id, image_paths(examples, inputs.competition_dir, "train"), strict=True))
    figure, axes = _grid(examples, manifest)
    for (_, rows), row_axes in zip(examples.groupby("kind", sort=False), axes, strict=False):
        for row, axis in zip(rows.itertuples(), row_axes, strict=False):
            heat, placed = maps.get(row.image_id), manifest.loc[row.image_id]
            heat = None if heat is None else to_source_map(heat, placed, inputs.settings)
            found = None if boxes is None else boxes[boxes.image_id == row.image_id]
            shape = int(placed.source_height), int(placed.source_width)
            draw_overlay(axis, read_original(paths[row.image_id]), shape, heat, found)
            axis.set_title(_title(row, heat), fontsize=8)
    blue = "" if boxes is None else " Blue: true findings."
    dashed = " Dashed: predicted." if boxes is not None and "predicted" in boxes else ""
    width = int(figure.get_figwidth() * 15)  # characters
    left = {"x": 0.01, "horizontalalignment": "left"}  # a phone shows the left part first
    figure.suptitle(textwrap.fill(heading, width), fontsize=9, **left)
    figure.supxlabel(textwrap.fill(CAPTION + blue + dashed, width), fontsize=8, **left)
    return finished(figure)


def _grid(examples: pd.DataFrame, manifest: pd.DataFrame) -> tuple[plt.Figure, np.ndarray]:
    """Return a figure with empty axes for the examples: one row per kind, as tall as the tallest image needs."""
    sizes = examples.groupby("kind").size()
    rows, columns = max(len(sizes), 1), max(sizes, default=1)
    shapes = manifest.loc[examples.image_id, ["source_height", "source_width"]].astype(float)
    tallest = min((shapes.source_height / shapes.source_width).max(), TALLEST_SHAPE) if len(shapes) else TALLEST_SHAPE
    size = (COLUMN_WIDTH * max(columns, 2), (COLUMN_WIDTH * tallest + TITLE_HEIGHT) * rows + 0.8)
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=DPI, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(wspace=0.03)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def draw_overlay(
    axis: plt.Axes,
    picture: np.ndarray,
    stored_shape: tuple[int, int],
    heat: np.ndarray | None = None,
    boxes: pd.DataFrame | None = None,
) -> None:
    """Draw an image, the strong parts of its map over it, and its boxes.

    ``picture`` is from `read_original`. ``heat`` and ``boxes`` are on the stored image, whose size is ``stored_shape``.
    """
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.autoscale(False)  # a predicted box may reach out of the image
    # Pixel i of a shown image reaches from i - 0.5 to i + 0.5.
    down, across = picture.shape[0] / stored_shape[0], picture.shape[1] / stored_shape[1]
    if heat is not None:
        small = cv2.resize(heat, picture.shape[::-1], interpolation=cv2.INTER_AREA)
        strength = ((small - LEAST_SHOWN) / (1 - LEAST_SHOWN)).clip(0, 1)
        opacity = np.where(small > LEAST_SHOWN, DENSEST * (0.3 + 0.7 * strength), 0)
        axis.imshow(np.dstack([HEAT(strength)[..., :3], opacity]))
        x, y = strongest_place(small) or (np.nan, np.nan)
        axis.plot(x * picture.shape[1] - 0.5, y * picture.shape[0] - 0.5, "+", color="black", markersize=7)
    for box in [] if boxes is None else boxes.itertuples():
        corner = box.x_min * across - 0.5, box.y_min * down - 0.5
        size = (box.x_max - box.x_min) * across, (box.y_max - box.y_min) * down
        dashed = bool(getattr(box, "predicted", False))
        colour, style = (MARK_COLOUR, "--") if dashed else (BOX_COLOUR, "-")
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linestyle=style, linewidth=1.2))


def read_original(path: str | Path, tallest: int = TALLEST) -> np.ndarray:
    """Read an image windowed, in its own orientation, at most ``tallest`` pixels tall: (h, w), float32 in [0, 1].

    A JPEG 2000 file is decoded only to the resolution that this needs. Raise `utils.dicom.file.DicomError` if it fails.
    """
    with open_dicom(path) as file:
        halvings = max(0, int(np.log2(file.shape[0] / tallest)))  # those that leave ``tallest`` pixels
        picture = file.grey(file.stored(min(halvings, file.levels)))
        height = min(tallest, file.shape[0])
        width = max(1, round(file.shape[1] * height / file.shape[0]))
    return cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=cv2.INTER_AREA)


def _title(row, heat: np.ndarray | None) -> str:
    """Return kind, laterality, view, label and probability of an image, its threshold, and why it shows no map."""
    title = f"{row.kind}: {row.laterality} {row.view}\n{'cancer' if row.cancer else 'no cancer'}, "
    title += compared(row.probability, row.threshold) if hasattr(row, "threshold") else f"probability {row.probability:.2f}"
    if heat is None:
        return f"{title}\nno map"
    return title if heat.any() else f"{title}\nnothing speaks for cancer"


def compared(probability: float, threshold: float) -> str:
    """Return a decision such as "0.43 ≥ threshold 0.31", with the digits that show which is higher."""
    sign = "≥" if decide(probability, threshold) else "<"
    for digits in range(2, MOST_DIGITS + 1):
        shown, limit = f"{probability:.{digits}f}", f"{threshold:.{digits}f}"
        if shown != limit or probability == threshold:
            break
    return f"{shown} {sign} threshold {limit}"
