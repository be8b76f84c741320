"""Figures of the data before training; all numbers come from `utils.explore.summary` and `utils.explore.shortcuts`."""

from itertools import zip_longest
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from utils.explore.examples import Segmentation
from utils.explore.summary import AGE_GROUPS, SHORT_AGE_GROUPS, UNKNOWN
from utils.images.cached import load_picture, picture_path
from utils.images.figures import finished, in_legend

# Okabe and Ito's colours, which are distinct in every kind of colour vision.
BLUE, SKY, ORANGE, RED, GREY = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "0.6"
KINDS = {"leak": RED, "shortcut": ORANGE, "unclear": GREY, "harmless": BLUE}
SHOWN_VIEWS = 10
PICTURE_WIDTH = 1.4  # inches
SHOWN_VALUES = 12


def show_density(table: pd.DataFrame) -> plt.Figure:
    """Show the share of each breast density per age group, and the number of breasts.

    Parameters
    ----------
    table : DataFrame
        From `utils.explore.summary.density_by_age`.
    """
    known = table.drop(columns=UNKNOWN, errors="ignore").drop(index=UNKNOWN, errors="ignore")
    known = known[known.sum(axis=1) > 0]
    if known.empty:
        return _empty("This table has no breast densities.")
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    _stack(axes[0], known.div(known.sum(axis=1), axis=0) * 100)
    _stack(axes[1], known)
    axes[0].set(xlabel="age, years", ylabel="share of breasts, %", title="Breast density by age", ylim=(0, 100))
    axes[1].set(xlabel="age, years", ylabel="breasts", title=f"{known.to_numpy().sum():,} breasts of known age and density")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], title="density", loc="outside right center")
    return finished(figure)


def _stack(axis: plt.Axes, table: pd.DataFrame) -> None:
    """Draw a stacked bar per age group, with a colour per density."""
    places, bottom = np.arange(len(table)), np.zeros(len(table))
    colours = plt.get_cmap("cividis_r")(np.linspace(0.05, 0.95, table.shape[1]))
    for colour, (density, values) in zip(colours, table.items(), strict=True):
        axis.bar(places, values, bottom=bottom, color=colour, edgecolor="white", linewidth=0.5, label=in_legend(density))
        bottom += values.to_numpy()
    short = dict(zip(AGE_GROUPS, SHORT_AGE_GROUPS, strict=True))
    axis.set_xticks(places, [short[group] for group in table.index])
    _plain(axis)


def show_views(table: pd.DataFrame) -> plt.Figure:
    """Show how many breasts have each combination of views.

    Parameters
    ----------
    table : DataFrame
        From `utils.explore.summary.views_per_breast`.
    """
    shown = table.head(SHOWN_VIEWS)[::-1]
    figure, axis = plt.subplots(figsize=(8, 1.1 + 0.32 * len(shown)), layout="constrained")
    kinds = {
        "a view more than once": (shown.duplicate, ORANGE),
        "one kind of view": (shown.one_view & ~shown.duplicate, SKY),
        "each view once": (~shown.one_view & ~shown.duplicate, BLUE),
    }
    for label, (chosen, colour) in kinds.items():
        if chosen.any():
            axis.barh(np.flatnonzero(chosen), shown.breasts[chosen], color=colour, label=label)
    for place, row in enumerate(shown.itertuples()):
        axis.text(row.breasts, place, f" {row.breasts:,} ({row.share:.1%})", va="center", fontsize=8)
    axis.set_yticks(range(len(shown)), shown.index)
    axis.set(xlabel="breasts", title="Views per breast", xlim=(0, shown.breasts.max() * 1.25))
    _legend_below(figure)
    _plain(axis)
    return finished(figure)


def show_cancer_by(tables: dict[str, pd.DataFrame]) -> plt.Figure:
    """Show the share of breasts with cancer per machine, site or similar, with 95 % intervals.

    Parameters
    ----------
    tables : dict
        Name to table, from `utils.explore.summary.cancer_by`; empty ones are left out.
    """
    shown = {name: table.head(SHOWN_VALUES)[::-1] for name, table in tables.items() if len(table)}
    if not shown:
        return _empty("The tables have none of these columns.")
    height = 1.4 + 0.3 * max(len(table) for table in shown.values())
    figure, axes = plt.subplots(1, len(shown), figsize=(5.5 * len(shown), height), layout="constrained", squeeze=False)
    for axis, (name, table) in zip(axes.flat, shown.items(), strict=True):
        _draw_rates(axis, table)
        axis.set(xlabel="breasts with cancer, %", title=f"Cancer by {name}")
    _legend_below(figure)
    return finished(figure)


def _draw_rates(axis: plt.Axes, table: pd.DataFrame) -> None:
    """Draw the rate of cancer with its interval for each value, and the overall rate as a line."""
    rates, places = table[["rate", "low", "high"]] * 100, np.arange(len(table))
    groups = {
        "with positive breasts": (table.positives > 0, BLUE, "o"),
        "no positive breast": ((table.positives == 0) & (table.breasts > 0), RED, "s"),
    }
    for label, (chosen, colour, marker) in groups.items():
        if chosen.any():
            part = rates[chosen]
            around = [(part.rate - part.low).clip(lower=0), (part.high - part.rate).clip(lower=0)]
            axis.errorbar(part.rate, places[chosen], xerr=around, fmt=marker, color=colour, capsize=3, label=label)
    for place in np.flatnonzero(table.breasts == 0):
        axis.text(0.02, place, "only in test.csv", transform=axis.get_yaxis_transform(), va="center", fontsize=8, color="0.3")
    end = _right_end(rates)
    overall = 100 * table.positives.sum() / max(1, table.breasts.sum())
    axis.axvline(overall, color=GREY, linewidth=1, linestyle="--", label=f"overall, {overall:.1f} %")
    axis.set_yticks(places, [f"{row.Index} ({row.breasts:,})" for row in table.itertuples()])
    axis.set(ylim=(-0.6, len(table) - 0.4), xlim=(-0.02 * end, end))
    _plain(axis)


def _right_end(rates: pd.DataFrame) -> float:
    """Return the right limit of the axis in %; very wide intervals of tiny groups are cut off."""
    widest = np.nanmax([rates.rate.max() * 2.5, rates.high.median() * 1.5, 1.0])
    return float(min(widest, np.nanmax([rates.high.max() * 1.05, 1.0])))


def show_audit(table: pd.DataFrame) -> plt.Figure:
    """Show how well each column alone predicts the label, coloured by kind.

    Parameters
    ----------
    table : DataFrame
        From `utils.explore.shortcuts.shortcut_audit`.
    """
    shown = table[table.auc.notna()][::-1]
    if shown.empty:
        return _empty("Without positive and negative breasts no column can be judged.")
    figure, axis = plt.subplots(figsize=(8, 1.3 + 0.27 * len(shown)), layout="constrained")
    for kind, colour in KINDS.items():
        places = np.flatnonzero(shown.kind == kind)
        if len(places):
            axis.barh(places, shown.auc.iloc[places] - 0.5, left=0.5, color=colour, label=kind)
    axis.plot(shown.chance, range(len(shown)), linestyle="", marker="|", markersize=12, color="black", label="chance, at most")
    axis.axvline(0.5, color="black", linewidth=1)
    axis.set_yticks(range(len(shown)), shown.index)
    axis.set(
        xlabel="AUC per breast, out of fold", title="What one column alone tells", xlim=(min(0.4, shown.auc.min() - 0.02), 1.0)
    )
    _legend_below(figure)
    _plain(axis)
    return finished(figure)


def show_examples(examples: pd.DataFrame, cache_dir: str | Path) -> plt.Figure:
    """Show cached training images of each kind side by side.

    Parameters
    ----------
    examples : DataFrame
        From `utils.explore.examples.pick_by_label`; images that the cache lacks are left out.
    """
    present = examples[[picture_path(cache_dir, "train", image_id).is_file() for image_id in examples.image_id]]
    if present.empty:
        return _empty("There is no image to show.")
    kinds = {kind: list(rows.itertuples()) for kind, rows in present.groupby("example", sort=False)}
    pictures = {image_id: load_picture(cache_dir, "train", image_id) for image_id in present.image_id}
    height, width = pictures[present.image_id.iloc[0]].shape
    columns = max(2, *map(len, kinds.values()))
    size = (PICTURE_WIDTH * columns * len(kinds), PICTURE_WIDTH * height / width + 0.8)
    figure = plt.figure(figsize=size, layout="constrained")
    panels = figure.subfigures(1, len(kinds), wspace=0.03, squeeze=False)[0]
    for panel, (kind, rows) in zip(panels, kinds.items(), strict=True):
        panel.suptitle(kind, fontweight="bold")
        for axis, row in zip_longest(panel.subplots(1, columns), rows):
            axis.axis("off")
            if row is not None:
                axis.imshow(pictures[row.image_id], cmap="gray", vmin=0, vmax=255)
                axis.set_title(_title(row), fontsize=9)
    return finished(figure)


def _title(row) -> str:
    """Return an image's laterality and view, and its patient's age and density if known."""
    age = "" if np.isnan(row.age) else f"{row.age:.0f} years"
    density = getattr(row, "density", None)
    second = [age, f"density {density}" if isinstance(density, str) else ""]
    return f"{row.laterality} {row.view}\n{', '.join(filter(None, second))}"


def show_segmentation(segmentations: list[Segmentation]) -> plt.Figure:
    """Show originals with the breast's outline and the crop, and the cached image below each.

    Parameters
    ----------
    segmentations : list
        From `utils.explore.examples.segment_images`.
    """
    if not segmentations:
        return _empty("There is no image to show.")
    columns = max(3, len(segmentations))
    figure, axes = plt.subplots(2, columns, figsize=(2.9 * columns, 6.8), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for (upper, lower), segmentation in zip(axes.T, segmentations, strict=False):
        _draw_original(upper, segmentation)
        lower.imshow(segmentation.cached, cmap="gray", vmin=0, vmax=255)
        mirrored = ", mirrored" if segmentation.crop.flipped else ""
        lower.set_title(f"cached: {_size(segmentation.cached.shape)}{mirrored}", fontsize=9)
    handles = [plt.Line2D([], [], color=ORANGE), plt.Line2D([], [], color=SKY, linestyle="--")]
    figure.legend(handles, ["breast mask", "crop"], loc="outside upper center", ncols=2, fontsize=9)
    return finished(figure)


def _draw_original(axis: plt.Axes, segmentation: Segmentation) -> None:
    """Draw an original with the outline of its mask and its crop, in pixels of the original."""
    height, width = segmentation.shape
    axis.imshow(segmentation.picture, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    if segmentation.mask.any():
        # A rim of zeros closes the outline where the breast reaches the image's edge.
        mask = np.pad(segmentation.mask, 1)
        rows, columns = ((np.arange(n) - 0.5) * side / (n - 2) for n, side in zip(mask.shape, (height, width), strict=True))
        axis.contour(columns.clip(0, width), rows.clip(0, height), mask, levels=[0.5], colors=ORANGE, linewidths=1.2)
    crop = segmentation.crop
    box = (crop.right - crop.left, crop.bottom - crop.top)
    axis.add_patch(Rectangle((crop.left, crop.top), *box, fill=False, edgecolor=SKY, linestyle="--", linewidth=1.5))
    found = "" if not crop.flags else f", {' '.join(crop.flags)}"
    axis.set_title(f"{segmentation.title}\noriginal: {_size(segmentation.shape)}{found}", fontsize=9)
    axis.set(xlim=(-0.02 * width, 1.02 * width), ylim=(1.02 * height, -0.02 * height))


def _size(shape: tuple[int, int]) -> str:
    """Return a shape as "height x width px"."""
    return f"{shape[0]} x {shape[1]} px"


def _legend_below(figure: plt.Figure) -> None:
    """Add one legend for all axes below them, where it covers nothing."""
    entries = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=len(entries), fontsize=8)


def _plain(axis: plt.Axes) -> None:
    """Remove the upper and right edges of the frame."""
    axis.spines[["top", "right"]].set_visible(False)


def _empty(sentence: str) -> plt.Figure:
    """Return a figure that shows only a sentence."""
    figure, axis = plt.subplots(figsize=(6, 0.6))  # a notebook does not show a figure without axes
    axis.axis("off")
    axis.text(0, 0.5, sentence, va="center")
    return finished(figure)
