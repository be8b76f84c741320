"""Tables of the data before training: columns, density by age, views, cancer by machine or site. They count breasts."""

from collections import Counter

import numpy as np
import pandas as pd

from utils.metrics.intervals import proportion
from utils.tables.breasts import by_breast

AGE_EDGES = (0, 40, 50, 60, 70, 80, np.inf)  # years; each group includes its lower edge only
AGE_GROUPS = ("39 and under", "40 to 49", "50 to 59", "60 to 69", "70 to 79", "80 and over")
SHORT_AGE_GROUPS = ("< 40", "40–49", "50–59", "60–69", "70–79", "80+")
UNKNOWN = "unknown"
SCREENING_VIEWS = ("CC", "MLO")  # named before the others
SHOWN_VALUES = 3
LISTED_NUMBERS = 6  # a numeric column with more values is shown by its range
COMMON_SHARE = 0.01  # if the most common text is rarer, none is shown
NOMINAL = ("site_id", "machine_id", "laterality", "view")  # their numbers have no order
DERIVED = ("prediction_id", "fold")  # columns that the kit adds to those of train.csv


def describe_columns(images: pd.DataFrame, test: pd.DataFrame | None = None) -> pd.DataFrame:
    """Describe each column of train.csv, and whether test.csv has it.

    Parameters
    ----------
    images, test : DataFrame
        From `utils.tables.read_images`.

    Returns
    -------
    DataFrame
        One row per column: type, missing (rows), missing_share, unique, values (the most common ones or the range).
        With ``test`` also in_test and test_missing_share (NaN if test.csv lacks the column).
    """
    columns = [column for column in images if column not in DERIVED]
    table = pd.DataFrame({column: _describe(images[column]) for column in columns}).T
    if test is not None:
        table["in_test"] = [column in test for column in columns]
        table["test_missing_share"] = [test[column].isna().mean() if column in test else np.nan for column in columns]
    return table.infer_objects()


def _describe(values: pd.Series) -> dict:
    """Describe one column: a row of `describe_columns`."""
    return {
        "type": str(values.dtype),
        "missing": int(values.isna().sum()),
        "missing_share": float(values.isna().mean()),
        "unique": values.nunique(),
        "values": _shown_values(values.dropna()),
    }


def _shown_values(values: pd.Series) -> str:
    """Return a column's most common values with their shares, or its range, as text."""
    if values.empty:
        return "none"
    if values.is_unique and len(values) > SHOWN_VALUES:
        return "all different"
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > LISTED_NUMBERS and values.name not in NOMINAL:
        return f"{values.min():g} to {values.max():g}"
    shares = values.value_counts(normalize=True)
    if shares.iloc[0] < COMMON_SHARE:
        return "many, none common"
    more = ", …" if len(shares) > SHOWN_VALUES else ""
    return ", ".join(f"{_as_text(value)} ({share:.1%})" for value, share in shares.head(SHOWN_VALUES).items()) + more


def _as_text(value: object) -> str:
    """Return a value as text, floats without trailing zeros."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def density_by_age(images: pd.DataFrame) -> pd.DataFrame:
    """Count breasts by age and density.

    Parameters
    ----------
    images : DataFrame
        From `utils.tables.read_images`. Without densities, all breasts count as unknown.

    Returns
    -------
    DataFrame of int
        One row per age group and column per density that occurs; missing values are in a last row and column "unknown".
    """
    breasts = by_breast(images)
    ages = pd.cut(breasts.age, AGE_EDGES, right=False, labels=AGE_GROUPS).astype(object).fillna(UNKNOWN)
    densities = breasts.density.fillna(UNKNOWN) if "density" in breasts else pd.Series(UNKNOWN, index=breasts.index)
    table = pd.crosstab(ages, densities)
    rows = [group for group in (*AGE_GROUPS, UNKNOWN) if group in table.index]
    columns = sorted(table.columns, key=lambda density: (density == UNKNOWN, density))
    return table.loc[rows, columns].rename_axis(index="age", columns="density")


def views_per_breast(images: pd.DataFrame) -> pd.DataFrame:
    """Count breasts by their combination of views.

    Parameters
    ----------
    images : DataFrame
        From `utils.tables.read_images`.

    Returns
    -------
    DataFrame
        One row per combination, such as "CC + 2 MLO", the most common first: images (of such a breast), breasts, share,
        duplicate (a view occurs more than once), one_view (only one kind of view), positives (if the table has labels).
    """
    views = images.view.fillna(UNKNOWN).groupby(images.prediction_id, sort=False).agg(tuple)
    kinds = views.map(lambda taken: len(set(taken)))
    breasts = pd.DataFrame({"images": views.map(len), "duplicate": kinds < views.map(len), "one_view": kinds == 1})
    names = views.map(_name_views).rename("views")
    table = breasts.groupby(names).first()
    table.insert(1, "breasts", names.value_counts())
    table.insert(2, "share", table.breasts / len(breasts))
    if "cancer" in images:
        table["positives"] = images.groupby("prediction_id").cancer.max().groupby(names).sum()
    return table.sort_values("breasts", ascending=False, kind="stable")


def _name_views(views: tuple[str, ...]) -> str:
    """Return the views of a breast as text such as "CC + 2 MLO"."""
    counts = Counter(views)
    ordered = sorted(counts, key=lambda view: (view not in SCREENING_VIEWS, view))
    return " + ".join(view if counts[view] == 1 else f"{counts[view]} {view}" for view in ordered)


def describe_views(views: pd.DataFrame) -> str:
    """Return one line: how many breasts have a duplicate view, and how many have only one kind of view.

    Parameters
    ----------
    views : DataFrame
        From `views_per_breast`.
    """
    twice, alone = views.breasts[views.duplicate].sum(), views.breasts[views.one_view].sum()
    return (
        f"{views.breasts.sum():,} breasts in {len(views)} combinations of views: "
        f"{twice:,} have a view more than once, {alone:,} have one kind of view only."
    )


def cancer_by(images: pd.DataFrame, column: str, test: pd.DataFrame | None = None) -> pd.DataFrame:
    """Count breasts with cancer for each value of a column, such as the machine or site.

    Parameters
    ----------
    images : DataFrame
        Train table from `utils.tables.read_images`.
    column : str
        A breast counts once for each value that its images have. Missing values count as "unknown".
    test : DataFrame, optional
        Adds the values that only test.csv has.

    Returns
    -------
    DataFrame
        One row per value, the most common first: breasts, positives, rate, low and high (95 % Wilson interval), with
        ``test`` test_breasts, and note, which names values without positives and those that train.csv lacks. Empty if
        the table lacks the column.
    """
    counts = _breasts_by(images, column)
    table = pd.DataFrame({"breasts": counts.size(), "positives": counts.cancer.sum()})
    if test is not None and column in test:
        test_breasts = _breasts_by(test, column).size()
        table = table.reindex(table.index.union(test_breasts.index, sort=False), fill_value=0)
        table["test_breasts"] = test_breasts.reindex(table.index, fill_value=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 if only test.csv has a value
        table.insert(2, "rate", table.positives / table.breasts)
    intervals = [proportion(row.positives, row.breasts) for row in table.itertuples()]
    table.insert(3, "low", [interval.low for interval in intervals])
    table.insert(4, "high", [interval.high for interval in intervals])
    overall = table.positives.sum() / max(1, table.breasts.sum())
    table["note"] = [_note(row.breasts, row.positives, overall) for row in table.itertuples()]
    return table.sort_values("breasts", ascending=False, kind="stable").rename_axis(column)


def _breasts_by(images: pd.DataFrame, column: str):
    """Group breasts by the values of a column; without that column there are no groups."""
    if column not in images:
        images = images.head(0).reindex(columns=[*images, column])
    pairs = images.drop_duplicates(["prediction_id", column])
    return pairs.groupby(pairs[column].astype(object).fillna(UNKNOWN), sort=False)


def _note(breasts: int, positives: int, overall: float) -> str:
    """Return a note on a value without positives or without training breasts, else an empty text."""
    if not breasts:
        return "only in test.csv"
    if positives:
        return ""
    return f"no positive, {breasts * overall:.1f} expected" if overall else "no positive"


def describe_cancer_by(table: pd.DataFrame) -> str:
    """Return text that names the machines or sites without positive breasts, and those that train.csv lacks.

    Parameters
    ----------
    table : DataFrame
        From `cancer_by`.
    """
    name, noted = table.index.name, table[table.note != ""]
    if table.empty:
        return f"The tables have no column {name}."
    lines = [f"{name} {row.Index}: {row.note} (breasts: {row.breasts or row.test_breasts:,})." for row in noted.itertuples()]
    known = ", and train.csv knows all of test.csv's" if "test_breasts" in table else ""
    return "\n".join(lines) or f"Every {name} has positive breasts{known}."
