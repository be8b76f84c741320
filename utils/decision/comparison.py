"""Compare runs: which one is better beyond noise, and whether an ensemble of them gains anything."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from utils.metrics.intervals import LEVEL, Interval, PatientBootstrap
from utils.metrics.scores import area_under_roc, probabilistic_f1
from utils.metrics.thresholds import CHOICES, held_out, patient_nested
from utils.runs.oof import PredictionError

N_STEPS = 20  # of the greedy search; the finest weight is 1 / N_STEPS


def align(runs: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Keep the breasts that all runs predicted, in one order.

    Parameters
    ----------
    runs : dict
        Name to table from `utils.runs.oof.oof_of_runs`.

    Raises
    ------
    PredictionError
        If the runs share no breast, or their labels differ, which means that they come from different data.
    """
    tables = {name: table.set_index("prediction_id") for name, table in runs.items()}
    first = next(iter(tables.values()))
    shared = first.index[np.all([first.index.isin(table.index) for table in tables.values()], axis=0)]
    if not len(shared):
        raise PredictionError(f"The runs {', '.join(runs)} share no breast: name runs of one data set in run_dirs.")
    aligned = {name: table.loc[shared].reset_index() for name, table in tables.items()}
    for name, table in aligned.items():
        if (table.cancer.to_numpy() != first.cancer.loc[shared].to_numpy()).any():
            raise PredictionError(f"The labels of {name} differ from those of {next(iter(runs))}: train them on the same data.")
    return aligned


def compare_runs(runs: dict[str, pd.DataFrame], seed: int = 0, choice: str = "plateau") -> pd.DataFrame:
    """Compare every pair of runs on the same patients, by AUC and by ``pf1_patient_nested``.

    With m pairs each interval has level 1 - 0.05 / 2m (Bonferroni over two measures), so all of them hold at once in 95 of
    100 data sets: the best of many runs does not look better by chance.

    Parameters
    ----------
    runs : dict
        Name to table from `utils.runs.oof.oof_of_runs`; two or more.
    seed : int
        Seed of the bootstrap and of the patient groups.
    choice : {"plateau", "maximum"}
        How thresholds are chosen.

    Returns
    -------
    DataFrame
        One row per pair: differences, first minus second, each with its verdict: "better", "worse", or "not measurably
        different".

    Raises
    ------
    PredictionError
        If the runs come from different data.
    """
    runs = align(runs)
    any_run = next(iter(runs.values()))
    labels, patients = any_run.cancer, any_run.patient_id
    bootstrap = PatientBootstrap(patients, seed=seed)
    pairs = list(combinations(runs, 2))
    level = 1 - (1 - LEVEL) / max(2 * len(pairs), 1)
    auc = {name: _auc(bootstrap, table) for name, table in runs.items()}
    pf1 = {name: _pf1(bootstrap, table, choice, seed) for name, table in runs.items()}
    rows = []
    for one, other in pairs:
        row = {"run": one, "other": other}
        for measure, found in {"AUC": auc, "pf1_patient_nested": pf1}.items():
            difference = _difference(bootstrap, found[one], found[other], level)
            row |= {measure: difference.signed, f"by {measure}": difference.verdict}
        rows.append(row | {"breasts": len(labels), "positives": int(labels.sum())})
    return pd.DataFrame(rows)


def _auc(bootstrap: PatientBootstrap, table: pd.DataFrame) -> tuple[float, np.ndarray]:
    """Return a run's AUC and its bootstrap draws."""
    return area_under_roc(table.cancer, table.probability), bootstrap.auc_draws(table.cancer, table.probability)


def _pf1(bootstrap: PatientBootstrap, table: pd.DataFrame, choice: str, seed: int) -> tuple[float, np.ndarray]:
    """Return a run's patient-nested pF1 and its bootstrap draws."""
    decisions = patient_nested(table.cancer, table.probability, table.patient_id, CHOICES[choice], seed)
    return probabilistic_f1(table.cancer, decisions), bootstrap.pf1_draws(table.cancer, decisions)


def _difference(bootstrap: PatientBootstrap, one: tuple, other: tuple, level: float) -> Interval:
    return bootstrap.interval(one[0] - other[0], one[1] - other[1], level)


@dataclass(frozen=True)
class Ensemble:
    """Result of a greedy search: weight by run, and nested gains in AUC over the best run and over the plain average."""

    weights: dict[str, float]
    gain_over_best: Interval
    gain_over_average: Interval

    @property
    def is_worth_it(self) -> bool:
        """True if the weights gain more over the plain average than noise does."""
        return self.gain_over_average.low > 0

    def describe(self) -> pd.DataFrame:
        """Return both gains and their verdicts as a table."""
        gains = {"the best run": self.gain_over_best, "the plain average": self.gain_over_average}
        rows = {name: {"nested AUC": gain.signed, "the ensemble is": gain.verdict} for name, gain in gains.items()}
        return pd.DataFrame(rows).T.rename_axis("compared with")


def search_ensemble(runs: dict[str, pd.DataFrame], seed: int = 0) -> Ensemble:
    """Search weights of runs greedily, with replacement, and measure the gain on held-out folds.

    The search starts with the best run. Each step adds the run, new or repeated, that gives the average the highest AUC.
    The best step is kept. The best run, to which the ensemble is compared, is also chosen on the other folds.

    Parameters
    ----------
    runs : dict
        Name to table from `utils.runs.oof.oof_of_runs`. The first run's folds apply to all.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    Ensemble
        Its weights come from a search on all folds together.

    References
    ----------
    Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004.
    """
    tables = list(align(runs).values())
    labels, folds = tables[0].cancer.to_numpy(), tables[0].fold.to_numpy()
    columns = np.stack([table.probability.to_numpy() for table in tables])  # (runs, breasts)
    ensemble = columns[0].copy()  # stays the first run's if there is only one fold
    best = columns[0].copy()
    for inside in held_out(folds):
        steps = _greedy(labels[~inside], columns[:, ~inside])
        ensemble[inside] = columns[steps][:, inside].mean(axis=0)
        best[inside] = columns[steps[0], inside]
    bootstrap = PatientBootstrap(tables[0].patient_id, seed=seed)
    chosen = np.bincount(_greedy(labels, columns), minlength=len(runs))
    return Ensemble(
        weights=dict(zip(runs, (chosen / chosen.sum()).tolist(), strict=True)),
        gain_over_best=bootstrap.auc_difference(labels, ensemble, best),
        gain_over_average=bootstrap.auc_difference(labels, ensemble, columns.mean(axis=0)),
    )


def _greedy(labels: np.ndarray, columns: np.ndarray) -> list[int]:
    """Return the indices of the runs that a greedy search adds, the best one first, with repeats."""
    steps, reached = [], []
    total = np.zeros(columns.shape[1])
    for _ in range(N_STEPS):
        aucs = [area_under_roc(labels, total + column) for column in columns]
        steps.append(int(np.nanargmax(aucs)) if np.isfinite(aucs).any() else 0)
        reached.append(aucs[steps[-1]])
        total = total + columns[steps[-1]]
    best = int(np.nanargmax(reached)) if np.isfinite(reached).any() else 0
    return steps[: best + 1]
