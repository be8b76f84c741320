"""threshold.json as an object: what is chosen on out-of-fold predictions, checked when it is made and when it is read."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from utils.core.environment import read_json
from utils.core.formats import build, check, check_types, naming
from utils.decision.calibration import Calibration
from utils.decision.thresholds import CHOICES
from utils.metrics.intervals import Interval
from utils.runs.oof import AGGREGATIONS, PredictionError, check_weights

REMEDY = "Run tune_threshold.ipynb again to write this file, or delete it."
OOF_HASH = r"[0-9a-f]{12}"
SITE = r"0|-?[1-9][0-9]{0,17}"  # a whole number, written in one way alone


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; all three are None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None

    def __post_init__(self):
        """Check that it is a figure from -1 to 1, in order."""
        check_types(self)
        numbers = [number for number in (self.value, self.low, self.high) if number is not None]
        check(len(numbers) in (0, 3), "value", self.value, "null where low and high are, and a number where they are")
        for number in numbers:
            check(-1 <= number <= 1, "an estimate", number, "from -1 to 1")
        check(not numbers or self.low <= self.high, "low", self.low, f"at most high ({self.high})")

    @classmethod
    def of(cls, interval: Interval) -> "Estimate":
        """Take an interval; NaN becomes None."""
        return cls(*(None if np.isnan(number) else float(number) for number in (interval.value, interval.low, interval.high)))


@dataclass(frozen=True)
class Threshold:
    """What threshold.json holds; `utils.decision.tuning.tune` says what each field means.

    Raises
    ------
    FormatError
        If a value is of another type, out of its range, or does not go together with another one.
    """

    threshold: float
    choice: str
    calibration: Calibration
    aggregation: str
    one_image: bool
    pf1: float
    pf1_nested: Estimate
    pf1_patient_nested: Estimate
    optimism: float
    auc: Estimate
    site_thresholds: dict[str, float]
    site_gain: Estimate | None
    breasts: int
    positives: int
    prevalence: float
    runs: tuple[str, ...]
    weights: tuple[float, ...]
    oof_hashes: tuple[str, ...]

    def __post_init__(self):
        """Check types and ranges."""
        check_types(self)
        for name in ("threshold", "pf1", "prevalence"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        check(-1 <= self.optimism <= 1, "optimism", self.optimism, "from -1 to 1")
        check(self.choice in CHOICES, "choice", self.choice, f"one of {', '.join(CHOICES)}")
        check(self.aggregation in AGGREGATIONS, "aggregation", self.aggregation, f"one of {', '.join(AGGREGATIONS)}")
        for site, threshold in self.site_thresholds.items():
            check(re.fullmatch(SITE, site) is not None, "site_thresholds", site, "named after whole numbers")
            check(0 <= threshold <= 1, f"site_thresholds: {site}", threshold, "from 0 to 1")
        check(self.breasts >= 1, "breasts", self.breasts, "1 or more")
        check(0 <= self.positives <= self.breasts, "positives", self.positives, f"from 0 to breasts ({self.breasts})")
        self._check_runs()

    def _check_runs(self) -> None:
        check(len(self.runs) >= 1, "runs", self.runs, "one folder or more")
        check_weights(self.weights, len(self.runs))
        for name in self.oof_hashes:
            check(re.fullmatch(OOF_HASH, name) is not None, "oof_hashes", name, "12 hexadecimal digits")
        check(len(self.oof_hashes) == len(self.runs), "oof_hashes", self.oof_hashes, f"as many as runs ({len(self.runs)})")

    def to_json(self) -> dict:
        """Plain dictionary, as written to threshold.json."""
        return json.loads(json.dumps(asdict(self)))


def read_threshold(path: str | Path) -> dict:
    """Read and check a threshold.json.

    Returns
    -------
    dict
        As from `utils.decision.tuning.tune`.

    Raises
    ------
    PredictionError
        If it is not a threshold.json of this version of the kit; names the file, the field and the remedy.
    """
    with naming(path, PredictionError, REMEDY):
        return build(Threshold, read_json(path), complete=True).to_json()
