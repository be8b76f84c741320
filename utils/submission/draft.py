"""Turn probabilities into a submission that Kaggle accepts, even if some breasts could not be predicted."""

import contextlib
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core.errors import KitError
from utils.core.files import write_csv, write_json
from utils.core.versions import versions
from utils.runs.run import Run
from utils.tables.competition import read_images, read_sample_submission

PRIOR = 492 / 23_826  # share of positive breasts in the competition's training set
SUBMITTED, PREDICTED = ["prediction_id", "cancer"], ["prediction_id", "probability"]
SAMPLE_FILE = "sample_submission.csv"
PROBABILITIES_FILE = "probabilities.csv"
LONGEST_NAME = 100  # bytes of a copy's name; file systems allow 255, including time and suffixes


class SubmissionError(KitError):
    """Runs or predictions can't become a submission; the message says what to change."""


def complete(probabilities: pd.Series, test_images: pd.DataFrame, prior: float) -> tuple[pd.Series, list[str]]:
    """Give every prediction_id of test.csv a finite probability in [0, 1], in order of first appearance.

    Also return the prediction_ids that got the prior because ``probabilities`` lacks them or is not finite there.
    """
    wanted = test_images.prediction_id.drop_duplicates()
    found = probabilities.reindex(wanted).astype(float)
    found = found.where(np.isfinite(found))
    return found.fillna(prior).clip(0, 1), found.index[found.isna()].tolist()


@contextlib.contextmanager
def warning_only(what: str) -> Iterator[None]:
    """Print an error in the block as a warning: nothing after submission.csv may end the notebook.

    On Kaggle, a notebook that ends in an error has no submission, whatever it wrote before.

    Parameters
    ----------
    what : str
        A sentence that says what is missing if the block fails.
    """
    try:
        yield
    except Exception as error:  # of any type: nothing that follows is worth losing the submission
        print(f"Warning: {what} ({type(error).__name__}: {error})")


def write_prior(path: Path, competition_dir: str | Path | None) -> None:
    """Write a valid submission with the training prevalence for every breast, so that one exists whatever happens next.

    Own images need none, and files of an earlier folder stay until there is something better.

    Parameters
    ----------
    path : Path
        Path of submission.csv.
    competition_dir : path or None
        If None, nothing is written.

    Raises
    ------
    SubmissionError
        If test.csv and sample_submission.csv differ in their prediction_ids, or the file can't be written.
    """
    if not competition_dir:
        return
    draft = Draft(path, read_images(competition_dir, "test"), Path(competition_dir), PRIOR)
    if draft.is_own:
        print(f"{competition_dir} has no {SAMPLE_FILE}: these are your own images, and {PROBABILITIES_FILE} is the result.")
        return
    try:
        draft.update(pd.Series(dtype=float))
    except OSError as error:
        raise SubmissionError(f"{path} can't be written ({error.strerror}): give another submission_path.") from error
    print(f"{path} is valid from now on; every breast has the training prevalence until it is predicted.")


@dataclass(frozen=True)
class Draft:
    """A submission.csv that is valid at any moment and improves with each update.

    A breast with a prediction gets the decision. A breast without one keeps the prior, a probability, until the last update
    makes that a decision too. A submission of only zeros scores 0, hence two exceptions:

    - If no breast has a prediction, or probabilities are submitted and all are 0, every breast has the prior.
    - If no prediction reaches the threshold, the highest ones become positive, in the number that the prior expects.

    Own images have no exceptions, since nothing scores them: all decisions may be 0, and a breast without a prediction
    has an empty probability.

    Parameters
    ----------
    path : Path
        Path of submission.csv; ``probabilities.csv`` is written to the same folder.
    test_images : DataFrame
        From `utils.tables.read_images`.
    competition_dir : Path
        Its sample_submission.csv lists the required ids. Without that file the images are a user's own, and test.csv does.
    prior : float
        Probability of breasts without a prediction: the training prevalence.
    decide : callable, optional
        Maps probabilities to 0 or 1 by prediction_id, like `utils.decision.threshold.Threshold.decide`. None submits
        probabilities.
    """

    path: Path
    test_images: pd.DataFrame
    competition_dir: Path
    prior: float
    decide: Callable[[pd.Series], pd.Series] | None = None

    @cached_property
    def is_own(self) -> bool:
        """True if the images are a user's own: no sample_submission.csv, so there is nothing to submit to."""
        return not (self.competition_dir / SAMPLE_FILE).exists()

    @cached_property
    def _sample(self) -> pd.DataFrame:
        """Return the required prediction_ids."""
        if self.is_own:
            return self.test_images[["prediction_id"]].drop_duplicates()
        return read_sample_submission(self.competition_dir)

    def what_next(self, submissions_dir: Path, is_for_show: bool = False) -> str:
        """Return text that says where the files are and what they are for, after `finish`.

        ``is_for_show`` means that the images are a phantom's, or that this is a smoke test.
        """
        probabilities = self.path.with_name(PROBABILITIES_FILE)
        copies = f"Copies with their provenance are in {submissions_dir}."
        if not self.is_own:
            todo = f"{self.path} only shows that everything works: do not submit it." if is_for_show else f"Submit {self.path}."
            return f"{todo} The probabilities before the threshold are in {probabilities}. {copies}"
        decided = " after the threshold tuned on the runs' own data" if self.decide else ""
        return (
            f"{probabilities} has one probability per breast. The runs learned from breasts of which {self.prior:.1%} have"
            f" cancer: if cancer is rarer or more common in your images, rely on the order, not on the values."
            f" {self.path} has the same{decided}. {copies}"
        )

    def update(self, probabilities: pd.Series) -> pd.DataFrame:
        """Write both files, each atomically.

        Parameters
        ----------
        probabilities : Series
            Indexed by prediction_id; only breasts that have been predicted.

        Returns
        -------
        DataFrame
            prediction_id, cancer (as submitted), probability.

        Raises
        ------
        SubmissionError
            If the submission would be invalid; then nothing is written.
        """
        table, _ = self._table(*complete(probabilities, self.test_images, self.prior), is_last=False)
        self._write(table)
        return table

    def finish(self, probabilities: pd.Series, submissions_dir: Path, provenance: dict) -> pd.DataFrame:
        """Write the last update, and a named copy of both files with their provenance as JSON.

        After submission.csv is written nothing raises; failures are printed as warnings.

        Parameters
        ----------
        probabilities : Series
            As in `update`.
        submissions_dir : Path
            Gets ``NAME.csv``, ``NAME_probabilities.csv`` and ``NAME.json``; existing files are kept.
        provenance : dict
            Written to the JSON, with versions, time, notes and the breasts without a prediction.

        Returns
        -------
        DataFrame
            As in `update`.

        Raises
        ------
        SubmissionError
            If the submission would be invalid; then nothing is written.
        OSError
            If submission.csv can't be written and does not exist from an earlier update.
        """
        completed, unpredicted = complete(probabilities, self.test_images, self.prior)
        table, notes = self._table(completed, unpredicted, is_last=True)
        try:
            self._write(table)
        except OSError as error:
            if not self.path.is_file():
                raise
            notes.append(f"The last update failed ({error}): {self.path} is valid, but may be that of an earlier update.")
        made = {"hard": self.decide is not None, "unpredicted": unpredicted, "notes": notes}
        with warning_only("The submission was written, but its copies are incomplete."):
            print(f"{self.path}: {len(table)} rows, {int((table.cancer > 0.5).sum())} positive.", *notes, sep="\n")
            print(f"Provenance: {keep_copies(table, submissions_dir, provenance | made)}.json in {submissions_dir}")
        return table

    def _table(self, completed: pd.Series, unpredicted: list[str], is_last: bool) -> tuple[pd.DataFrame, list[str]]:
        """Return prediction_id, cancer and probability, and notes on anything unusual about them."""
        submitted, is_predicted = completed, ~completed.index.isin(unpredicted)
        notes = self._unpredicted_notes(unpredicted, len(completed))
        if self.decide and is_predicted.any():
            submitted, note = self._decide(completed, is_predicted, is_last)
            notes += [note] if note else []
        if not submitted.any() and not self.is_own:  # probabilities may underflow
            submitted = submitted + self.prior
            notes.append("All probabilities are 0: every breast has the prior.")
        probability = completed.where(is_predicted) if self.is_own else completed
        table = pd.DataFrame({"cancer": submitted, "probability": probability}).rename_axis("prediction_id").reset_index()
        validate_submission(table[SUBMITTED], self._sample)
        return table, notes

    def _unpredicted_notes(self, unpredicted: list[str], count: int) -> list[str]:
        """Return a note on the breasts without a prediction, if there are any."""
        if not unpredicted:
            return []
        empty = f" {PROBABILITIES_FILE} leaves them empty." if self.is_own else ""
        if len(unpredicted) == count:
            return [f"No breast could be predicted: every breast has the prior.{empty}"]
        names = ", ".join(unpredicted[:5])
        return [f"{len(unpredicted)} of {count} breasts could not be predicted and count as the prior: {names}.{empty}"]

    def _decide(self, completed: pd.Series, is_predicted: np.ndarray, is_last: bool) -> tuple[pd.Series, str]:
        """Return 0 or 1 (if not the last, the prior for unpredicted breasts), and a note if none or all are positive."""
        decided, note = self.decide(completed).loc[completed.index], ""
        predicted = completed[is_predicted]
        if not decided[is_predicted].any() and not self.is_own:
            count = max(1, round(self.prior * len(predicted)))
            decided = decided.mask(decided.index.isin(predicted.nlargest(count).index), 1)
            note = f"No probability reaches the threshold: the {count} highest of {len(predicted)} are submitted as positive."
        elif len(predicted) > 1 and decided[is_predicted].all():
            note = f"All {len(predicted)} predicted breasts reach the threshold: {self.path.name} does not rank them."
        if not is_last and not is_predicted.all():
            decided = decided.astype(float).where(is_predicted, completed)
        return decided, note

    def _write(self, table: pd.DataFrame) -> None:
        write_csv(self.path, table[SUBMITTED])
        write_csv(self.path.with_name(PROBABILITIES_FILE), table[PREDICTED])


def keep_copies(table: pd.DataFrame, folder: Path, provenance: dict) -> str:
    """Write submission, probabilities and provenance to a folder under a new name, which is returned without suffix.

    The name consists of the time and ``provenance["name"]``; time and versions are added to the provenance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moment = time.strftime("%Y%m%d-%H%M%S")
    name = _claim_name(folder, f"{moment}-{_file_name(str(provenance.get('name', '')))}")
    try:
        write_csv(folder / f"{name}.csv", table[SUBMITTED])
    except BaseException:
        (folder / f"{name}.csv").unlink(missing_ok=True)  # it is empty
        raise
    write_csv(folder / f"{name}_probabilities.csv", table[PREDICTED])
    write_json(folder / f"{name}.json", _plain(provenance | {"time": moment, "versions": versions()}))
    return name


def _file_name(text: str) -> str:
    """Convert text to part of a file name: letters, digits, "_", "." and "-", at most `LONGEST_NAME` bytes."""
    name = re.sub(r"[^\w.-]+", "_", text).encode()[:LONGEST_NAME].decode(errors="ignore")
    return name or "submission"


def _claim_name(folder: Path, stem: str) -> str:
    """Reserve a name that no other submission has, even one of the same second or of another process."""
    numbered = (f"{stem}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([stem], numbered) if _claim(folder, name))


def _claim(folder: Path, name: str) -> bool:
    """Reserve a name by creating its CSV; False if the name is taken."""
    if any((folder / f"{name}{ending}").exists() for ending in ("_probabilities.csv", ".json")):
        return False
    try:
        (folder / f"{name}.csv").touch(exist_ok=False)  # succeeds in only one of several processes
    except FileExistsError:
        return False
    return True


def _plain(value: object) -> object:
    """Convert a value to what JSON can represent: NaN and infinity become null, unknown types become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic | pd.Series | pd.Index):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def validate_submission(submission: pd.DataFrame, sample: pd.DataFrame) -> None:
    """Check a submission against sample_submission.csv.

    Raises
    ------
    SubmissionError
        If columns, ids or values are not what the competition requires; names the first offending ids.
    """
    if list(submission.columns) != SUBMITTED:
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
    """Return the mean share of positive breasts in the runs' training tables: the best guess for an unreadable breast."""
    return float(np.mean([Run(run).notes.prevalence for run in run_dirs]))
