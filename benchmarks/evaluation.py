"""What the evaluation costs, and what the choice of the threshold is worth.

``python -m benchmarks.evaluation`` times everything that tune_threshold.ipynb computes, on made-up out-of-fold predictions of
the competition's size (54,706 images, 23,826 breasts, 492 positive, 2,000 draws), and simulates both choices of a threshold
where the best one is known: scores of two normal distributions, d' apart.
"""

import time

import numpy as np
import pandas as pd
from scipy.stats import norm

from utils.decision.calibration import compare_calibrations
from utils.decision.comparison import compare_runs, search_ensemble
from utils.metrics.intervals import PatientBootstrap
from utils.metrics.thresholds import (
    CHOICES,
    nested_decisions,
    patient_nested,
    pf1_curve,
    prevalence_shift,
)
from utils.runs.oof import AGGREGATIONS, aggregate
from utils.tables.breasts import by_breast

PATIENTS, POSITIVE_BREASTS, IMAGES = 11_913, 492, 54_706  # of the competition's train.csv
SETTINGS = [  # breasts, prevalence, d'
    *((24_000, 0.02, 1.8), (24_000, 0.02, 2.6), (4_000, 0.02, 1.8)),
    *((1_000, 0.2, 1.0), (300, 0.3, 1.5), (1_000, 0.5, 0.5), (1_000, 0.5, 1.0)),
]
DATA_SETS = 300


def main() -> None:
    """Print both tables."""
    print("\nSeconds, 54,706 images of 23,826 breasts:")
    print(pd.Series(time_everything()).round(2).to_string())
    print("\npF1 lost to the true best threshold, mean of", DATA_SETS, "data sets:")
    print(choose_thresholds().to_string(index=False))


def time_everything() -> dict[str, float]:
    """Time each part of the notebook, but its imports, files and drawing."""
    images = [made_up_images(seed) for seed in (0, 1)]
    start = time.perf_counter()
    seconds, last = {}, start
    runs = {f"run{number}": per_breast(table, "mean") for number, table in enumerate(images)}
    breasts = next(iter(runs.values()))
    values = breasts.cancer, breasts.probability
    bootstrap = PatientBootstrap(breasts.patient_id)
    parts = {
        "intervals": lambda: (bootstrap.auc(*values), bootstrap.average_precision(*values), bootstrap.pf1(*values)),
        "comparison of two runs": lambda: compare_runs(runs),
        "ensemble of two runs": lambda: search_ensemble(runs),
        "calibrations": lambda: compare_calibrations(*values, breasts.fold),
        "pF1 curve with band": lambda: pf1_curve(*values, bootstrap),
        "nested over folds": lambda: bootstrap.pf1(breasts.cancer, nested_decisions(*values, breasts.fold)),
        "nested over patients": lambda: bootstrap.pf1(breasts.cancer, patient_nested(*values, breasts.patient_id)),
        "nested by site": lambda: nested_decisions(*values, breasts.fold, sites=breasts.patient_id.astype(int) % 2),
        "aggregations": lambda: compare_aggregations(images[0]),
        "prevalence": lambda: prevalence_shift(*values, 0.2, np.linspace(0.01, 0.05, 41)),
    }
    seconds["images to breasts"] = time.perf_counter() - last
    for name, part in parts.items():
        last = time.perf_counter()
        part()
        seconds[name] = time.perf_counter() - last
    return seconds | {"all": time.perf_counter() - start}


def compare_aggregations(images: pd.DataFrame) -> None:
    """Nested pF1 and AUC of each way to join a breast's images."""
    for method in AGGREGATIONS:
        breasts = per_breast(images, method)
        nested = patient_nested(breasts.cancer, breasts.probability, breasts.patient_id)
        bootstrap = PatientBootstrap(breasts.patient_id)
        bootstrap.pf1(breasts.cancer, nested), bootstrap.auc(breasts.cancer, breasts.probability)


def made_up_images(seed: int) -> pd.DataFrame:
    """Predictions of the competition's size; a breast's images agree in part."""
    generator = np.random.default_rng(seed)
    breast = np.concatenate([np.arange(2 * PATIENTS), generator.integers(0, 2 * PATIENTS, IMAGES - 2 * PATIENTS)])
    cancer = np.random.default_rng(7).permutation(2 * PATIENTS) < POSITIVE_BREASTS
    shared = generator.normal(size=2 * PATIENTS) + 1.8 * cancer
    logit = shared[breast] + 0.6 * generator.normal(size=IMAGES) - 4
    table = pd.DataFrame(
        {"patient_id": (breast // 2).astype(str), "fold": breast // 2 % 4, "cancer": cancer[breast].astype(int)}
    )
    return table.assign(prediction_id=breast.astype(str), probability=1 / (1 + np.exp(-logit)))


def per_breast(images: pd.DataFrame, aggregation: str) -> pd.DataFrame:
    """One row per breast, as from `utils.runs.oof.oof_of_runs`."""
    breasts = by_breast(images)[["patient_id", "fold", "cancer"]]
    return breasts.assign(probability=aggregate(images, aggregation)).reset_index()


def choose_thresholds() -> pd.DataFrame:
    """Mean loss of each choice to the best threshold of the true distributions."""
    generator = np.random.default_rng(0)
    rows = []
    for n, prevalence, distance in SETTINGS:
        best = true_pf1(np.linspace(-5, 6, 4000), prevalence, distance).max()
        lost = {name: [] for name in CHOICES}
        for _ in range(DATA_SETS):
            labels = (generator.random(n) < prevalence).astype(int)
            scores = generator.normal(size=n) + distance * labels
            for name, choose in CHOICES.items():
                cut = choose(labels, norm.cdf(scores))  # as a probability: thresholds lie in [0, 1]
                lost[name].append(best - true_pf1(norm.ppf(cut), prevalence, distance))
        means = {name: round(float(np.mean(values)), 4) for name, values in lost.items()}
        rows.append({"breasts": n, "prevalence": prevalence, "d'": distance, "best pF1": round(best, 3)} | means)
    return pd.DataFrame(rows)


def true_pf1(cut: np.ndarray, prevalence: float, distance: float) -> np.ndarray:
    """pF1 of a cut through two unit normal distributions, ``distance`` apart."""
    found, false = prevalence * norm.sf(cut - distance), (1 - prevalence) * norm.sf(cut)
    return 2 * found / (prevalence + found + false)


if __name__ == "__main__":
    main()
