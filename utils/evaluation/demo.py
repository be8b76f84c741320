"""The demo's last step: a table and an image of each architecture's results on the phantom."""

import argparse
from pathlib import Path

import pandas as pd

from utils.decision.figures import show_overview
from utils.decision.threshold import Threshold
from utils.decision.tuning import tune
from utils.metrics.intervals import PatientBootstrap
from utils.metrics.scores import probabilistic_f1
from utils.phantom.competition import read_truth
from utils.runs.oof import oof_of_runs
from utils.runs.tables import read_history_table
from utils.tables.breasts import by_breast
from utils.tables.competition import read_images


def demo_table(run_dirs: list[Path], submission_path: Path, competition_dir: Path) -> pd.DataFrame:
    """Return AUC, pF1 and seconds by architecture; the last row is the submitted average, with hidden test scores."""
    rows = {run.name: _row(tune([run]), _seconds(run)) for run in run_dirs}
    rows["average"] = _row(tune(run_dirs), sum(_seconds(run) for run in run_dirs)) | _test_row(submission_path, competition_dir)
    return pd.DataFrame(rows).T.fillna("").rename_axis("architecture")


def draw_overview(run_dirs: list[Path], tuned: Threshold, cache_dir: Path, competition_dir: Path, path: Path) -> None:
    """Draw the demo's images, ROC curves and pF1 curves into one PNG."""
    curves = {run.name: oof_of_runs([run]) for run in run_dirs}
    average = tuned.out_of_fold(run_dirs)
    images = read_images(competition_dir, "train")
    show_overview(images, cache_dir, curves | {"average": average}, average, tuned).savefig(path, dpi=80)


def _row(tuned: Threshold, seconds: float) -> dict[str, str]:
    """Return the scores of a tuned threshold as text."""
    return {
        "AUC [95 %]": str(tuned.auc),
        "pF1 tuned": f"{tuned.pf1:.3f}",
        "pF1 nested [95 %]": str(tuned.pf1_nested),
        "seconds": f"{seconds:.0f}",
    }


def _test_row(submission_path: Path, competition_dir: Path) -> dict[str, str]:
    """Score submission.csv, and probabilities.csv in the same folder, on the phantom's hidden test labels."""
    _, labels = read_truth(competition_dir)
    ids = {"prediction_id": str}
    table = labels.merge(pd.read_csv(submission_path, dtype=ids), on="prediction_id", suffixes=("", "_decided"))
    table = table.merge(pd.read_csv(submission_path.with_name("probabilities.csv"), dtype=ids), on="prediction_id")
    patients = by_breast(read_images(competition_dir, "test")).patient_id
    auc = PatientBootstrap(table.prediction_id.map(patients)).auc(table.cancer, table.probability)
    return {"test AUC [95 %]": str(auc), "test pF1": f"{probabilistic_f1(table.cancer, table.cancer_decided):.3f}"}


def _seconds(run_dir: Path) -> float:
    """Return a run's training time in seconds."""
    return float(read_history_table(run_dir / "history.csv").seconds.sum())


def _main() -> None:
    """Print the demo's table and where its outputs are, and draw its overview."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo_dir", type=Path, help="folder with the outputs of make demo")
    demo_dir = parser.parse_args().demo_dir
    tuned = Threshold.load(demo_dir / "threshold.json")
    table = demo_table(tuned.run_dirs, demo_dir / "submission.csv", demo_dir / "competition")
    print("\nOut of fold on the phantom's training breasts, on which 'tuned' chose its threshold.")
    print("The test columns are on hidden labels that no notebook has read.\n")
    print(table.to_string(), "\n")
    draw_overview(tuned.run_dirs, tuned, demo_dir / "cache", demo_dir / "competition", demo_dir / "demo.png")
    print(f"Overview: {demo_dir / 'demo.png'}")
    print(f"Report: {demo_dir / 'report.html'} (open it in a browser)")
    print(f"Executed notebooks: {demo_dir / 'notebooks'}")
    print(f"Submission: {demo_dir / 'submission.csv'}; copies with provenance: {demo_dir / 'submissions'}")


if __name__ == "__main__":
    _main()
