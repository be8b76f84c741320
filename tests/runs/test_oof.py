import numpy as np
import pandas as pd
import pytest

from tests.helpers import write_run
from utils.runs.leaks import LeakError
from utils.runs.oof import AGGREGATIONS, PredictionError, aggregate, one_image_per_breast, oof_of_runs
from utils.runs.summary import oof_summary
from utils.tables.folds import assign_folds
from utils.training.folds import OOF_COLUMNS

IMAGES = pd.DataFrame({"prediction_id": ["b", "a", "b", "b", "a"], "probability": [0.1, 0.4, 0.5, 0.9, 0.2]})


@pytest.mark.parametrize(
    ("method", "a", "b"), [("mean", 0.3, 0.5), ("max", 0.4, 0.9), ("top_k", 0.3, 0.7), ("noisy_or", 0.52, 0.955)]
)
def test_images_of_a_breast_become_one_probability(method, a, b):
    result = aggregate(IMAGES, method)
    assert result.index.tolist() == ["b", "a"]
    assert result.to_dict() == pytest.approx({"a": a, "b": b})


def test_unknown_aggregation_is_refused():
    with pytest.raises(PredictionError, match="'median'; choose from mean, max, top_k, noisy_or"):
        aggregate(IMAGES, "median")


def test_noisy_or_is_one_minus_the_product_of_what_each_image_misses():
    generator = np.random.default_rng(0)
    images = pd.DataFrame({"prediction_id": generator.integers(0, 20, 100).astype(str), "probability": generator.random(100)})
    found = aggregate(images, "noisy_or")
    assert found.index.tolist() == images.prediction_id.unique().tolist()
    for breast, probability in found.items():
        missed = 1 - images.probability[images.prediction_id == breast]
        assert probability == pytest.approx(1 - np.prod(missed), rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_noisy_or_stays_finite_at_0_and_1_and_exact_near_0():
    images = pd.DataFrame({"prediction_id": list("aabbcc"), "probability": [1, 1, 0, 0, 1e-20, 2e-20]})
    assert aggregate(images, "noisy_or").to_dict() == pytest.approx({"a": 1, "b": 0, "c": 3e-20}, rel=1e-9, abs=0)


def test_one_image_per_breast_hides_how_many_there_are():
    kept = one_image_per_breast(IMAGES, seed=1)
    assert sorted(kept.prediction_id) == ["a", "b"]
    assert {len(one_image_per_breast(IMAGES, seed).merge(kept)) for seed in range(20)} > {2}  # the draw changes with the seed


def write_oof(run_dir, shift=0.0, n=60, seed=0):
    """A made-up finished run: n breasts of one image, two folds."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(int)
    probability = np.clip(0.3 * labels + 0.5 * generator.random(n) + shift, 0.01, 0.99)
    table = pd.DataFrame(
        {"patient_id": [str(100 + i) for i in range(n)], "laterality": "L", "fold": np.arange(n) % 2, "cancer": labels}
    )
    table["prediction_id"], table["image_id"] = table.patient_id + "_L", [str(i) for i in range(n)]
    table["probability"], table["logit"] = probability, np.log(probability / (1 - probability))
    return write_run(run_dir, table[OOF_COLUMNS])


def test_runs_of_other_breasts_are_not_averaged(tmp_path):
    runs = [write_oof(tmp_path / "a"), write_oof(tmp_path / "b", n=54)]
    with pytest.raises(PredictionError, match="b predicted 54 breasts, .*a 60, and not the same ones"):
        oof_of_runs(runs)


def test_runs_are_averaged_per_breast(tmp_path):
    runs = [write_oof(tmp_path / "a"), write_oof(tmp_path / "b", shift=0.1)]
    both, first, second = oof_of_runs(runs), oof_of_runs(runs[:1]), oof_of_runs(runs[1:])
    assert len(both) == 60
    merged = first.merge(second, on="prediction_id").merge(both, on="prediction_id")
    assert np.allclose(merged.probability, (merged.probability_x + merged.probability_y) / 2)


def test_weights_are_of_the_runs_and_need_not_sum_to_one(tmp_path):
    runs = [write_oof(tmp_path / "a"), write_oof(tmp_path / "b", seed=1)]
    first, second = (oof_of_runs([run]).probability for run in runs)
    assert np.allclose(oof_of_runs(runs, weights=[1, 3]).probability, 0.25 * first + 0.75 * second)
    assert np.allclose(oof_of_runs(runs, weights=[0, 3]).probability, second)


def test_runs_are_joined_by_breast_whatever_their_order(tmp_path):
    runs = [write_oof(tmp_path / "a"), write_oof(tmp_path / "b", seed=1)]
    both, table = oof_of_runs(runs), pd.read_csv(runs[1] / "oof.csv", dtype={"patient_id": str})
    shuffled = write_run(tmp_path / "shuffled", table.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(oof_of_runs([runs[0], shuffled]), both)


@pytest.mark.parametrize("one_image", [False, True])
def test_images_of_a_breast_are_joined_or_one_is_taken(tmp_path, one_image):
    table = pd.read_csv(write_oof(tmp_path / "a") / "oof.csv", dtype={"patient_id": str})
    double = pd.concat([table, table.assign(image_id=[f"{i}b" for i in range(60)], probability=table.probability / 2)])
    found = oof_of_runs([write_run(tmp_path / "double", double)], "max", one_image=one_image)
    assert len(found) == 60
    highest = table.set_index("prediction_id").probability.loc[found.prediction_id].to_numpy()
    taken = (found.probability == highest).mean()
    assert 0.3 < taken < 0.7 if one_image else taken == 1


def test_runs_that_are_not_out_of_fold_are_not_averaged(tmp_path):
    table = pd.read_csv(write_oof(tmp_path / "a") / "oof.csv", dtype={"patient_id": str})
    run = write_run(tmp_path / "b", table.assign(fold=1 - table.fold))
    oof_of_runs([run])
    table.to_csv(run / "oof.csv", index=False)  # beside the folds of the other
    with pytest.raises(LeakError, match="trained on"):
        oof_of_runs([run])


def test_summary_sets_the_run_beside_metadata_alone(tmp_path, images):
    run = tmp_path / "perfect"
    folded = assign_folds(images, 2, 0)
    perfect = folded.assign(probability=folded.cancer * 0.8 + 0.1, logit=0.0)
    write_run(run, perfect[OOF_COLUMNS])
    summary = oof_summary(run, folded)
    assert summary.loc["perfect", "AUC [95 %]"].startswith("1.000")
    assert (summary.breasts == images.prediction_id.nunique()).all()
    assert not summary.loc["metadata alone", "AUC [95 %]"].startswith("1.000")


def test_breast_of_nan_alone_stays_nan_in_every_aggregation():
    table = pd.DataFrame({"prediction_id": ["a", "a", "b"], "probability": [np.nan, np.nan, 0.5]})
    for method in AGGREGATIONS:
        found = aggregate(table, method)
        assert np.isnan(found["a"]) and found["b"] == pytest.approx(0.5), method
