"""Figures for the notebooks; nothing is computed here that anything else needs."""

from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from utils.cache import load_picture, picture_path
from utils.metrics import area_under_roc

COLUMNS = 6


def show_pictures(images: pd.DataFrame, cache_dir: str | Path, split: str, count: int = 12) -> plt.Figure:
    """Show cached pictures, half of them with cancer where the table tells, titled with view, laterality and label.

    Parameters
    ----------
    images : DataFrame
        From `utils.tables.read_images`.
    cache_dir : path
    split : {"train", "test"}
    count : int

    Returns
    -------
    Figure
    """
    present = images[[picture_path(cache_dir, split, image_id).is_file() for image_id in images.image_id]]
    if "cancer" in present:
        halves = [present[present.cancer == label].head(count // 2) for label in (1, 0)]
        present = pd.concat(halves)
    present = present.head(count)
    rows = max(1, -(-len(present) // COLUMNS))
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2 * COLUMNS, 3.4 * rows), squeeze=False)
    _draw_pictures(axes.flat, present, cache_dir, split)
    figure.tight_layout()
    return _done(figure)


def _draw_pictures(axes: Iterable[plt.Axes], images: pd.DataFrame, cache_dir: str | Path, split: str) -> None:
    for axis, row in zip_longest(axes, images.itertuples()):
        axis.axis("off")
        if row is None:
            continue
        axis.imshow(load_picture(cache_dir, split, row.image_id), cmap="gray", vmin=0, vmax=255)
        label = {1: ", cancer", 0: ""}.get(getattr(row, "cancer", 0))
        axis.set_title(f"{row.laterality} {row.view}{label}", fontsize=9)


def show_history(history: pd.DataFrame) -> plt.Figure:
    """Show loss and held-out AUC per epoch, one line a fold.

    Parameters
    ----------
    history : DataFrame
        As in ``history.csv``.

    Returns
    -------
    Figure
    """
    figure, (loss_axis, auc_axis) = plt.subplots(1, 2, figsize=(11, 3.5))
    for fold, rows in history.groupby("fold"):
        color = f"C{fold % 10}"
        epochs = rows.epoch + 1
        loss_axis.plot(epochs, rows.train_loss, color=color, linestyle="--", marker=".")
        loss_axis.plot(epochs, rows.valid_loss, color=color, marker=".", label=f"fold {fold}")
        auc_axis.plot(epochs, rows.valid_auc, color=color, marker=".", label=f"fold {fold}")
    loss_axis.set(xlabel="epoch", ylabel="loss", title="Loss: dashed in training, solid held out")
    auc_axis.set(xlabel="epoch", ylabel="AUC", title="AUC per breast, held out")
    auc_axis.axhline(0.5, color="0.7", linewidth=1)
    for axis in (loss_axis, auc_axis):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    figure.tight_layout()
    return _done(figure)


def show_roc(curves: dict[str, pd.DataFrame]) -> plt.Figure:
    """Show receiver operating characteristics.

    Parameters
    ----------
    curves : dict
        Name to table with the columns cancer and probability.

    Returns
    -------
    Figure
    """
    figure, axis = plt.subplots(figsize=(4.5, 4.5))
    _draw_roc(axis, curves)
    figure.tight_layout()
    return _done(figure)


def _draw_roc(axis: plt.Axes, curves: dict[str, pd.DataFrame]) -> None:
    for name, table in curves.items():
        false_positives, true_positives, _ = roc_curve(table.cancer, table.probability)
        axis.plot(false_positives, true_positives, label=f"{name}: AUC {area_under_roc(table.cancer, table.probability):.3f}")
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity (recall)", title="Out of fold, per breast", aspect="equal")
    axis.legend(loc="lower right", fontsize=8)


def show_threshold(breasts: pd.DataFrame, tuned: dict) -> plt.Figure:
    """Show pF1 of hard decisions against the threshold, with the chosen one and the nested estimate.

    Parameters
    ----------
    breasts : DataFrame
        Columns cancer and probability.
    tuned : dict
        From `utils.predictions.tune`.

    Returns
    -------
    Figure
    """
    figure, axis = plt.subplots(figsize=(7, 3.5))
    _draw_threshold(axis, breasts, tuned)
    figure.tight_layout()
    return _done(figure)


def _draw_threshold(axis: plt.Axes, breasts: pd.DataFrame, tuned: dict) -> None:
    table = breasts.sort_values("probability", ascending=False)
    f1 = 2 * table.cancer.cumsum() / (table.cancer.sum() + np.arange(1, len(table) + 1))
    nested = tuned["pf1_nested"]
    axis.step(table.probability, f1, where="post", label="tuned and measured on the same breasts")
    axis.axvline(tuned["threshold"], color="C3", label=f"threshold {tuned['threshold']:.3f}")
    axis.axhspan(nested["low"], nested["high"], color="C2", alpha=0.15)
    axis.axhline(nested["value"], color="C2", label=f"nested {nested['value']:.3f}, 95 % interval")
    axis.set(xlabel="threshold", ylabel="pF1", title="Probabilistic F1 of hard decisions", ylim=(0, None))
    axis.legend(fontsize=8)


def show_probabilities(probabilities: pd.Series, threshold: float) -> plt.Figure:
    """Show how the submitted probabilities spread, and where the threshold cuts.

    Returns
    -------
    Figure
    """
    figure, axis = plt.subplots(figsize=(7, 3))
    axis.hist(probabilities, bins=40)
    axis.axvline(threshold, color="C3", label=f"threshold {threshold:.3f}")
    axis.set(xlabel="probability", ylabel="breasts", title="Test predictions")
    axis.legend(fontsize=8)
    figure.tight_layout()
    return _done(figure)


def show_overview(
    images: pd.DataFrame, cache_dir: str | Path, curves: dict[str, pd.DataFrame], breasts: pd.DataFrame, tuned: dict
) -> plt.Figure:
    """Show a whole job at a glance: pictures with and without cancer, ROC of each run, pF1 against the threshold.

    Parameters
    ----------
    images : DataFrame
        The train table.
    cache_dir : path
    curves, breasts, tuned
        As in `show_roc` and `show_threshold`.

    Returns
    -------
    Figure
    """
    figure = plt.figure(figsize=(13, 7.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    halves = [images[images.cancer == label].drop_duplicates("patient_id").head(4) for label in (1, 0)]
    _draw_pictures(upper.subplots(1, 8), pd.concat(halves), cache_dir, "train")
    roc_axis, threshold_axis = lower.subplots(1, 2, width_ratios=[1, 1.7])
    _draw_roc(roc_axis, curves)
    _draw_threshold(threshold_axis, breasts, tuned)
    return _done(figure)


def _done(figure: plt.Figure) -> plt.Figure:
    plt.close(figure)  # a notebook shows the returned figure; without this it would show it twice
    return figure
