"""The competition's real table, where it is at hand."""

from pathlib import Path

import pandas as pd
import pytest

from utils.tables.competition import read_images

REAL_TABLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "rsna-table"


@pytest.fixture(scope="session")
def real_images() -> pd.DataFrame:
    """Rows of the real train.csv; its tests are skipped without it."""
    if not REAL_TABLE.is_dir():
        pytest.skip("the competition's table is not here")
    return read_images(REAL_TABLE, "train")
