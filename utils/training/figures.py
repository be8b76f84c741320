"""Figures of a training, during and after it."""

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from IPython.display import Image, display
from matplotlib.figure import Figure

from utils.runs.run import Run

LOOK_EVERY = 2.0  # seconds between looks at a run's history


@contextlib.contextmanager
def live_history(run_dir: str | Path) -> Iterator[None]:
    """Show the history of a run's folds in a notebook, epoch by epoch, while the block trains them.

    It reads the folds' ``history.csv``, so any process on any machine may write them.
    """
    handle = display(_as_image(draw_history(Run(run_dir).history())), display_id=True)
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
        history = Run(run_dir).history()
        if handle and len(history) != shown:
            handle.update(_as_image(draw_history(history)))
            shown = len(history)
        if is_last:
            return


def _as_image(figure: Figure) -> Image:
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
        Made without pyplot, which is not thread-safe.
    """
    figure = Figure(figsize=(13, 3.5), layout="tight")
    losses, *others = figure.subplots(1, 3)
    for fold, rows in history.groupby("fold"):
        color = f"C{fold % 10}"
        losses.plot(rows.epoch + 1, rows.train_loss, ".--", color=color)
        losses.plot(rows.epoch + 1, rows.valid_loss, ".-", color=color, label=f"fold {fold}")
        for axis, column in zip(others, ("valid_auc", "valid_pf1"), strict=True):
            axis.plot(rows.epoch + 1, rows[column], ".-", color=color)
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
