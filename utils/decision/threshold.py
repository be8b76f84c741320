"""threshold.json as an object, checked when it is made and when it is read."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.files import read_json, write_json
from utils.core.formats import build, check, check_types, naming
from utils.decision.calibration import Calibration
from utils.metrics.intervals import Interval
from utils.metrics.thresholds import CHOICES, site_decisions
from utils.runs.oof import AGGREGATIONS, PredictionError, check_weights, oof_of_runs

REMEDY = "Run tune_threshold.ipynb again to write this file, or delete it."
OOF_HASH = r"[0-9a-f]{12}"
SITE = r"0|-?[1-9][0-9]{0,17}"  # an integer in its only canonical form


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; all three are None if it is undefined."""

    value: float | None
    low: float | None
    high: float | None

    def __post_init__(self):
        """Check that the values are from -1 to 1, and low is at most high."""
        check_types(self)
        numbers = [number for number in (self.value, self.low, self.high) if number is not None]
        check(len(numbers) in (0, 3), "value", self.value, "null where low and high are, and a number where they are")
        for number in numbers:
            check(-1 <= number <= 1, "an estimate", number, "from -1 to 1")
        check(not numbers or self.low <= self.high, "low", self.low, f"at most high ({self.high})")

    @classmethod
    def of(cls, interval: Interval) -> "Estimate":
        """Convert an interval; NaN becomes None."""
        return cls(*(None if np.isnan(number) else float(number) for number in (interval.value, interval.low, interval.high)))

    def __str__(self) -> str:
        numbers = (np.nan if number is None else number for number in (self.value, self.low, self.high))
        return str(Interval(*numbers))


@dataclass(frozen=True)
class Threshold:
    """The content of threshold.json, of which this class is the only reader and writer.

    Parameters
    ----------
    threshold : float
        On the calibrated probability.
    choice : {"plateau", "maximum"}
        How the threshold was chosen; see `utils.metrics.thresholds`.
    aggregation : str
        How a breast's images are combined; see `utils.runs.oof.aggregate`.
    one_image : bool
        True if only one random image of each breast was used.
    pf1 : float
        Naive: chosen and measured on the same breasts.
    pf1_nested : Estimate
        Each fold is decided with the other folds' threshold.
    pf1_patient_nested : Estimate
        Random groups of patients, each decided with the other groups' threshold.
    optimism : float
        ``pf1`` minus ``pf1_patient_nested``.
    site_thresholds : dict of str to float
        Threshold by site_id; empty unless they gain more than noise.
    site_gain : Estimate or None
        Gain in pF1 from site thresholds; None if they were not tried.
    runs : tuple of str
        Run folders. In the file, those under its own folder are relative to it, so that the folder can be moved.
    weights : tuple of float
        Weights of the runs in their average.
    oof_hashes : tuple of str
        Hashes of the runs' oof.csv, which identify the runs, since paths differ between Kaggle notebooks.

    Raises
    ------
    FormatError
        If a value has the wrong type, is out of range, or contradicts another one.
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
            check(re.fullmatch(SITE, site) is not None, "site_thresholds", site, "keyed by whole numbers")
            check(0 <= threshold <= 1, f"site_thresholds: {site}", threshold, "from 0 to 1")
        check(self.breasts >= 1, "breasts", self.breasts, "1 or more")
        check(0 <= self.positives <= self.breasts, "positives", self.positives, f"from 0 to breasts ({self.breasts})")
        self._check_runs()

    def _check_runs(self) -> None:
        """Check that weights and hashes are valid, one for each run."""
        check(len(self.runs) >= 1, "runs", self.runs, "one folder or more")
        check_weights(self.weights, len(self.runs))
        for name in self.oof_hashes:
            check(re.fullmatch(OOF_HASH, name) is not None, "oof_hashes", name, "12 hexadecimal digits")
        check(len(self.oof_hashes) == len(self.runs), "oof_hashes", self.oof_hashes, f"as many as runs ({len(self.runs)})")

    @property
    def run_dirs(self) -> list[Path]:
        """The run folders as paths."""
        return [Path(run) for run in self.runs]

    def save(self, path: str | Path) -> None:
        """Write threshold.json."""
        folder = Path(path).resolve().parent
        write_json(path, asdict(self) | {"runs": [_relative(run, folder) for run in self.runs]})

    @classmethod
    def load(cls, path: str | Path) -> "Threshold":
        """Read and check a threshold.json.

        Raises
        ------
        PredictionError
            If this version of the kit can't read the file; names the file, the field and the remedy.
        """
        with naming(path, PredictionError, REMEDY):
            tuned = build(cls, read_json(path), complete=True)
        folder = Path(path).resolve().parent
        return replace(tuned, runs=tuple(str(folder / run) for run in tuned.runs))

    def calibrate(self, probabilities: pd.Series) -> pd.Series:
        """Calibrate probabilities by breast."""
        return pd.Series(self.calibration(probabilities), index=probabilities.index)

    def decide(self, calibrated: pd.Series, sites: pd.Series) -> pd.Series:
        """Decide with the threshold of each breast's site, or with the common one if the site has none.

        Parameters
        ----------
        calibrated : Series
            From `calibrate`, indexed by prediction_id.
        sites : Series
            site_id, indexed by prediction_id.

        Returns
        -------
        Series
            0 or 1, indexed by prediction_id.
        """
        each = {int(site): threshold for site, threshold in self.site_thresholds.items()}
        decisions = site_decisions(calibrated, sites.loc[calibrated.index], each, self.threshold)
        return pd.Series(decisions, index=calibrated.index)

    def weights_of(self, runs: Sequence[Path]) -> list[float]:
        """Return the weights of runs in the given order; copies of a run share its weight."""
        by_content = pd.Series(self.weights, index=self.oof_hashes, dtype=float).groupby(level=0).mean()
        return by_content.loc[[hash_oof(run) for run in runs]].tolist()

    def out_of_fold(self, runs: Sequence[Path]) -> pd.DataFrame:
        """Return the runs' out-of-fold breasts as used for tuning, with the calibrated probability."""
        oof = oof_of_runs(runs, self.aggregation, self.weights_of(runs), self.one_image)
        return oof.assign(probability=self.calibrate(oof.probability))

    def describe(self) -> pd.DataFrame:
        """Return a table of all fields, with intervals as text."""
        shown = {"calibration": self.calibration.method}
        for name in ("pf1_nested", "pf1_patient_nested", "auc", "site_gain"):
            shown[name] = None if getattr(self, name) is None else str(getattr(self, name))
        for name in ("runs", "weights", "oof_hashes"):
            shown[name] = ", ".join(str(item) for item in getattr(self, name))
        shown["site_thresholds"] = "; ".join(f"{site}: {value}" for site, value in self.site_thresholds.items())
        return pd.Series(vars(self) | shown).to_frame("value")


def _relative(run: str, folder: Path) -> str:
    """Return a run's path relative to ``folder`` if it is inside, else its absolute path."""
    path = Path(run).resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def hash_oof(run_dir: Path) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a run's oof.csv; raise PredictionError if it can't be read."""
    path = run_dir / "oof.csv"
    with naming(path, PredictionError, "Copy the run again from where it was trained, or leave it out of run_dirs."):
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
