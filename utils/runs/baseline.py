"""Baselines that see no pixels: a model must beat them to show that it reads the pixels."""

import pandas as pd

from utils.runs.leaks import check_features
from utils.tables.vocabulary import CATEGORIES

NUMBERS = ("age", "implant")


def metadata_oof(images: pd.DataFrame) -> pd.DataFrame:
    """Predict each fold from its images' metadata: age, implant, view, machine and site, which test.csv has too.

    Parameters
    ----------
    images : DataFrame
        A train table with the column ``fold``.

    Returns
    -------
    DataFrame
        ``images`` with the column ``probability``.

    Raises
    ------
    LeakError
        If a column gives the label away; see `utils.runs.leaks.check_features`.
    """
    check_features(images, [*NUMBERS, *CATEGORIES])
    return _columns_oof(images, list(NUMBERS), list(CATEGORIES))


def image_size_oof(images: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """Predict each fold from the height and width of its DICOMs, which differ between machines and sites.

    Parameters
    ----------
    images : DataFrame
        A train table with the column ``fold``.
    manifest : DataFrame
        Manifest of the cache; images that it lacks have an unknown size.

    Returns
    -------
    DataFrame
        ``images`` with the column ``probability``.
    """
    sizes = manifest.source_height.astype(str) + " x " + manifest.source_width.astype(str)
    by_image = sizes.set_axis(manifest.image_id.astype(str))
    return _columns_oof(images.assign(size=images.image_id.map(by_image).astype(object).fillna("unknown")), [], ["size"])


def images_per_breast_oof(images: pd.DataFrame) -> pd.DataFrame:
    """Predict each fold from the number of images of a breast, which a breast-level model could count.

    Parameters
    ----------
    images : DataFrame
        A train table with the column ``fold``.

    Returns
    -------
    DataFrame
        One row per breast, with the column ``probability``.
    """
    count = images.groupby("prediction_id").image_id.transform("size").clip(upper=8).astype(str)
    return _columns_oof(images.assign(count=count).drop_duplicates("prediction_id"), [], ["count"])


def _columns_oof(images: pd.DataFrame, numbers: list[str], categories: list[str]) -> pd.DataFrame:
    """Predict each fold with a logistic regression that was fitted on all other images, also those without a fold."""
    parts = []
    for fold, held_out in images.groupby("fold"):
        inside = images[images.fold != fold]
        if inside.cancer.nunique() < 2:  # nothing to learn: predict the share of positives
            parts.append(held_out.assign(probability=float(inside.cancer.mean())))
            continue
        model = _make_model(numbers, categories).fit(inside, inside.cancer)
        parts.append(held_out.assign(probability=model.predict_proba(held_out)[:, 1]))
    return pd.concat(parts).loc[images.index[images.fold.notna()]]


def _make_model(numbers: list[str], categories: list[str]):
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore"), categories),
    )
    return make_pipeline(columns, LogisticRegression(max_iter=1000))
