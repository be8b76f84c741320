"""Test DICOMs and trained runs to a submission that Kaggle takes, whatever could not be read."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.cache import CacheSettings, build_cache, default_cache_dir, summarise
from utils.configuration import TrainConfig
from utils.environment import KitError, pick_device, read_json, versions, write_atomic, write_json
from utils.inference import predict_logits
from utils.metrics import sigmoid
from utils.phantom import is_phantom_competition
from utils.predictions import aggregate
from utils.run_folder import finished_folds, load_config
from utils.tables import read_sample_submission
from utils.training import load_fold, make_dataset
from utils.tuning import apply_tuned, weights_of


class SubmissionError(KitError):
    """Runs or predictions that can't become a submission; the message says what to change."""


def predict_test(
    run_dir: Path, test_images: pd.DataFrame, competition_dir: Path, cache_dir: Path | None, aggregation: str, num_workers: int
) -> pd.Series:
    """Predict test breasts with every trained fold of a run, and average the folds.

    The images go through the preprocessing that the run was trained on, and no other.

    Parameters
    ----------
    run_dir : Path
    test_images : DataFrame
        From `utils.tables.read_images`.
    competition_dir : Path
    cache_dir : Path or None
        None for the default of the run's preprocessing.
    aggregation : str
        See `aggregate`.
    num_workers : int

    Returns
    -------
    Series
        Probability indexed by prediction_id; breasts without a readable image are absent.

    Raises
    ------
    SubmissionError
        If the run was trained with a preprocessing that this version of the kit does not do any more.
    """
    config = load_config(run_dir)
    check_run(run_dir, is_phantom_competition(competition_dir))
    settings = config.preprocessing
    cache_dir = cache_dir or default_cache_dir(competition_dir, settings)
    manifest = build_cache(test_images, competition_dir, "test", cache_dir, settings, num_workers)
    print(summarise(manifest))
    readable = test_images[(manifest.error == "").to_numpy()]
    fold_dirs = finished_folds(run_dir)
    if not fold_dirs:
        raise SubmissionError(f"{run_dir} holds no finished fold (fold*/oof.csv): leave it out of run_dirs, or train it.")
    by_fold = [_predict_fold(config, fold_dir, readable, cache_dir, aggregation) for fold_dir in fold_dirs]
    return pd.concat(by_fold, axis=1).mean(axis=1) if len(readable) else pd.Series(dtype=float)


def predict_runs(
    runs: Sequence[Path],
    test_images: pd.DataFrame,
    competition_dir: Path,
    cache_dir: Path | None,
    tuned: dict,
    num_workers: int,
) -> pd.Series:
    """Average the predictions of runs by their weights, and calibrate them.

    Parameters
    ----------
    runs : sequence of Path
    test_images, competition_dir, cache_dir, num_workers
        As in `predict_test`.
    tuned : dict
        From `utils.tuning.find_threshold`.

    Returns
    -------
    Series
        Probability indexed by prediction_id; breasts that no run could predict are absent.
    """
    weights = {run: weight for run, weight in zip(runs, weights_of(tuned, runs), strict=True) if weight > 0}
    aggregation = tuned["aggregation"]
    by_run = [predict_test(run, test_images, competition_dir, cache_dir, aggregation, num_workers) for run in weights]
    table, weight = pd.concat(by_run, axis=1), list(weights.values())
    averaged = (table * weight).sum(axis=1) / (table.notna() * weight).sum(axis=1)  # of the runs that could read the breast
    return apply_tuned(tuned, averaged)


def check_run(run_dir: Path, is_phantom: bool) -> None:
    """Refuse a run whose pictures were made otherwise than they would be made now, and phantom models for real images.

    Parameters
    ----------
    run_dir : Path
    is_phantom : bool
        Whether the images to be predicted are the phantom's.

    Raises
    ------
    SubmissionError
        If the preprocessing's version or hash is not today's, or the run was trained on the phantom and the images are real.
    """
    notes, settings = read_json(Path(run_dir) / "config.json"), load_config(run_dir).preprocessing
    if notes["settings_hash"] != settings.hash or settings.version != CacheSettings().version:
        raise SubmissionError(
            f"{run_dir} was trained on preprocessing {notes['settings_hash']} of version {settings.version}, which this kit"
            f" (version {CacheSettings().version}) does not do: train it again, or submit with the kit that trained it."
        )
    if notes.get("phantom", False) and not is_phantom:
        raise SubmissionError(f"{run_dir} was trained on the phantom, but the images are real: name other run_dirs.")


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


def write_submission(
    path: Path,
    submissions_dir: Path,
    probabilities: pd.Series,
    decisions: pd.Series | None,
    competition_dir: Path,
    provenance: dict,
) -> pd.DataFrame:
    """Write submission.csv, its probabilities, and a named copy of both with a JSON of provenance.

    Parameters
    ----------
    path : Path
        Of submission.csv; ``probabilities.csv`` goes beside it.
    submissions_dir : Path
        Gets ``NAME.csv``, ``NAME_probabilities.csv`` and ``NAME.json``.
    probabilities : Series
        From `complete`.
    decisions : Series or None
        0 or 1 by prediction_id, from `utils.tuning.decide_tuned`; None submits the probabilities themselves.
    competition_dir : Path
        Its sample_submission.csv says which ids are wanted.
    provenance : dict
        Written to the JSON, with versions and time added.

    Returns
    -------
    DataFrame
        The submission: prediction_id, cancer.

    Raises
    ------
    SubmissionError
        If it would not be valid; nothing is written then.
    """
    submission = probabilities.rename("cancer").rename_axis("prediction_id").reset_index()
    table = submission.rename(columns={"cancer": "probability"})
    if decisions is not None:
        submission["cancer"] = decisions.loc[submission.prediction_id].to_numpy()
    validate_submission(submission, read_sample_submission(competition_dir))
    moment = time.strftime("%Y%m%d-%H%M%S")
    name = f"{moment}-{provenance.get('name', 'submission')}"
    copies = {
        path: submission,
        path.with_name("probabilities.csv"): table,
        submissions_dir / f"{name}.csv": submission,
        submissions_dir / f"{name}_probabilities.csv": table,
    }
    for target, content in copies.items():
        with write_atomic(target) as temporary:
            content.to_csv(temporary, index=False)
    made = {"hard": decisions is not None, "time": moment, "versions": versions()}
    write_json(submissions_dir / f"{name}.json", provenance | made)
    print(f"{path}: {len(submission)} rows, {int((submission.cancer > 0.5).sum())} positive. Provenance: {name}.json")
    return submission


def check_sample(test_images: pd.DataFrame, competition_dir: Path) -> None:
    """Check, before hours of prediction, that test.csv and sample_submission.csv name the same prediction_ids.

    Raises
    ------
    SubmissionError
        Naming the first that differ.
    """
    prior = pd.DataFrame({"prediction_id": test_images.prediction_id.unique(), "cancer": 0.0})
    validate_submission(prior, read_sample_submission(competition_dir))


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


def _predict_fold(config: TrainConfig, fold_dir: Path, images: pd.DataFrame, cache_dir: Path, aggregation: str) -> pd.Series:
    model, vocabulary = load_fold(config, fold_dir)
    device = pick_device()
    dataset = make_dataset(config, images, cache_dir, "test", vocabulary)
    logits = predict_logits(model.to(device), dataset, config, device)
    return aggregate(dataset.items.assign(probability=sigmoid(logits)), aggregation)
