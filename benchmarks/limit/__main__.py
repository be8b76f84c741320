"""How near a network comes to what is possible: its learning curve on the phantom, beside the ideal observer's AUC.

``python -m benchmarks.limit [--patients 60,120,240,480] [--epochs 4,8,16] [--contrast 0.8] [--size 96x72] [--seeds 1] [--quick]
[--out outputs/limit] [--picture docs/limit.png]`` from the project's root prints a Markdown table and draws a figure. On one
core it takes about ten minutes; a run that was killed goes on where it stopped.

The small ``cnn`` is trained on ever more of the phantom's patients at the most epochs, and for ever more epochs on all of them.
At equal epochs more patients are more steps too: the first curve does not tell one from the other.
Every point is scored on the same hidden test breasts. So are two observers (`benchmarks.limit.phantom`), prewhitened matched
filters fitted on all training patients: one is told where to look, which no model is, the other is not. The intervals say how
much hangs on which test patients there were; how much hangs on the training's seed, several ``--seeds`` show.

The observers fall short of the limit too, since they are linear: a model above the second one is no mistake, one above the
first should be looked into.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.limit.observer import efficiency, share_of_possible
from benchmarks.limit.phantom import fit_observer, per_breast, score_images
from utils.decision.tuning import tune
from utils.images.cache import build_cache
from utils.images.settings import CacheSettings
from utils.images.training_data import TrainingData
from utils.metrics.intervals import Interval, PatientBootstrap
from utils.phantom.competition import make_competition, read_truth
from utils.runs.config import ModelConfig, TrainConfig
from utils.submission.decoding import Source
from utils.submission.streaming import predict_runs
from utils.tables.competition import read_images
from utils.training.folds import train_run

PATIENTS, EPOCHS = (60, 120, 240, 480), (4, 8, 16)
QUICK_PATIENTS, QUICK_EPOCHS = (24, 48), (1, 2)
TEST_PATIENTS, QUICK_TEST_PATIENTS = 200, 30
N_FOLDS = 10  # one is held out, so nine tenths of the patients are trained on
SEED = 7  # of the phantom: another one than that on which the observer was made
OBSERVERS = {"known_place": "observer, place known", "unknown_place": "observer, place unknown"}
COLOURS = {"known_place": "C2", "unknown_place": "C1"}


@dataclass(frozen=True)
class Study:
    """One phantom with its cache, and where the runs go."""

    folder: Path
    settings: CacheSettings

    @property
    def competition(self) -> Path:
        return self.folder / "competition"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"


def main() -> None:
    """Train, print the table, and draw the figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=main.__doc__)
    parser.add_argument("--patients", help="training patients of each point, with commas between")
    parser.add_argument("--epochs", help="of each point, with commas between")
    parser.add_argument("--contrast", type=float, default=0.8, help="of the lesions; at 1.0 the observers hardly err")
    parser.add_argument("--size", default="96x72", help="of the cached pictures, height x width")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each point")
    parser.add_argument("--quick", action="store_true", help="a minute: shows that everything works")
    parser.add_argument("--out", type=Path, default=Path("outputs/limit"))
    parser.add_argument("--picture", type=Path, help="by default limit.png in the folder of --out")
    given = parser.parse_args()
    patients = _numbers(given.patients) or (QUICK_PATIENTS if given.quick else PATIENTS)
    epochs = _numbers(given.epochs) or (QUICK_EPOCHS if given.quick else EPOCHS)
    study = prepare(given, max(patients))
    observers = observe(study)
    points = pd.DataFrame([measure(study, *point) for point in plan(patients, epochs, given.seeds)])
    print(table(points, observers), flush=True)
    picture = given.picture or given.out / "limit.png"
    draw(points, observers).savefig(picture, dpi=90)
    print(f"Figure: {picture}")


def plan(patients: tuple[int, ...], epochs: tuple[int, ...], seeds: int) -> list[tuple[int, int, int]]:
    """(patients, epochs, seed) of each point: more patients at the most epochs, and more epochs on the most patients."""
    points = [(count, max(epochs)) for count in patients] + [(max(patients), count) for count in epochs]
    return [(*point, seed) for point in dict.fromkeys(points) for seed in range(seeds)]


def prepare(given: argparse.Namespace, n_patients: int) -> Study:
    """Make the phantom and its cache, or find them made."""
    height, width = (int(side) for side in given.size.split("x"))
    n_test = QUICK_TEST_PATIENTS if given.quick else TEST_PATIENTS
    name = f"{n_patients}-{n_test}-{given.contrast:g}-{height}x{width}"
    study = Study(given.out / name, CacheSettings(image_height=height, image_width=width))
    study.folder.mkdir(parents=True, exist_ok=True)
    make_competition(study.competition, n_patients, n_test, 256, positive_share=0.5, contrast=given.contrast, seed=SEED)
    for split in ("train", "test"):
        build_cache(read_images(study.competition, split), study.competition, split, study.cache, study.settings)
    return study


def observe(study: Study) -> dict[str, Interval]:
    """AUC per test breast of the observers."""
    observer = fit_observer(study.competition, read_images(study.competition, "train"), study.cache, study.settings)
    scores = score_images(observer, study.competition, read_images(study.competition, "test"), study.cache)
    breasts = per_breast(scores)
    return {name: auc_per_breast(study, breasts[name]) for name in OBSERVERS}


def measure(study: Study, n_patients: int, epochs: int, seed: int) -> dict:
    """Train one point of the curve, and score it on the test."""
    size = study.settings.image_height, study.settings.image_width
    images = first_patients(read_images(study.competition, "train"), n_patients)
    model = ModelConfig("cnn", *size)
    schedule = {"epochs": epochs, "batch_size": 16, "learning_rate": 1e-3, "keep_epoch": "last"}
    config = TrainConfig(model, study.settings, n_folds=N_FOLDS, folds=(0,), **schedule, seed=seed)
    run = study.folder / f"cnn-{n_patients}-{epochs}-{seed}"
    oof = train_run(config, TrainingData(images, study.cache, is_phantom=True), run)
    test_images = read_images(study.competition, "test")
    predicted, _ = predict_runs([run], tune([run]), Source(test_images, study.competition, study.cache))
    auc = auc_per_breast(study, predicted)
    print(f"{run.name}: AUC {auc}", flush=True)
    return {"patients": n_patients - oof.patient_id.nunique(), "epochs": epochs, "seed": seed, "auc": auc}


def first_patients(images: pd.DataFrame, count: int) -> pd.DataFrame:
    """The first patients of a shuffled list, so that a smaller set is part of every larger one."""
    patients = np.random.default_rng(SEED).permutation(images.patient_id.unique())[:count]
    return images[images.patient_id.isin(patients)].reset_index(drop=True)


def auc_per_breast(study: Study, values: pd.Series) -> Interval:
    """AUC on the hidden labels of the test, of values indexed by prediction_id."""
    labels = read_truth(study.competition)[1].set_index("prediction_id").cancer.loc[values.index]
    return PatientBootstrap(values.index.str.split("_").str[0]).auc(labels, values)


def table(points: pd.DataFrame, observers: dict[str, Interval]) -> str:
    """Return the Markdown table."""
    ideal = observers["unknown_place"].value, observers["known_place"].value
    head = ("", "patients", "epochs", "test AUC [95 %]", "share of the way", "efficiency", "efficiency, place known")
    lines = ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in points.itertuples():
        auc = row.auc.value
        shares = share_of_possible(auc, ideal[0]), efficiency(auc, ideal[0]), efficiency(auc, ideal[1])
        lines.append(_row("cnn", row.patients, row.epochs, row.auc, *(f"{share:.2f}" for share in shares)))
    unknown_efficiency = f"{efficiency(*ideal):.2f}"
    lines.append(_row(OBSERVERS["unknown_place"], "", "", observers["unknown_place"], "1", "1", unknown_efficiency))
    lines.append(_row(OBSERVERS["known_place"], "", "", observers["known_place"], "", "", "1"))
    return "\n".join(lines) + "\n"


def draw(points: pd.DataFrame, observers: dict[str, Interval]) -> Figure:
    """Draw AUC against patients and against epochs, with the observers' as lines."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    most_patients, most_epochs = points.patients.max(), points.epochs.max()
    titles = f"More patients ({most_epochs} epochs)", f"Longer training ({most_patients} patients)"
    chosen = points[points.epochs == most_epochs], points[points.patients == most_patients]
    for axis, along, rows, title in zip(axes, ("patients", "epochs"), chosen, titles, strict=True):
        _draw_curve(axis, rows, along, observers)
        axis.set(title=title, xlabel=f"{along} (log scale)")
    axes[0].set(ylabel="AUC per test breast, with 95 % interval")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_curve(axis, rows: pd.DataFrame, along: str, observers: dict[str, Interval]) -> None:
    for name, interval in observers.items():
        axis.axhline(interval.value, color=COLOURS[name], linestyle="--", label=f"{OBSERVERS[name]}: {interval.value:.3f}")
        axis.axhspan(interval.low, interval.high, color=COLOURS[name], alpha=0.15, linewidth=0)
    rows = rows.sort_values(along)
    values, lows, highs = (np.array([getattr(auc, end) for auc in rows.auc]) for end in ("value", "low", "high"))
    places = rows[along].to_numpy() * 1.03 ** rows.seed.to_numpy()  # seeds side by side
    axis.errorbar(places, values, (values - lows, highs - values), fmt="o", color="C0", capsize=3, label="cnn")
    means = pd.Series(values).groupby(rows[along].to_numpy()).mean()
    axis.plot(means.index, means, color="C0")
    axis.axhline(0.5, color="0.7", linewidth=1, label="_guessing")
    axis.set_xscale("log", base=2)
    axis.set_xticks(means.index, [str(place) for place in means.index])
    axis.minorticks_off()


def _row(*cells) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in (text or "").split(",") if part)


if __name__ == "__main__":
    main()
