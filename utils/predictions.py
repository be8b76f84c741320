"""From predictions of images to a submission: one probability per prediction_id, a threshold, and a CSV that Kaggle takes."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from utils.cache import build_cache, default_cache_dir, summarise
from utils.environment import (
    KAGGLE_INPUT,
    KitError,
    cpu_count,
    find_competition,
    pick_device,
    read_json,
    resolve,
    versions,
    working_dir,
    write_atomic,
    write_json,
)
from utils.inputs import open_inputs
from utils.metrics import Interval, auc_interval, best_threshold, decide, nested_decisions, pf1_interval, sigmoid
from utils.models import ModelConfig
from utils.tables import read_sample_submission
from utils.training import TrainConfig, load_config, load_fold, make_dataset, predict_logits, read_oof, train_run

AGGREGATIONS = ("mean", "max", "top_k")


class SubmissionError(KitError):
    """Runs or predictions that can't become a submission; the message says what to change."""


def aggregate(predictions: pd.DataFrame, method: str = "mean", top_k: int = 2) -> pd.Series:
    """Join the predictions of a breast's images into one probability.

    Parameters
    ----------
    predictions : DataFrame
        Columns prediction_id and probability, one row per image (or per breast).
    method : {"mean", "max", "top_k"}
        ``top_k`` is the mean of the ``top_k`` highest; of all where a breast has fewer.
    top_k : int

    Returns
    -------
    Series
        Probability in [0, 1], indexed by prediction_id in order of first appearance.
    """
    if method not in AGGREGATIONS:
        raise SubmissionError(f"aggregation is {method!r}; choose from {', '.join(AGGREGATIONS)}.")
    if method == "top_k":
        predictions = predictions.sort_values("probability", ascending=False, kind="stable")
        kept = predictions.groupby("prediction_id", sort=False).head(top_k)
        means = kept.groupby("prediction_id", sort=False).probability.mean()
        return means.loc[predictions.sort_index().prediction_id.unique()]
    grouped = predictions.groupby("prediction_id", sort=False).probability
    return grouped.mean() if method == "mean" else grouped.max()


def one_image_per_breast(oof: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Keep one image of each breast, drawn at random: a fair count where the number of images tells the label."""
    shuffled = oof.sample(frac=1, random_state=seed)
    return shuffled.drop_duplicates("prediction_id").sort_index()


def find_runs(run_dirs: str | Sequence[str] | None = None) -> list[Path]:
    """Find finished runs: those named, else all under the working folder and, on Kaggle, the attached inputs.

    Parameters
    ----------
    run_dirs : str, sequence of str, or None
        Folders, as a list or as one text with commas between.

    Returns
    -------
    list of Path
        Each holds an ``oof.csv``; empty only if nothing was named and nothing found.

    Raises
    ------
    SubmissionError
        If a named folder holds no finished run.
    """
    if not run_dirs:
        roots = [working_dir() / "runs", KAGGLE_INPUT]
        found = [path.parent for root in roots for path in sorted(root.glob("**/oof.csv"))]
        return [run for run in found if (run / "config.json").is_file()]
    names = run_dirs.split(",") if isinstance(run_dirs, str) else run_dirs
    runs = [resolve(name.strip()) for name in names]
    for run in runs:
        if not (run / "oof.csv").is_file():
            raise SubmissionError(f"{run} holds no finished run (no oof.csv): let train.ipynb finish it, or leave it out.")
    return runs


def find_or_train_runs(run_dirs: str | Sequence[str] | None = None, smoke_test: bool = False) -> list[Path]:
    """Find finished runs; where there is none and no competition's data either, train a small one on the phantom.

    Raises
    ------
    SubmissionError
        If there is data, but no finished run.
    """
    runs = find_runs(run_dirs)
    if runs:
        return runs
    if find_competition() and not smoke_test:
        raise SubmissionError(f"No finished run under {working_dir() / 'runs'}: run train.ipynb first, or name run_dirs.")
    print("No finished run found: training a small plain CNN on the phantom competition, as an example.")
    inputs = open_inputs(None, smoke_test=smoke_test)
    images, manifest = inputs.cached("train", cpu_count())
    model = ModelConfig("cnn", inputs.settings.image_height, inputs.settings.image_width)
    config = TrainConfig(model, inputs.settings, n_folds=2, epochs=1 if smoke_test else 4, learning_rate=1e-3)
    run_dir = working_dir() / "runs" / "cnn-example"
    train_run(config, images[(manifest.error == "").to_numpy()], inputs.cache_dir, run_dir)
    return [run_dir]


def find_threshold(runs: Sequence[Path], threshold_path: str = "") -> dict:
    """Read threshold.json where it is for these runs; else tune now, with the defaults.

    Raises
    ------
    SubmissionError
        If the named file does not exist, or was tuned on other runs.
    """
    path = resolve(threshold_path) if threshold_path else working_dir() / "threshold.json"
    if not path.is_file():
        if threshold_path:
            raise SubmissionError(f"threshold_path {path} does not exist: run tune_threshold.ipynb first.")
        print("No threshold.json: tuning on these runs' out-of-fold predictions now.")
        return tune(runs)
    tuned = read_json(path)
    if {Path(run).name for run in tuned["runs"]} == {run.name for run in runs}:
        return tuned
    if threshold_path:
        raise SubmissionError(f"{path} was tuned on {', '.join(tuned['runs'])}: run tune_threshold.ipynb with these run_dirs.")
    print(f"{path} was tuned on other runs: tuning on these now.")
    return tune(runs)


def runs_to_submit(run_dirs: str = "", threshold_path: str = "", smoke_test: bool = False) -> list[Path]:
    """Runs that are named; else those that the threshold was tuned on, where they are still there; else all."""
    path = resolve(threshold_path) if threshold_path else working_dir() / "threshold.json"
    if not run_dirs and path.is_file():
        tuned = [Path(run) for run in read_json(path)["runs"]]
        if all((run / "oof.csv").is_file() for run in tuned):
            return tuned
    return find_or_train_runs(run_dirs, smoke_test)


def oof_of_runs(run_dirs: Sequence[Path], aggregation: str = "mean") -> pd.DataFrame:
    """Average the out-of-fold probabilities of runs, one row per breast.

    Returns
    -------
    DataFrame
        Columns prediction_id, patient_id, fold, cancer, probability: the breasts that every run has predicted; ``fold`` is
        the first run's.
    """
    first = read_oof(run_dirs[0] / "oof.csv")
    breasts = first.drop_duplicates("prediction_id").set_index("prediction_id")[["patient_id", "fold", "cancer"]]
    columns = [aggregate(read_oof(run / "oof.csv"), aggregation) for run in run_dirs]
    breasts["probability"] = pd.concat(columns, axis=1, join="inner").mean(axis=1)
    return breasts.dropna(subset="probability").reset_index()


def tune(run_dirs: Sequence[Path], aggregation: str = "mean", seed: int = 0) -> dict:
    """Choose the threshold of one or several averaged runs on their out-of-fold predictions.

    Returns
    -------
    dict
        As in ``threshold.json``: threshold, aggregation, pf1 (naive: tuned and measured on the same data), pf1_nested (each
        fold decided with the others' threshold) with its 95 % interval, auc with its interval, and the runs.
    """
    oof = oof_of_runs(run_dirs, aggregation)
    threshold, pf1 = best_threshold(oof.cancer, oof.probability)
    nested = nested_decisions(oof.cancer, oof.probability, oof.fold)
    return {
        "threshold": threshold,
        "aggregation": aggregation,
        "pf1": pf1,
        "pf1_nested": _plain(pf1_interval(oof.cancer, nested, oof.patient_id, seed)),
        "auc": _plain(auc_interval(oof.cancer, oof.probability, oof.patient_id, seed)),
        "breasts": len(oof),
        "positives": int(oof.cancer.sum()),
        "prevalence": float(oof.cancer.mean()),
        "runs": [str(run) for run in run_dirs],
    }


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
    check_preprocessing(run_dir, config)
    settings = config.preprocessing
    cache_dir = cache_dir or default_cache_dir(competition_dir, settings)
    manifest = build_cache(test_images, competition_dir, "test", cache_dir, settings, num_workers)
    print(summarise(manifest))
    readable = test_images[(manifest.error == "").to_numpy()]
    fold_dirs = [path.parent for path in sorted(run_dir.glob("fold*/weights.safetensors"))]
    if not fold_dirs:
        raise SubmissionError(f"{run_dir} holds no weights (fold*/weights.safetensors): leave it out of run_dirs, or train it.")
    by_fold = [_predict_fold(config, fold_dir, readable, cache_dir, aggregation) for fold_dir in fold_dirs]
    return pd.concat(by_fold, axis=1).mean(axis=1) if len(readable) else pd.Series(dtype=float)


def predict_runs(
    runs: Sequence[Path],
    test_images: pd.DataFrame,
    competition_dir: Path,
    cache_dir: Path | None,
    aggregation: str,
    num_workers: int,
) -> pd.Series:
    """Average the predictions of runs; the parameters are those of `predict_test`."""
    by_run = [predict_test(run, test_images, competition_dir, cache_dir, aggregation, num_workers) for run in runs]
    return pd.concat(by_run, axis=1).mean(axis=1)


def check_preprocessing(run_dir: Path, config: TrainConfig) -> None:
    """Refuse a run whose pictures were made otherwise than they would be made now.

    Raises
    ------
    SubmissionError
        If the hash of the run's preprocessing is not the one that was recorded when it was trained.
    """
    recorded = read_json(Path(run_dir) / "config.json").get("settings_hash")
    if recorded != config.preprocessing.hash:
        raise SubmissionError(
            f"{run_dir} was trained on preprocessing {recorded}, but this version would feed it {config.preprocessing.hash}:"
            " train it again, or submit with the version of the kit that trained it."
        )


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
    threshold: float | None,
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
    threshold : float or None
        None submits the probabilities themselves instead of hard 0/1.
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
    if threshold is not None:
        submission["cancer"] = decide(submission.cancer, threshold)
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
    write_json(submissions_dir / f"{name}.json", provenance | {"threshold": threshold, "time": moment, "versions": versions()})
    print(f"{path}: {len(submission)} rows, {int((submission.cancer > 0.5).sum())} positive. Provenance: {name}.json")
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


def _predict_fold(config: TrainConfig, fold_dir: Path, images: pd.DataFrame, cache_dir: Path, aggregation: str) -> pd.Series:
    model, vocabulary = load_fold(config, fold_dir)
    device = pick_device()
    dataset = make_dataset(config, images, cache_dir, "test", vocabulary)
    logits = predict_logits(model.to(device), dataset, config, device)
    return aggregate(dataset.items.assign(probability=sigmoid(logits)), aggregation)


def _plain(interval: Interval) -> dict:
    return {key: None if np.isnan(value) else value for key, value in asdict(interval).items()}
