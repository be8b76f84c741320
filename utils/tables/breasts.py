"""One row per breast, the unit that is scored."""

import pandas as pd


def by_breast(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the first row of each breast, by prediction_id, in the order of ``rows``.

    Only columns that are constant within a breast, such as patient_id, cancer and fold, describe it.
    """
    return rows.drop_duplicates("prediction_id").set_index("prediction_id")
