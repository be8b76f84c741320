"""Figures for the notebooks; nothing is computed here that anything else needs."""

import contextlib
import io
import threading
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from utils.cache import load_picture, picture_path
from utils.metrics import area_under_roc

COLUMNS = 6
LOOK_EVERY = 2.0  # seconds between looks at a run's history


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


@contextlib.contextmanager
def live_history(run_dir: str | Path) -> Iterator[None]:
    """Show in a notebook what a run's folds have reached, epoch by epoch, while the block trains them.

    It reads the folds' ``history.csv``, so it does not matter which process, or which machine, writes them.

    Parameters
    ----------
    run_dir : path
    """
    from IPython.display import display

    handle = display(_as_image(draw_history(_read_history(run_dir))), display_id=True)
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(Path(run_dir), handle, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(run_dir: Path, handle, ended: threading.Event) -> None:
    shown = 0
    while True:
        is_last = ended.wait(timeout=LOOK_EVERY)
        history = _read_history(run_dir)
        if handle and len(history) != shown:
            handle.update(_as_image(draw_history(history)))
            shown = len(history)
        if is_last:
            return


def _read_history(run_dir: str | Path) -> pd.DataFrame:
    tables = [pd.read_csv(path) for path in sorted(Path(run_dir).glob("fold*/history.csv"))]
    return pd.concat(tables) if tables else pd.DataFrame(columns=["fold", "epoch"])


def _as_image(figure: Figure):
    from IPython.display import Image

    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return Image(file.getvalue())


def draw_history(history: pd.DataFrame) -> Figure:
    """Draw loss, and AUC and pF1 on the held-out breasts, per epoch, one line a fold.

    Parameters
    ----------
    history : DataFrame
        As in ``history.csv``; may be empty.

    Returns
    -------
    Figure
        Made without pyplot, which threads must not share.
    """
    figure = Figure(figsize=(13, 3.5), layout="tight")
    losses, *others = figure.subplots(1, 3)
    for fold, rows in history.groupby("fold"):
        style = {"color": f"C{fold % 10}", "marker": "."}
        losses.plot(rows.epoch + 1, rows.train_loss, linestyle="--", **style)
        losses.plot(rows.epoch + 1, rows.valid_loss, label=f"fold {fold}", **style)
        for axis, column in zip(others, ("valid_auc", "valid_pf1"), strict=True):
            axis.plot(rows.epoch + 1, rows[column], **style)
    losses.set(ylabel="loss", title="Loss: dashed in training, solid held out")
    others[0].set(ylabel="AUC", title="AUC per breast, held out")
    others[0].axhline(0.5, color="0.7", linewidth=1)
    others[1].set(ylabel="pF1", title="pF1 per breast, threshold tuned on itself")
    for axis in figure.axes:
        axis.set(xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if len(history):
        losses.legend(fontsize=8)
    return figure


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
