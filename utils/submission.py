"""Probabilities to a submission that Kaggle takes, whatever could not be predicted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.environment import KitError, read_json, versions, write_csv, write_json
from utils.tables import read_images, read_sample_submission

PRIOR = 492 / 23_826  # share of positive breasts in the competition's training set


class SubmissionError(KitError):
    """Runs or predictions that can't become a submission; the message says what to change."""


def complete(probabilities: pd.Series, test_images: pd.DataFrame, prior: float) -> tuple[pd.Series, list[str]]:
    """Give every prediction_id of test.csv one finite probability.

    Parameters
    ----------
    probabilities : Series
        Indexed by prediction_id; may lack some or hold NaN.
    test_images : DataFrame
    prior : float
        The training prevalence, for breasts that could not be predicted.

    Returns
    -------
    completed : Series
        In [0, 1], in test.csv's order of first appearance.
    filled : list of str
        The prediction_ids that got the prior.
    """
    wanted = test_images.prediction_id.drop_duplicates()
    found = probabilities.reindex(wanted).astype(float)
    found = found.where(np.isfinite(found))
    return found.fillna(prior).clip(0, 1), found.index[found.isna()].tolist()


def write_prior(path: Path, competition_dir: str | Path | None) -> None:
    """Write a valid submission that knows nothing but the prevalence, so that there is one whatever happens next.

    Parameters
    ----------
    path : Path
        Of submission.csv.
    competition_dir : path or None
        Nothing is written where it is None.

    Raises
    ------
    SubmissionError
        If test.csv and sample_submission.csv do not name the same prediction_ids.
    """
    if competition_dir:
        test_images = read_images(competition_dir, "test")
        Draft(path, test_images, Path(competition_dir), PRIOR).update(pd.Series(dtype=float))
        print(f"{path} is valid from now on: every breast has the training prevalence, until it is predicted.")


@dataclass(frozen=True)
class Draft:
    """A submission.csv that is valid at any moment, and gets better with each update.

    Parameters
    ----------
    path : Path
        Of submission.csv; ``probabilities.csv`` goes beside it.
    test_images : DataFrame
        From `utils.tables.read_images`.
    competition_dir : Path
        Its sample_submission.csv says which ids are wanted.
    prior : float
        Probability of breasts that are not predicted: the training prevalence.
    decide : callable, optional
        Gives 0 or 1 by prediction_id for probabilities, as `utils.tuning.decide_tuned` does; None submits probabilities.
    """

    path: Path
    test_images: pd.DataFrame
    competition_dir: Path
    prior: float
    decide: Callable[[pd.Series], pd.Series] | None = None

    def update(self, probabilities: pd.Series) -> dict[str, pd.DataFrame]:
        """Write both files, each whole or not at all.

        Parameters
        ----------
        probabilities : Series
            Indexed by prediction_id, of the breasts that have been predicted.

        Returns
        -------
        dict of str to DataFrame
            What was written, by name.

        Raises
        ------
        SubmissionError
            If it would not be valid; nothing is written then.
        """
        completed, _ = complete(probabilities, self.test_images, self.prior)
        submitted = self.decide(completed).loc[completed.index] if self.decide else completed
        tables = {
            "submission": submitted.rename("cancer").rename_axis("prediction_id").reset_index(),
            "probabilities": completed.rename("probability").rename_axis("prediction_id").reset_index(),
        }
        validate_submission(tables["submission"], read_sample_submission(self.competition_dir))
        write_csv(self.path, tables["submission"])
        write_csv(self.path.with_name("probabilities.csv"), tables["probabilities"])
        return tables

    def finish(self, probabilities: pd.Series, submissions_dir: Path, provenance: dict) -> pd.DataFrame:
        """Write the last update, and a named copy of both files with a JSON of provenance.

        Parameters
        ----------
        probabilities : Series
        submissions_dir : Path
            Gets ``NAME.csv``, ``NAME_probabilities.csv`` and ``NAME.json``.
        provenance : dict
            Written to the JSON, with versions, time and the breasts that were not predicted.

        Returns
        -------
        DataFrame
            prediction_id, cancer, probability.
        """
        tables, moment = self.update(probabilities), time.strftime("%Y%m%d-%H%M%S")
        name = f"{moment}-{provenance.get('name', 'submission')}"
        write_csv(submissions_dir / f"{name}.csv", tables["submission"])
        write_csv(submissions_dir / f"{name}_probabilities.csv", tables["probabilities"])
        unpredicted = complete(probabilities, self.test_images, self.prior)[1]
        made = {"hard": self.decide is not None, "unpredicted": unpredicted, "time": moment, "versions": versions()}
        write_json(submissions_dir / f"{name}.json", provenance | made)
        submission = tables["submission"].merge(tables["probabilities"])
        print(f"{self.path}: {len(submission)} rows, {int((submission.cancer > 0.5).sum())} positive. Provenance: {name}.json")
        if unpredicted:
            print(f"{len(unpredicted)} breasts could not be predicted and have the prior: {' '.join(unpredicted[:5])}")
        return submission


def validate_submission(submission: pd.DataFrame, sample: pd.DataFrame) -> None:
    """Check a submission against sample_submission.csv.

    Raises
    ------
    SubmissionError
        If columns, ids or values are not what the competition wants; names the first offending ids.
    """
    if list(submission.columns) != ["prediction_id", "cancer"]:
        raise SubmissionError(f"The columns are {list(submission.columns)}, but must be prediction_id, cancer.")
    ids, wanted = set(submission.prediction_id), set(sample.prediction_id)
    values = submission.cancer.astype(float)
    problems = {
        "repeated": submission.prediction_id[submission.prediction_id.duplicated()].tolist(),
        "missing": sorted(wanted - ids),
        "not in sample_submission.csv": sorted(ids - wanted),
        "without a value in [0, 1]": submission.prediction_id[~values.between(0, 1)].tolist(),
    }
    listed = [f"{len(found)} {what}: {', '.join(found[:3])}" for what, found in problems.items() if found]
    if listed:
        raise SubmissionError(f"The submission is not valid. prediction_ids {'; '.join(listed)}.")


def training_prevalence(run_dirs: Sequence[Path]) -> float:
    """Share of positive breasts in the runs' training tables: the best guess for a breast that can't be read."""
    return float(np.mean([read_json(run / "config.json")["prevalence"] for run in run_dirs]))
