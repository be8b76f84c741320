"""Facts about the auxiliary targets."""

import numpy as np
import pandas as pd
import pytest

from utils.networks.auxiliary import AGE_GROUPS, CLASSES, MISSING, SIZES, auxiliary_targets

COLUMNS = (*CLASSES, "age")


def encode(**columns) -> pd.DataFrame:
    return pd.DataFrame(auxiliary_targets(pd.DataFrame(columns)), columns=COLUMNS)


@pytest.mark.parametrize(
    ("name", "values", "codes"),
    [
        ("biopsy", [1.0, 0.0], [1, 0]),
        ("invasive", [1, 0], [1, 0]),
        ("BIRADS", [2.0, 0.0, 1.0], [2, 0, 1]),
        ("density", ["D", "A", "C", "B"], [3, 0, 2, 1]),
        ("view", ["MLO", "CC"], [1, 0]),
        ("laterality", ["R", "L"], [1, 0]),
        ("site_id", [2, 1], [1, 0]),
    ],
)
def test_each_class_has_its_number(name, values, codes):
    assert encode(**{name: values})[name].tolist() == codes


def test_missing_and_unknown_values_are_marked_missing():
    found = encode(BIRADS=[np.nan, 3.0, 0.5], density=[None, "E", ""], view=["AT", "cc", None], site_id=[3, 0, 12])
    assert (found == MISSING).all(axis=None)


def test_absent_columns_are_missing_in_every_row():
    found = encode(image_id=["1", "2"], view=["CC", "MLO"])
    assert found["view"].tolist() == [0, 1]
    assert (found.drop(columns="view") == MISSING).all(axis=None)


def test_age_groups_begin_at_their_years():
    ages = [26, 39.9, 40, 50, 59, 60, 69, 70, 89, np.nan]
    assert encode(age=ages).age.tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 4, MISSING]


def test_sizes_are_the_numbers_of_classes_in_the_order_of_the_columns():
    rows = max(SIZES)
    every = {name: [values[row % len(values)] for row in range(rows)] for name, values in CLASSES.items()}
    ages = [(AGE_GROUPS[0] - 1, *AGE_GROUPS)[row % (len(AGE_GROUPS) + 1)] for row in range(rows)]
    found = encode(**every, age=ages)
    assert found.nunique().tolist() == (found.max() + 1).tolist() == list(SIZES)


def test_codes_of_a_train_table_tell_its_values(images):
    found = pd.DataFrame(auxiliary_targets(images), columns=COLUMNS)
    assert found.shape == (len(images), len(SIZES)) and found.dtypes.eq(np.int64).all()
    for name, values in CLASSES.items():
        for code, value in enumerate(values):
            same = images[name].astype(str).str.removesuffix(".0") == value
            assert (found[name] == code).tolist() == same.tolist(), name


def test_no_rows_give_no_targets():
    assert auxiliary_targets(pd.DataFrame({"age": [], "view": []})).shape == (0, len(SIZES))
