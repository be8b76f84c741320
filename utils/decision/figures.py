"""Figures of thresholds and calibration: curves with confidence bands, reliability, prevalence."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter

from utils.decision.calibration import reliability
from utils.decision.threshold import Threshold
from utils.images.figures import draw_pictures, finished, in_legend
from utils.metrics.intervals import PatientBootstrap
from utils.metrics.scores import area_under_roc, decide
from utils.metrics.thresholds import pf1_curve

BAND = {"alpha": 0.2, "linewidth": 0}


def show_curves(curves: dict[str, pd.DataFrame]) -> plt.Figure:
    """Plot ROC and precision-recall curves side by side, one line per run.

    Parameters
    ----------
    curves : dict
        Name to table with the columns cancer and probability.
    """
    from sklearn.metrics import precision_recall_curve

    figure, (roc, precision) = plt.subplots(1, 2, figsize=(9.5, 4.5), layout="tight")
    _draw_roc(roc, curves)
    for name, table in curves.items():
        precisions, recalls, _ = precision_recall_curve(table.cancer, table.probability)
        precision.step(recalls, precisions, where="post", label=in_legend(name))
    prevalence = next(iter(curves.values())).cancer.mean()
    precision.axhline(prevalence, color="0.7", linewidth=1, label=f"chance: {prevalence:.3f}")
    precision.set(xlabel="recall (sensitivity)", ylabel="precision", title="Precision and recall", ylim=(0, 1.02))
    precision.legend(fontsize=8)
    return finished(figure)


def _draw_roc(axis: plt.Axes, curves: dict[str, pd.DataFrame]) -> None:
    from sklearn.metrics import roc_curve

    for name, table in curves.items():
        false_positives, true_positives, _ = roc_curve(table.cancer, table.probability)
        auc = area_under_roc(table.cancer, table.probability)
        axis.plot(false_positives, true_positives, label=in_legend(f"{name}: AUC {auc:.3f}"))
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity (recall)", title="ROC out of fold, per breast", aspect="equal")
    axis.legend(loc="lower right", fontsize=8)


def show_threshold(breasts: pd.DataFrame, tuned: Threshold) -> plt.Figure:
    """Plot pF1 against the threshold and against the share of breasts taken, with its bootstrap band and the nested estimate.

    Parameters
    ----------
    breasts : DataFrame
        From `utils.decision.threshold.Threshold.out_of_fold`.
    tuned : Threshold
        From `utils.decision.tuning.tune`.
    """
    figure, (by_threshold, by_share) = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, layout="tight")
    curve = _curve_of(breasts)
    _draw_by_threshold(by_threshold, curve, tuned)
    taken = decide(breasts.probability, tuned.threshold).mean()
    by_share.axvline(taken, color="C3", label=f"{taken:.1%} of breasts taken")
    _draw_pf1(by_share, curve.taken, curve, tuned)
    by_share.set(xlabel="share of breasts taken", title="The same, by share of breasts taken", xscale="log")
    by_share.xaxis.set_major_formatter("{x:g}")  # the default, powers of ten, is math text, which no figure may contain
    by_share.xaxis.set_minor_formatter(NullFormatter())
    return finished(figure)


def _curve_of(breasts: pd.DataFrame) -> pd.DataFrame:
    return pf1_curve(breasts.cancer, breasts.probability, PatientBootstrap(breasts.patient_id))


def _draw_by_threshold(axis: plt.Axes, curve: pd.DataFrame, tuned: Threshold) -> None:
    axis.axvline(tuned.threshold, color="C3", label=f"threshold {tuned.threshold:.3f}")
    _draw_pf1(axis, curve.threshold, curve, tuned)
    axis.set(xlabel="threshold (calibrated probability)", ylabel="pF1", title="Probabilistic F1 of hard decisions")


def _draw_pf1(axis: plt.Axes, x: pd.Series, curve: pd.DataFrame, tuned: Threshold) -> None:
    axis.plot(x, curve.pf1, color="C0", label="measured on the breasts that tuned it")
    axis.fill_between(x, curve.low, curve.high, color="C0", label="95 % band over patients", **BAND)
    nested = tuned.pf1_nested
    axis.axhline(nested.value, color="C2", label=f"pf1_nested: {nested.value:.3f}")
    axis.axhspan(nested.low, nested.high, color="C2", **BAND)
    axis.set_ylim(0, None)
    axis.legend(fontsize=8)


def show_reliability(curves: dict[str, pd.DataFrame]) -> plt.Figure:
    """Plot observed against predicted shares of cancer.

    Parameters
    ----------
    curves : dict
        Name to table with the columns cancer and probability: raw, and calibrated out of fold.
    """
    figure, axis = plt.subplots(figsize=(5, 4.5), layout="tight")
    for number, (name, table) in enumerate(curves.items()):
        bins = reliability(table.cancer, table.probability)
        errors = np.abs(bins[["low", "high"]].to_numpy().T - bins.observed.to_numpy())
        label, colour = in_legend(name), f"C{number}"
        axis.errorbar(bins.predicted, bins.observed, errors, fmt="o-", capsize=2, linewidth=1, label=label, color=colour)
    top = max(axis.get_xlim()[1], axis.get_ylim()[1])
    axis.plot([0, top], [0, top], color="0.7", linewidth=1, label="calibrated")
    axis.set(xlabel="predicted probability", ylabel="observed share of cancer", title="Reliability, in tenths of the breasts")
    axis.set(xlim=(0, None), ylim=(0, None))
    axis.legend(fontsize=8)
    return finished(figure)


def show_prevalence(shift: pd.DataFrame, observed: float) -> plt.Figure:
    """Plot the pF1 of the chosen threshold and of the best one, and the best threshold, against the prevalence.

    Parameters
    ----------
    shift : DataFrame
        From `utils.metrics.thresholds.prevalence_shift`.
    observed : float
        Prevalence of the tuning breasts.
    """
    figure, (worth, best) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="tight")
    worth.plot(shift.prevalence, shift.pf1, label="the chosen threshold")
    worth.plot(shift.prevalence, shift.best_pf1, linestyle="--", label="the best threshold")
    worth.set(ylabel="pF1", title="pF1 by prevalence", ylim=(0, None))
    best.plot(shift.prevalence, shift.best_threshold, color="C1", linestyle="--")
    best.set(ylabel="best threshold", title="Best threshold by prevalence")
    for axis in (worth, best):
        axis.set(xlabel="prevalence of cancer per breast")
        if shift.prevalence.min() <= observed <= shift.prevalence.max():
            axis.axvline(observed, color="0.6", linewidth=1, label=f"here: {observed:.1%}")
    worth.legend(fontsize=8)
    return finished(figure)


def show_probabilities(probabilities: pd.Series, threshold: float) -> plt.Figure:
    """Plot a histogram of the submitted probabilities and the threshold."""
    figure, axis = plt.subplots(figsize=(7, 3), layout="tight")
    axis.hist(probabilities, bins=40)
    axis.axvline(threshold, color="C3", label=f"threshold {threshold:.3f}")
    axis.set(xlabel="probability", ylabel="breasts", title="Test predictions")
    axis.legend(fontsize=8)
    return finished(figure)


def show_overview(
    images: pd.DataFrame, cache_dir: str | Path, curves: dict[str, pd.DataFrame], breasts: pd.DataFrame, tuned: Threshold
) -> plt.Figure:
    """Plot a complete job in one figure: images with and without cancer, each run's ROC, and pF1 against the threshold.

    Parameters
    ----------
    images : DataFrame
        The train table.
    cache_dir : path
    curves, breasts, tuned
        As in `show_curves` and `show_threshold`.
    """
    figure = plt.figure(figsize=(13, 7.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    halves = [images[images.cancer == label].drop_duplicates("patient_id").head(4) for label in (1, 0)]
    draw_pictures(upper.subplots(1, 8), pd.concat(halves), cache_dir, "train")
    roc_axis, axis = lower.subplots(1, 2, width_ratios=[1, 1.7])
    _draw_roc(roc_axis, curves)
    _draw_by_threshold(axis, _curve_of(breasts), tuned)
    return finished(figure)
