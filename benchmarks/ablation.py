"""What parts of the recipe are worth: runs beside a first one, on the same breasts.

``python -m benchmarks.ablation outputs/runs/base outputs/runs/aux …`` prints one row a run: the out-of-fold AUC per breast, and
its difference from the first run's, each with a 95 % interval from a bootstrap over patients (of the difference, paired: the
same patients for both). ``--one-image`` counts one random image a breast, for data whose number of images tells the label.

The intervals say how much hangs on which patients there were, not on the seed of the training: a run with another seed
beside the first shows that.
"""

import argparse
from pathlib import Path

import pandas as pd

from utils.metrics.intervals import PatientBootstrap
from utils.runs.oof import oof_of_runs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="finished; others are compared with the first")
    parser.add_argument("--one-image", action="store_true", help="count one random image a breast")
    parser.add_argument("--aggregation", default="mean", help="of a breast's images: mean, max, top_k or noisy_or")
    given = parser.parse_args()
    print(compare(given.runs, given.one_image, given.aggregation).to_string(index=False))


def compare(runs: list[Path], one_image: bool = False, aggregation: str = "mean") -> pd.DataFrame:
    """Compare runs with the first of them.

    Returns
    -------
    DataFrame
        One row a run: run, AUC, difference (empty for the first), breasts, positives.
    """
    tables = [oof_of_runs([run], aggregation, one_image=one_image).set_index("prediction_id") for run in runs]
    first = tables[0]
    bootstrap = PatientBootstrap(first.patient_id)
    rows = []
    for run, table in zip(runs, tables, strict=True):
        table = table.loc[first.index]
        auc = bootstrap.auc(table.cancer, table.probability)
        difference = bootstrap.auc_difference(table.cancer, table.probability, first.probability)
        count = {"breasts": len(table), "positives": int(table.cancer.sum())}
        rows.append({"run": run.name, "AUC": str(auc), "difference": difference.signed} | count)
    rows[0]["difference"] = ""
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
