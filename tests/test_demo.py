import numpy as np
import pandas as pd
from test_predictions import write_oof

from utils.demo import demo_table
from utils.intervals import Interval
from utils.phantom import read_truth
from utils.tuning import tune


def test_table_has_a_row_per_architecture_and_scores_the_submission(competition, tmp_path):
    runs = [write_oof(tmp_path / "cnn"), write_oof(tmp_path / "resnet50", shift=0.1)]
    for run in runs:
        pd.DataFrame({"seconds": [1.4, 2.0]}).to_csv(run / "history.csv", index=False)
    _, labels = read_truth(competition)
    right = labels.assign(cancer=labels.cancer)
    right.to_csv(tmp_path / "submission.csv", index=False)
    wrong = labels.assign(probability=1 - labels.cancer)[["prediction_id", "probability"]]
    wrong.to_csv(tmp_path / "probabilities.csv", index=False)
    table = demo_table(runs, tmp_path / "submission.csv", competition)
    assert table.index.tolist() == ["cnn", "resnet50", "average"]
    assert table.seconds.tolist() == ["3", "3", "7"]
    assert table.loc["average", "test pF1"] == "1.000" and table.loc["average", "test AUC [95 %]"].startswith("0.000")
    assert (table.loc[["cnn", "resnet50"], "test pF1"] == "").all()
    assert np.isin(["AUC [95 %]", "pF1 tuned", "pF1 nested [95 %]"], table.columns).all()
    tuned = tune(runs)
    assert table.loc["average", "AUC [95 %]"] == str(Interval(**tuned["auc"]))
    assert table.loc["average", "pF1 nested [95 %]"] == str(Interval(**tuned["pf1_nested"]))
    assert table.loc["cnn", "pF1 tuned"] == f"{tune(runs[:1])['pf1']:.3f}"
