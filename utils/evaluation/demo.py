"""The demo's last step: a table and an image of each architecture's results on the phantom."""

import argparse
from pathlib import Path

import pandas as pd

from utils.core.devices import pick_devices
from utils.decision.figures import show_overview
from utils.decision.threshold import Threshold
from utils.decision.tuning import tune
from utils.metrics.intervals import Interval, PatientBootstrap
from utils.metrics.scores import probabilistic_f1
from utils.phantom.competition import read_truth
from utils.runs.oof import oof_of_runs
from utils.runs.tables import read_history_table
from utils.submission.deadline import Pace
from utils.submission.ensemble import load_variants
from utils.tables.breasts import by_breast
from utils.tables.competition import read_images

TEST_AUC = "test AUC [95 %]"


def predict_test(tuned: Threshold, cache_dir: Path, competition_dir: Path) -> pd.DataFrame:
    """Predict the cached test breasts with each run alone: one row per prediction_id, one column per run's name."""
    variants = load_variants(tuned.run_dirs, is_phantom=True, devices=pick_devices())
    everything = Pace([variant.work for variant in variants], overlaps=False).full
    images = read_images(competition_dir, "test")
    tables = [variant.predict(images, cache_dir, tuned.aggregation, everything) for variant in variants]
    return pd.concat(tables, axis=1).rename(columns=lambda run: run.name)


class HiddenLabels:
    """The labels of the phantom's test breasts, which no notebook reads."""

    def __init__(self, competition_dir: Path):
        _, labels = read_truth(competition_dir)
        self.cancer = labels.set_index("prediction_id").cancer
        self.bootstrap = PatientBootstrap(by_breast(read_images(competition_dir, "test")).patient_id.loc[self.cancer.index])

    def auc(self, probability: pd.Series) -> Interval:
        """Return the AUC of probabilities, indexed by prediction_id."""
        return self.bootstrap.auc(self.cancer, probability.loc[self.cancer.index])

    def gain(self, probability: pd.Series, other: pd.Series) -> Interval:
        """Return by how much the first AUC exceeds the second."""
        order = self.cancer.index
        return self.bootstrap.auc_difference(self.cancer, probability.loc[order], other.loc[order])

    def pf1(self, decided: pd.Series) -> float:
        """Return the probabilistic F1 of decisions, indexed by prediction_id."""
        return probabilistic_f1(self.cancer, decided.loc[self.cancer.index])


def demo_table(run_dirs: list[Path], submission: pd.DataFrame, by_run: pd.DataFrame, hidden: HiddenLabels) -> pd.DataFrame:
    """Return AUC, pF1 and seconds by architecture; the last row is the submitted average.

    Parameters
    ----------
    run_dirs : list of Path
    submission : DataFrame
        From `read_submission`.
    by_run : DataFrame
        From `predict_test`.
    hidden : HiddenLabels
    """
    rows = {run.name: _row(tune([run]), _seconds(run)) | {TEST_AUC: str(hidden.auc(by_run[run.name]))} for run in run_dirs}
    test = {TEST_AUC: str(hidden.auc(submission.probability)), "test pF1": f"{hidden.pf1(submission.cancer):.3f}"}
    rows["average"] = _row(tune(run_dirs), sum(_seconds(run) for run in run_dirs)) | test
    return pd.DataFrame(rows).T.fillna("").rename_axis("architecture")


def read_submission(path: Path) -> pd.DataFrame:
    """Read decisions (cancer) and probabilities (probability) of a submission, indexed by prediction_id."""
    tables = [pd.read_csv(file, dtype={"prediction_id": str}) for file in (path, path.with_name("probabilities.csv"))]
    return tables[0].merge(tables[1], on="prediction_id").set_index("prediction_id")


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


def _seconds(run_dir: Path) -> float:
    """Return a run's training time in seconds."""
    return float(read_history_table(run_dir / "history.csv").seconds.sum())


def _main() -> None:
    """Print the demo's table and where its outputs are, and draw its overview."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo_dir", type=Path, help="folder with the outputs of make demo")
    demo_dir = parser.parse_args().demo_dir
    tuned = Threshold.load(demo_dir / "threshold.json")
    competition_dir, cache_dir = demo_dir / "competition", demo_dir / "cache"
    submission, hidden = read_submission(demo_dir / "submission.csv"), HiddenLabels(competition_dir)
    by_run = predict_test(tuned, cache_dir, competition_dir)
    print("\nOut of fold on the phantom's training breasts, on which 'tuned' chose its threshold.")
    print("The test columns are on hidden labels that no notebook has read.\n")
    print(demo_table(tuned.run_dirs, submission, by_run, hidden).to_string(), "\n")
    best = max(by_run, key=lambda name: hidden.auc(by_run[name]).value)
    gain = hidden.gain(submission.probability, by_run[best])
    print(f"On the hidden labels, the average's AUC minus that of {best} alone: {gain.signed} ({gain.verdict}).\n")
    draw_overview(tuned.run_dirs, tuned, cache_dir, competition_dir, demo_dir / "demo.png")
    print(f"Overview: {demo_dir / 'demo.png'}")
    print(f"Report: {demo_dir / 'report.html'} (open it in a browser)")
    print(f"Executed notebooks: {demo_dir / 'notebooks'}")
    print(f"Submission: {demo_dir / 'submission.csv'}; copies with provenance: {demo_dir / 'submissions'}")


if __name__ == "__main__":
    _main()
