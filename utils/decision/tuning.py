"""Tune aggregation, calibration and threshold on out-of-fold predictions, and find the threshold.json of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.core.folders import KAGGLE_INPUT, resolve, working_dir
from utils.decision.calibration import Calibration, compare_calibrations, fit_calibration
from utils.decision.threshold import Estimate, Threshold, hash_oof
from utils.images.inputs import has_real_data
from utils.metrics.intervals import Interval, PatientBootstrap
from utils.metrics.scores import decide, probabilistic_f1
from utils.metrics.thresholds import CHOICES, Choose, nested_decisions, patient_nested, site_decisions, site_thresholds
from utils.runs.found import SKIPPED_FOLDERS, find_runs, folders_with, runs_under
from utils.runs.oof import AGGREGATIONS, PredictionError, oof_of_runs
from utils.runs.run import Run


@dataclass(frozen=True)
class Tuning:
    """The settings for tuning a threshold.

    Parameters
    ----------
    aggregation : str
        How a breast's images are combined; see `utils.runs.oof.aggregate`.
    choice : {"plateau", "maximum"}
        How the threshold is chosen; see `utils.metrics.thresholds`.
    one_image : bool
        Use only one random image of each breast.
    seed : int
        Seed of the bootstrap and of the random groups of patients.

    Raises
    ------
    PredictionError
        If ``choice`` is unknown.
    """

    aggregation: str = "mean"
    choice: str = "plateau"
    one_image: bool = False
    seed: int = 0

    def __post_init__(self):
        """Check the choice; `utils.runs.oof.aggregate` checks the aggregation."""
        if self.choice not in CHOICES:
            raise PredictionError(f"choice is {self.choice!r}; choose from {', '.join(CHOICES)}.")

    @property
    def choose(self) -> Choose:
        """Return the function that chooses a threshold."""
        return CHOICES[self.choice]


DEFAULT = Tuning()


def tune(
    run_dirs: Sequence[Path],
    tuning: Tuning = DEFAULT,
    weights: Sequence[float] | None = None,
    sites: pd.Series | None = None,
) -> Threshold:
    """Calibrate one run or the average of several, and choose their threshold, on out-of-fold predictions.

    Calibration is strictly increasing, so it does not change what a threshold decides; nested estimates skip it.

    Parameters
    ----------
    run_dirs : sequence of Path
    tuning : Tuning
    weights : sequence of float, optional
        Weights of the runs; equal by default.
    sites : Series, optional
        site_id by prediction_id. If given, a threshold for each site is tried, and kept if it gains more than noise.

    Raises
    ------
    PredictionError
        If the runs can't be combined, or ``sites`` lacks one of their breasts.
    """
    oof = oof_of_runs(run_dirs, tuning.aggregation, weights, tuning.one_image)
    bootstrap = PatientBootstrap(oof.patient_id, seed=tuning.seed)
    calibration = _best_calibration(oof)
    calibrated = calibration(oof.probability)
    threshold = tuning.choose(oof.cancer, calibrated)
    site, gain = _sites_worth_it(oof, sites, tuning.choose, bootstrap)
    by_site, decisions = {}, decide(calibrated, threshold)
    if site is not None:
        by_site = site_thresholds(oof.cancer, calibrated, site, tuning.choose)
        decisions = site_decisions(calibrated, site, by_site, threshold)
    values = oof.cancer, oof.probability
    pf1 = probabilistic_f1(oof.cancer, decisions)
    fold_nested = bootstrap.pf1(oof.cancer, nested_decisions(*values, oof.fold, tuning.choose, site))
    nested = bootstrap.pf1(oof.cancer, patient_nested(*values, oof.patient_id, tuning.choose, tuning.seed, site))
    return Threshold(
        threshold=threshold,
        choice=tuning.choice,
        calibration=calibration,
        aggregation=tuning.aggregation,
        one_image=tuning.one_image,
        pf1=pf1,
        pf1_nested=Estimate.of(fold_nested),
        pf1_patient_nested=Estimate.of(nested),
        optimism=pf1 - nested.value,
        auc=Estimate.of(bootstrap.auc(*values)),
        site_thresholds={str(name): value for name, value in by_site.items()},
        site_gain=Estimate.of(gain) if gain else None,
        breasts=len(oof),
        positives=int(oof.cancer.sum()),
        prevalence=float(oof.cancer.mean()),
        runs=tuple(str(run) for run in run_dirs),
        weights=tuple(float(weight) for weight in weights) if weights is not None else (1.0,) * len(run_dirs),
        oof_hashes=tuple(hash_oof(run) for run in run_dirs),
    )


def _best_calibration(oof: pd.DataFrame) -> Calibration:
    """Fit the method with the lowest nested log-loss on all rows."""
    method = compare_calibrations(oof.cancer, oof.probability, oof.fold).chosen.idxmax()
    return fit_calibration(method, oof.cancer, oof.probability)


def _sites_worth_it(
    oof: pd.DataFrame, sites: pd.Series | None, choose: Choose, bootstrap: PatientBootstrap
) -> tuple[pd.Series | None, Interval | None]:
    """Return each breast's site if thresholds by site gain more than noise, else None; and the gain, None without ``sites``."""
    if sites is None:
        return None, None
    site = oof.prediction_id.map(sites)
    if site.isna().any():
        lost = oof.prediction_id[site.isna()].iloc[0]
        raise PredictionError(f"The runs predicted breast {lost}, which competition_dir's train.csv does not have.")
    values = oof.cancer, oof.probability, oof.fold, choose
    gain = bootstrap.pf1_difference(oof.cancer, nested_decisions(*values, site), nested_decisions(*values))
    return site if gain.low > 0 else None, gain


def compare_aggregations(run_dirs: Sequence[Path], tuning: Tuning = DEFAULT) -> pd.DataFrame:
    """Compare ways to combine a breast's images, by ``pf1_patient_nested``.

    Returns
    -------
    DataFrame
        Indexed by aggregation: AUC and ``pf1_patient_nested`` with 95 % intervals, and the paired gain of the latter over
        the mean, with its verdict.
    """
    rows, first = {}, None
    for method in AGGREGATIONS:
        oof = oof_of_runs(run_dirs, method, one_image=tuning.one_image)
        bootstrap = PatientBootstrap(oof.patient_id, seed=tuning.seed)
        nested = patient_nested(oof.cancer, oof.probability, oof.patient_id, tuning.choose, tuning.seed)
        first = nested if first is None else first
        difference = bootstrap.pf1_difference(oof.cancer, nested, first)
        rows[method] = {
            "AUC [95 %]": str(bootstrap.auc(oof.cancer, oof.probability)),
            "pf1_patient_nested [95 %]": str(bootstrap.pf1(oof.cancer, nested)),
            "gain over the mean": "" if nested is first else difference.signed,
            "verdict": "" if nested is first else difference.verdict,
        }
    return pd.DataFrame(rows).T.rename_axis("aggregation")


def fold_thresholds(oof: pd.DataFrame, choice: str = DEFAULT.choice) -> pd.DataFrame:
    """Choose a threshold on each fold alone; if they differ widely, the folds' models are on different scales.

    Parameters
    ----------
    oof : DataFrame
        From `utils.runs.oof.oof_of_runs` or `utils.decision.threshold.Threshold.out_of_fold`.
    choice : {"plateau", "maximum"}

    Returns
    -------
    DataFrame
        Indexed by fold: breasts, positives, threshold, and the share of breasts that it takes.
    """
    rows = {}
    for fold, table in oof.groupby("fold"):
        threshold = CHOICES[choice](table.cancer, table.probability)
        counts = {"breasts": len(table), "positives": int(table.cancer.sum()), "threshold": threshold}
        rows[fold] = counts | {"taken": decide(table.probability, threshold).mean()}
    return pd.DataFrame(rows).T.rename_axis("fold").astype({"breasts": int, "positives": int})


def find_threshold(runs: Sequence[Path], threshold_path: str = "") -> Threshold:
    """Load the threshold.json that was tuned on these runs; if there is none, tune now with the defaults.

    Raises
    ------
    PredictionError
        If a file can't be read by this version of the kit, or the file at ``threshold_path`` does not exist or was tuned on
        other runs.
    """
    hashes = sorted(hash_oof(run) for run in runs)  # content, since paths differ between Kaggle notebooks
    paths = threshold_files(threshold_path)
    tuned = next((tuned for tuned in map(Threshold.load, paths) if sorted(tuned.oof_hashes) == hashes), None)
    if tuned:
        return tuned
    if threshold_path:
        named = ", ".join(Threshold.load(paths[0]).runs)
        raise PredictionError(
            f"{paths[0]} was tuned on {named}, or before they changed: run tune_threshold.ipynb with these run_dirs."
        )
    if paths:
        print(f"{paths[0]} was tuned on other runs, or before these changed: tuning on these now.")
    else:
        print("No threshold.json: tuning on these runs' out-of-fold predictions now.")
    return tune(runs)


def threshold_files(threshold_path: str = "") -> list[Path]:
    """Return ``threshold_path``, or else each threshold.json in the working folder and, on Kaggle, in attached inputs.

    Raise PredictionError if ``threshold_path`` is given but does not exist.
    """
    if threshold_path:
        path = resolve(threshold_path)
        if not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
            raise PredictionError(f"threshold_path {path} {problem}: run tune_threshold.ipynb first, or correct the path.")
        return [path]
    folders = [working_dir(), *folders_with({"threshold.json"}, KAGGLE_INPUT)]
    return [folder / "threshold.json" for folder in folders if (folder / "threshold.json").is_file()]


def tuned_runs(threshold_path: str = "", smoke_test: bool = False, competition_dir: str | Path = "") -> list[Path]:
    """Return the runs of the first threshold.json whose runs all exist; empty if there is none.

    A run that is not at its path is found by its content: under the folder of threshold.json, in the working folder, or, on
    Kaggle, in attached inputs. On real data, phantom and smoke-test runs are used only if ``threshold_path`` names the file.

    Raises
    ------
    PredictionError
        If a file can't be read by this version of the kit, or the file at ``threshold_path`` or one of its runs does not exist.
    """
    any_kind = threshold_path or smoke_test or not has_real_data(competition_dir)
    for path in threshold_files(threshold_path):
        tuned = Threshold.load(path)
        named = [run for run in tuned.run_dirs if _has_oof(run)]
        if len(named) < len(tuned.runs):
            named += [run for run in runs_under(path.parent) if hash_oof(run) in tuned.oof_hashes]
        usable = [run for run in named if any_kind or not _is_for_show(run)]
        by_content = {hash_oof(run): run for run in [*find_runs(), *usable]}
        if set(tuned.oof_hashes) <= by_content.keys():
            return [by_content[content] for content in tuned.oof_hashes]
        if threshold_path:
            raise PredictionError(
                f"{path} was tuned on {', '.join(tuned.runs)}: some are missing, or have changed since. Name their"
                " folders with run_dirs, or run tune_threshold.ipynb again."
            )
    return []


def _has_oof(run: Path) -> bool:
    """True if a folder has an oof.csv; False if it can't be read."""
    try:
        return (run / "oof.csv").is_file()
    except OSError:  # the name is too long, or the folder is not accessible
        return False


def _is_for_show(run: Path) -> bool:
    """True for phantom and smoke-test runs, according to the folder or config.json."""
    if not set(SKIPPED_FOLDERS).isdisjoint(run.parts):
        return True
    notes = Run(run).notes
    return notes.phantom or notes.smoke_test
