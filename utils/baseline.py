"""What metadata alone can tell: the mark that a model must pass to show that it reads pixels."""

import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from utils.dataset import CATEGORIES


def metadata_oof(images: pd.DataFrame) -> pd.DataFrame:
    """Predict each fold from its images' metadata, by logistic regressions that were fitted on the other folds.

    Parameters
    ----------
    images : DataFrame
        A train table with the column ``fold``.

    Returns
    -------
    DataFrame
        ``images`` with the column ``probability``, from age, implant, view, machine and site: what test.csv has too.
    """
    parts = []
    for fold, held_out in images.groupby("fold"):
        inside = images[images.fold != fold]
        if inside.cancer.nunique() < 2:  # nothing to learn from: the share of positives is the best guess
            parts.append(held_out.assign(probability=float(inside.cancer.mean())))
            continue
        model = _make_model().fit(inside, inside.cancer)
        parts.append(held_out.assign(probability=model.predict_proba(held_out)[:, 1]))
    return pd.concat(parts).loc[images.index]


def _make_model() -> Pipeline:
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), ["age", "implant"]),
        (OneHotEncoder(handle_unknown="ignore"), list(CATEGORIES)),
    )
    return make_pipeline(columns, LogisticRegression(max_iter=1000))
