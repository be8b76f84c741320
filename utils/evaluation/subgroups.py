"""Performance by site, machine, age, density, view and kind of cancer; and the sources of the AUC."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.explore.summary import AGE_EDGES, AGE_GROUPS
from utils.metrics.intervals import Interval, PatientBootstrap, proportion
from utils.metrics.scores import area_under_roc
from utils.runs.baseline import image_size_oof, images_per_breast_oof, metadata_oof
from utils.runs.oof import aggregate, one_image_per_breast
from utils.runs.run import Run
from utils.tables.breasts import by_breast

SUBGROUPS = ("site_id", "machine_id", "age", "density", "implant")
VERDICT = "the model is"  # column with the verdict on a difference
METADATA, IMAGES_PER_BREAST = "metadata (age, implant, view, machine, site)", "images per breast"  # sources of AUC
LEAST_POSITIVES = 10  # a subgroup with fewer positives or negatives gets no AUC and F1


def with_traits(breasts: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Add the traits of each breast in train.csv: age as a band, missing values as "unknown"."""
    columns = [name for name in (*SUBGROUPS, "invasive", "difficult_negative_case") if name in images]
    traits = by_breast(images)[columns]
    traits["age"] = pd.cut(traits.age, AGE_EDGES, right=False, labels=AGE_GROUPS).astype(object)
    return breasts.join(traits.astype(object).where(traits.notna(), "unknown"), on="prediction_id")


def by_subgroup(breasts: pd.DataFrame, decisions: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Evaluate each subgroup by itself: site, machine, age, density, implant; invasive cancers and difficult negatives.

    Each kind of cancer is evaluated against all negatives, each kind of negatives against all cancers.

    Parameters
    ----------
    breasts : DataFrame
        From `with_traits`, with calibrated probabilities.
    decisions : array-like of shape (n,)
        0 or 1.

    Returns
    -------
    DataFrame
        One row per subgroup: breasts, positives; AUC, F1, recall, specificity (at the threshold) and the observed share
        of cancer, with intervals; mean predicted share. No AUC or F1 under `LEAST_POSITIVES` positives or negatives.
    """
    table = breasts.assign(decision=np.asarray(decisions))
    rows = [_subgroup_row("all", "", table, seed)]
    for column in SUBGROUPS:
        if column in table:
            rows += [_subgroup_row(column, value, rows_of, seed) for value, rows_of in table.groupby(column, sort=True)]
    for column, label in {"invasive": 1, "difficult_negative_case": 0}.items():
        if column in table:
            kinds = table[table.cancer == label].groupby(column)
            others = table[table.cancer != label]
            rows += [_subgroup_row(column, value, pd.concat([kind, others]), seed) for value, kind in kinds]
    return pd.DataFrame(rows)


def _subgroup_row(column: str, value, table: pd.DataFrame, seed: int) -> dict:
    """Evaluate one subgroup: a row of `by_subgroup`."""
    positives, negatives = int(table.cancer.sum()), int((table.cancer == 0).sum())
    bootstrap = PatientBootstrap(table.patient_id, seed=seed) if min(positives, negatives) >= LEAST_POSITIVES else None
    recalled, cleared = (table.decision[table.cancer == label] == label for label in (1, 0))
    return {
        "subgroup": column,
        "value": value,
        "breasts": len(table),
        "positives": positives,
        "AUC": str(bootstrap.auc(table.cancer, table.probability)) if bootstrap else "",
        "F1": str(bootstrap.pf1(table.cancer, table.decision)) if bootstrap else "",
        "recall": str(proportion(recalled.sum(), positives)),
        "specificity": str(proportion(cleared.sum(), negatives)),
        "predicted": f"{table.probability.mean():.3f}",
        "observed": str(proportion(positives, len(table))),
    }


def by_view(run_dir: Path, images: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return the AUC of each view by itself, from the mean over a breast's images of that view.

    Parameters
    ----------
    images : DataFrame
        The train table.

    Returns
    -------
    DataFrame
        One row per view; no AUC under `LEAST_POSITIVES` positives or negatives. Empty for a run of breasts.
    """
    oof = Run(run_dir).oof()
    table = oof.assign(view=oof.image_id.map(images.set_index("image_id").view)).dropna(subset=["view"])
    rows = []
    for view, group in table.groupby("view"):
        breasts = group.groupby("prediction_id").agg({"patient_id": "first", "cancer": "first", "probability": "mean"})
        positives = int(breasts.cancer.sum())
        enough = min(positives, len(breasts) - positives) >= LEAST_POSITIVES
        auc = str(PatientBootstrap(breasts.patient_id, seed=seed).auc(breasts.cancer, breasts.probability)) if enough else ""
        rows.append({"view": view, "images": len(group), "breasts": len(breasts), "positives": positives, "AUC": auc})
    return pd.DataFrame(rows)


def sources_of_auc(
    breasts: pd.DataFrame, images: pd.DataFrame, manifest: pd.DataFrame, one_image: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Compare the model with predictions that use no pixels, and evaluate it within each machine.

    Parameters
    ----------
    breasts : DataFrame
        Out of fold, from `utils.runs.oof.oof_of_runs`.
    images : DataFrame
        The train table.
    manifest : DataFrame
        Manifest of the cache.
    one_image : bool
        Count one random image of each breast, as ``breasts`` does.

    Returns
    -------
    DataFrame
        Indexed by source: AUC as an `Interval`, the model's AUC minus it as text, and the verdict.
    """
    # Images of unfinished folds have no fold: they are not predicted, but the baselines learn from them.
    images = images.assign(fold=images.patient_id.map(breasts.drop_duplicates("patient_id").set_index("patient_id").fold))
    counted = one_image_per_breast(images) if one_image else images
    sources = {
        METADATA: metadata_oof(counted),
        "image size": image_size_oof(counted, manifest),
        IMAGES_PER_BREAST: images_per_breast_oof(images),
    }
    bootstrap = PatientBootstrap(breasts.patient_id, seed=seed)
    rows = {"the model": {"AUC [95 %]": bootstrap.auc(breasts.cancer, breasts.probability)}}
    rows["the model, within each machine"] = {"AUC [95 %]": auc_within(breasts, images, "machine_id", seed)}
    for name, table in sources.items():
        values = aggregate(table).loc[breasts.prediction_id].to_numpy()
        difference = bootstrap.auc_difference(breasts.cancer, breasts.probability, values)
        rows[name] = {"AUC [95 %]": bootstrap.auc(breasts.cancer, values), "model minus it": difference.signed}
        rows[name][VERDICT] = difference.verdict
    return pd.DataFrame(rows).T.fillna("").rename_axis("source")


def auc_within(breasts: pd.DataFrame, images: pd.DataFrame, column: str, seed: int = 0) -> Interval:
    """Return the AUC over pairs of a positive and a negative of the same machine or site, which cannot explain it.

    The bootstrap is over each group's patients. NaN if no group has both labels.
    """
    groups = breasts.prediction_id.map(by_breast(images)[column])
    values, draws, pairs = [], [], []
    for number, (_, table) in enumerate(breasts.groupby(groups.to_numpy())):
        count = int(table.cancer.sum() * (table.cancer == 0).sum())
        if count:
            # With the same seed, groups of the same size would share their draws.
            bootstrap = PatientBootstrap(table.patient_id, seed=seed + number)
            values.append(area_under_roc(table.cancer, table.probability))
            drawn = bootstrap.auc_draws(table.cancer, table.probability)
            draws.append(np.where(np.isfinite(drawn), drawn, values[-1]))
            pairs.append(count)
    if not pairs:
        return Interval(np.nan, np.nan, np.nan)
    return bootstrap.interval(np.average(values, weights=pairs), np.average(draws, axis=0, weights=pairs))
