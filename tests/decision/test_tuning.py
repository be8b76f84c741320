"""Facts about threshold.json: what is in it, what it decides, and when it is not used."""

import json
import shutil
from dataclasses import asdict, astuple, replace

import numpy as np
import pandas as pd
import pytest

from tests.helpers import TUNED, write_run
from tests.runs.test_oof import write_oof
from utils.core import folders
from utils.core.files import read_json, write_json
from utils.core.formats import build
from utils.decision import tuning
from utils.decision.calibration import METHODS, compare_calibrations, fit_calibration
from utils.decision.threshold import Estimate, Threshold
from utils.decision.tuning import (
    Tuning,
    compare_aggregations,
    find_threshold,
    fold_thresholds,
    tune,
)
from utils.metrics.intervals import PatientBootstrap
from utils.metrics.scores import best_threshold, decide, probabilistic_f1, sigmoid
from utils.metrics.thresholds import (
    CHOICES,
    maximum_threshold,
    nested_decisions,
    patient_nested,
    site_thresholds,
)
from utils.phantom.competition import PARAMETERS_FILE
from utils.runs import found as found_runs
from utils.runs.oof import AGGREGATIONS, PredictionError, aggregate, oof_of_runs
from utils.training import example_run
from utils.training.example_run import runs_to_submit
from utils.training.folds import OOF_COLUMNS

CONTRACT = {"threshold", "aggregation", "pf1", "pf1_nested", "runs"}  # relied on from outside


@pytest.fixture
def run(tmp_path):
    return write_oof(tmp_path / "a")


@pytest.fixture
def at_work(tmp_path, monkeypatch):
    """A working folder of its own."""
    monkeypatch.setattr(tuning, "working_dir", lambda: tmp_path)
    return tmp_path


def test_threshold_json_holds_what_is_relied_on_and_no_nan(run, tmp_path):
    tuned = tune([run])
    tuned.save(tmp_path / "threshold.json")
    written = read_json(tmp_path / "threshold.json")
    assert written.keys() >= CONTRACT and written["runs"] == [run.name] and tuned.aggregation == "mean"
    for key in ("pf1_nested", "pf1_patient_nested", "auc"):
        assert written[key].keys() == {"value", "low", "high"}
        assert written[key]["low"] <= written[key]["value"] <= written[key]["high"]
    json.dumps(written, allow_nan=False)
    assert (tuned.breasts, tuned.positives, tuned.prevalence) == (60, 20, pytest.approx(1 / 3))


@pytest.mark.parametrize("choice", CHOICES)
def test_estimates_are_those_of_their_definitions(run, choice):
    tuned, oof, choose = tune([run], Tuning(seed=3, choice=choice)), oof_of_runs([run]), CHOICES[choice]
    bootstrap = PatientBootstrap(oof.patient_id, seed=3)
    by_fold = bootstrap.pf1(oof.cancer, nested_decisions(oof.cancer, oof.probability, oof.fold, choose))
    by_patient = patient_nested(oof.cancer, oof.probability, oof.patient_id, choose, seed=3)
    assert astuple(tuned.pf1_nested) == (by_fold.value, by_fold.low, by_fold.high)
    assert tuned.pf1_patient_nested.value == probabilistic_f1(oof.cancer, by_patient)
    assert tuned.auc.value == bootstrap.auc(oof.cancer, oof.probability).value
    assert tuned.optimism == tuned.pf1 - tuned.pf1_patient_nested.value


def test_maximum_on_the_tuning_data_is_the_best_pf1(run):
    tuned, oof = tune([run], Tuning(choice="maximum")), oof_of_runs([run])
    assert tuned.pf1 == pytest.approx(best_threshold(oof.cancer, oof.probability)[1])
    assert tuned.optimism > 0


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("method", ["none", "temperature", "platt"])
def test_calibrated_threshold_decides_as_the_raw_one(run, monkeypatch, method, choice):
    """An isotonic map has steps, which join breasts that a raw threshold may part."""
    oof = oof_of_runs([run])
    calibration = fit_calibration(method, oof.cancer, oof.probability)
    monkeypatch.setattr(tuning, "_best_calibration", lambda oof: calibration)
    tuned, raw = tune([run], Tuning(choice=choice)), CHOICES[choice](oof.cancer, oof.probability)
    assert tuned.calibration == calibration
    decisions = tuned.decide(tuned.calibrate(oof.probability), pd.Series(1, index=oof.index))
    np.testing.assert_array_equal(decisions, decide(oof.probability, raw))
    assert tuned.pf1 == probabilistic_f1(oof.cancer, decisions)


def test_an_isotonic_calibration_keeps_the_best_pf1(run, monkeypatch):
    oof = oof_of_runs([run])
    calibration = fit_calibration("isotonic", oof.cancer, oof.probability)
    monkeypatch.setattr(tuning, "_best_calibration", lambda oof: calibration)
    assert tune([run], Tuning(choice="maximum")).pf1 == pytest.approx(best_threshold(oof.cancer, oof.probability)[1])


def test_calibration_of_the_lowest_nested_log_loss_is_taken(run):
    oof = oof_of_runs([run])
    method = compare_calibrations(oof.cancer, oof.probability, oof.fold).log_loss.idxmin()
    assert tune([run]).calibration == fit_calibration(method, oof.cancer, oof.probability)
    assert method != METHODS[0]


def test_tuned_breasts_are_calibrated_as_threshold_json_says(run, tmp_path):
    tuned, oof = tune([run]), oof_of_runs([run])
    found = tuned.out_of_fold([run])
    tuned.save(tmp_path / "threshold.json")
    calibrated = Threshold.load(tmp_path / "threshold.json").calibration(oof.probability)
    np.testing.assert_array_equal(found.probability, calibrated)
    assert probabilistic_f1(found.cancer, decide(found.probability, tuned.threshold)) == tuned.pf1


def test_tuning_depends_on_the_seed_alone(run):
    assert tune([run], Tuning(seed=1)) == tune([run], Tuning(seed=1))
    assert tune([run], Tuning(seed=1)).auc != tune([run], Tuning(seed=2)).auc


def test_weights_count(run, tmp_path):
    runs = [run, write_oof(tmp_path / "b", seed=1)]
    alone, weighted = tune(runs[1:]), tune(runs, weights=[0, 2])
    for key in ("threshold", "pf1", "pf1_nested", "auc"):
        assert getattr(weighted, key) == getattr(alone, key)
    assert weighted.weights == (0, 2) and tune(runs).weights == (1, 1)


def test_unknown_choice_is_refused(run):
    with pytest.raises(PredictionError, match="choice is 'best'; choose from plateau, maximum"):
        tune([run], Tuning(choice="best"))


def two_sites(run_dir, shift, n=800):
    """A run whose logits at site 2 lie ``shift`` higher, for other reasons than cancer."""
    generator = np.random.default_rng(0)
    labels, site = (np.arange(n) % 4 == 0).astype(int), np.where(np.arange(n) // 4 % 2, 1, 2)
    table = pd.DataFrame({"patient_id": [f"p{i}" for i in range(n)], "laterality": "L", "cancer": labels})
    table["prediction_id"], table["image_id"], table["fold"] = table.patient_id, table.patient_id, generator.integers(0, 4, n)
    table["logit"] = generator.normal(2 * labels - 1) + shift * (site == 2)
    table["probability"] = sigmoid(table.logit)
    return write_run(run_dir, table[OOF_COLUMNS]), pd.Series(site, index=table.prediction_id)


def test_thresholds_by_site_are_accepted_where_sites_differ(tmp_path):
    run, sites = two_sites(tmp_path / "run", shift=3)
    tuned, oof = tune([run], sites=sites), oof_of_runs([run])
    site = oof.prediction_id.map(sites)
    gain = PatientBootstrap(oof.patient_id).pf1_difference(
        oof.cancer,
        nested_decisions(oof.cancer, oof.probability, oof.fold, sites=site),
        nested_decisions(oof.cancer, oof.probability, oof.fold),
    )
    assert astuple(tuned.site_gain) == (gain.value, gain.low, gain.high) and gain.low > 0
    calibrated = tuned.calibrate(oof.set_index("prediction_id").probability)
    expected = site_thresholds(oof.cancer, calibrated, site)
    assert tuned.site_thresholds == {str(name): value for name, value in expected.items()}
    assert tuned.site_thresholds["1"] < tuned.threshold < tuned.site_thresholds["2"]
    each = nested_decisions(oof.cancer, oof.probability, oof.fold, sites=site)
    assert tuned.pf1_nested.value == probabilistic_f1(oof.cancer, each)  # of what is submitted
    each = patient_nested(oof.cancer, oof.probability, oof.patient_id, sites=site)
    assert tuned.pf1_patient_nested.value == probabilistic_f1(oof.cancer, each)
    decisions = tuned.decide(calibrated, sites.sample(frac=1, random_state=0))
    np.testing.assert_array_equal(decisions, decide(calibrated, calibrated.index.map(sites).map(expected)))
    assert tuned.pf1 == probabilistic_f1(oof.cancer, decisions)


def test_thresholds_by_site_are_not_accepted_where_sites_are_alike(tmp_path):
    run, sites = two_sites(tmp_path / "run", shift=0)
    tuned = tune([run], sites=sites)
    assert tuned.site_thresholds == {} and tuned.site_gain.low <= 0
    assert replace(tuned, site_gain=None) == tune([run])


def test_breast_of_an_unknown_site_gets_the_common_threshold():
    tuned = replace(build(Threshold, TUNED), threshold=0.5, site_thresholds={"1": 0.3})
    decisions = tuned.decide(pd.Series({"a": 0.4, "b": 0.4, "c": 0.6}), pd.Series({"c": 2, "b": 2, "a": 1}))
    assert decisions.to_dict() == {"a": 1, "b": 0, "c": 1}


def test_sites_of_another_competition_are_refused(tmp_path):
    run, sites = two_sites(tmp_path / "run", shift=0)
    with pytest.raises(PredictionError, match="predicted breast p7, which competition_dir's train.csv does not have"):
        tune([run], sites=sites.drop("p7"))


def images_run(run_dir, seed=0):
    """A run of several images a breast, of which one shows the cancer."""
    counts, generator = np.random.default_rng(0).integers(1, 6, 200), np.random.default_rng(seed)
    row = np.repeat(np.arange(200), counts)
    table = pd.DataFrame({"patient_id": [f"p{i}" for i in row], "laterality": "L", "cancer": (row % 4 == 0).astype(int)})
    table["prediction_id"], table["image_id"], table["fold"] = table.patient_id, [str(i) for i in range(len(row))], row % 3
    table["logit"] = generator.normal(size=len(row)) - 2 + 3 * (table.cancer & ~table.prediction_id.duplicated())
    table["probability"] = sigmoid(table.logit)
    return write_run(run_dir, table[OOF_COLUMNS])


@pytest.fixture
def many_images(tmp_path):
    return images_run(tmp_path / "many")


@pytest.mark.parametrize("options", [{"weights": [1, 5]}, {"aggregation": "max"}, {"one_image": True}])
def test_tuned_breasts_are_those_that_were_tuned_on(many_images, tmp_path, options):
    runs = [many_images, images_run(tmp_path / "other", seed=1)]
    weights = options.get("weights")
    how = {name: value for name, value in options.items() if name != "weights"}
    tuned = tune(runs, Tuning(**how), weights)
    found = tuned.out_of_fold(runs)
    assert probabilistic_f1(found.cancer, decide(found.probability, tuned.threshold)) == tuned.pf1
    np.testing.assert_allclose(found.probability, tuned.calibrate(oof_of_runs(runs, **options).probability))
    assert not np.allclose(found.probability, tuned.calibrate(oof_of_runs(runs).probability))


def test_aggregations_are_compared_on_the_same_patients(many_images):
    table = compare_aggregations([many_images], Tuning(seed=1))
    assert table.index.tolist() == list(AGGREGATIONS) and table.loc["mean", "gain over the mean"] == ""
    oof = pd.read_csv(many_images / "oof.csv")
    breasts = oof.drop_duplicates("prediction_id")
    bootstrap, decisions = PatientBootstrap(breasts.patient_id, seed=1), {}
    for method in AGGREGATIONS:
        probability = aggregate(oof, method).loc[breasts.prediction_id].to_numpy()
        decisions[method] = patient_nested(breasts.cancer, probability, breasts.patient_id, seed=1)
        assert table.loc[method, "AUC [95 %]"] == str(bootstrap.auc(breasts.cancer, probability))
        assert table.loc[method, "pf1_patient_nested [95 %]"] == str(bootstrap.pf1(breasts.cancer, decisions[method]))
    difference = bootstrap.pf1_difference(breasts.cancer, decisions["max"], decisions["mean"])
    assert table.loc["max", ["gain over the mean", "verdict"]].tolist() == [difference.signed, "better"]


def test_one_image_a_breast_leaves_nothing_to_aggregate(many_images):
    table = compare_aggregations([many_images], Tuning(one_image=True))
    assert table["AUC [95 %]"].nunique() == 1 and tune([many_images], Tuning(one_image=True)).one_image
    assert (table.verdict[1:] == "not measurably different").all()


def test_each_fold_chooses_a_threshold_by_itself(run):
    oof = oof_of_runs([run])
    table = fold_thresholds(oof, "maximum")
    for fold, row in table.iterrows():
        rows = oof[oof.fold == fold]
        threshold = maximum_threshold(rows.cancer, rows.probability)
        assert (row.threshold, row.taken) == (threshold, (rows.probability >= threshold).mean())
        assert (row.breasts, row.positives) == (len(rows), rows.cancer.sum())


def test_threshold_of_other_runs_is_not_used(at_work):
    runs = [write_oof(at_work / "a"), write_oof(at_work / "b", shift=0.1)]
    path = at_work / "threshold.json"
    replace(tune(runs[:1]), threshold=0.123).save(path)
    assert find_threshold(runs[:1]).threshold == 0.123
    assert find_threshold(runs[1:]) == tune(runs[1:])  # found by chance: tuned anew
    with pytest.raises(PredictionError, match="was tuned on"):  # named: an error
        find_threshold(runs[1:], str(path))
    with pytest.raises(PredictionError, match="does not exist"):
        find_threshold(runs, str(at_work / "absent.json"))
    with pytest.raises(PredictionError, match="threshold_path .* is not a file"):
        find_threshold(runs, str(at_work))
    oof = runs[0] / "oof.csv"
    oof.write_text(oof.read_text() + "\n")  # trained again
    assert find_threshold(runs[:1]).threshold != 0.123


def test_without_threshold_json_the_runs_are_tuned_now(at_work, run, capsys):
    assert find_threshold([run]) == tune([run])
    assert "No threshold.json: tuning" in capsys.readouterr().out


def test_threshold_json_of_an_earlier_version_is_refused(at_work, run):
    path = at_work / "threshold.json"
    tune([run]).save(path)
    tuned = read_json(path)
    write_json(path, {key: tuned[key] for key in (*CONTRACT, "auc", "oof_hashes")})
    for name in ("", str(path)):
        with pytest.raises(PredictionError, match=r"threshold.json: it lacks fields .*calibration.*Run tune_threshold.ipynb"):
            find_threshold([run], name)


def test_runs_of_threshold_json_are_submitted_unless_others_are_named(at_work):
    runs = [write_oof(at_work / "runs" / name) for name in "ab"]
    tune(runs[1:]).save(at_work / "threshold.json")
    assert runs_to_submit() == runs[1:]
    assert runs_to_submit(str(runs[0])) == runs[:1]


def test_attached_threshold_json_finds_its_runs_by_content(tmp_path, at_work, monkeypatch):
    """On Kaggle: runs and threshold.json come from datasets, under other paths than those that they were tuned under."""
    runs = [write_oof(tmp_path / "home" / name, seed=seed) for seed, name in enumerate("abc")]
    tuned = tune(runs[:2])
    attached = tmp_path / "input"
    shutil.move(tmp_path / "home", attached / "weights")
    tuned.save(attached / "weights" / "threshold.json")
    replace(tune([attached / "weights" / "c"]), oof_hashes=("0" * 12,)).save(attached / "a-older" / "threshold.json")
    monkeypatch.setattr(tuning, "KAGGLE_INPUT", attached)
    monkeypatch.setattr(found_runs, "KAGGLE_INPUT", attached)
    found = runs_to_submit()
    assert found == [attached / "weights" / name for name in "ab"]
    assert find_threshold(found) == Threshold.load(attached / "weights" / "threshold.json")


@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_folder_of_runs_and_their_threshold_json_can_be_moved(tmp_path, at_work, is_absolute):
    """Earlier versions wrote absolute paths; runs are then found by content."""
    runs = [write_oof(tmp_path / "home" / "runs" / name, seed=seed) for seed, name in enumerate("ab")]
    tuned = tune(runs)
    tuned.save(tmp_path / "home" / "threshold.json")
    if is_absolute:
        write_json(tmp_path / "home" / "threshold.json", asdict(tuned))
    moved = shutil.move(tmp_path / "home", tmp_path / "elsewhere")
    path = str(moved / "threshold.json")
    assert runs_to_submit(threshold_path=path) == [moved / "runs" / name for name in "ab"]
    assert find_threshold(runs_to_submit(threshold_path=path), path).weights == tuned.weights


def test_paths_outside_of_the_folder_of_threshold_json_are_absolute(run, tmp_path):
    path = tmp_path / "tuned" / "threshold.json"
    tune([run]).save(path)
    assert read_json(path)["runs"] == [str(run)] and Threshold.load(path).run_dirs == [run]
    moved = shutil.move(path, tmp_path / "threshold.json")
    assert Threshold.load(moved).run_dirs == [run]


def test_named_threshold_json_whose_runs_are_gone_is_refused(at_work):
    runs = [write_oof(at_work / "runs" / name, seed=seed) for seed, name in enumerate("ab")]
    tune(runs[:1]).save(at_work / "threshold.json")
    shutil.rmtree(runs[0])
    with pytest.raises(PredictionError, match="threshold.json was tuned on .*runs/a: some are missing.*with run_dirs"):
        runs_to_submit(threshold_path=str(at_work / "threshold.json"))
    assert tuning.tuned_runs() == []  # the file was not named


def test_runs_for_show_of_a_threshold_json_that_was_not_named_are_not_submitted_for_real_data(at_work, monkeypatch):
    """Real by what competition_dir names, or else by what is found; for show by their folder, or by their config.json."""
    real, phantom = at_work / "real", at_work / "phantom"
    for folder in (real, phantom):
        folder.mkdir()
    (phantom / PARAMETERS_FILE).touch()
    good = write_oof(at_work / "runs" / "cnn", seed=1)
    smoke, marked = write_oof(at_work / "runs-smoke" / "cnn"), write_oof(at_work / "elsewhere" / "cnn", seed=2)
    write_json(marked / "config.json", {"prevalence": 0.25, "phantom": True})
    for module in (found_runs, example_run):
        monkeypatch.setattr(module, "runs_dir", lambda *_, **__: at_work / "runs")
    for shown in (smoke, marked):
        tune([shown]).save(at_work / "threshold.json")
        monkeypatch.setattr(folders, "find_competition", lambda: None)
        assert runs_to_submit(competition_dir=real) == [good]
        assert runs_to_submit() == runs_to_submit(competition_dir=phantom) == [shown]
        monkeypatch.setattr(folders, "find_competition", lambda: real)
        assert runs_to_submit() == [good]
        assert runs_to_submit(smoke_test=True) == runs_to_submit(competition_dir=phantom) == [shown]
        assert runs_to_submit(threshold_path=str(at_work / "threshold.json")) == [shown]


def test_weights_follow_their_runs_whatever_the_order(tmp_path):
    runs = [write_oof(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    tuned = tune(runs, weights=[0.5, 0.2, 0.3])
    assert tuned.weights_of(runs) == [0.5, 0.2, 0.3]
    assert tuned.weights_of([runs[2], runs[0], runs[1]]) == [0.3, 0.5, 0.2]
    elsewhere = runs[1].rename(tmp_path / "elsewhere")
    assert tuned.weights_of([elsewhere]) == [0.2]


def test_copies_of_a_run_share_their_weight(tmp_path):
    runs = [write_oof(tmp_path / name) for name in "ab"]
    assert tune(runs, weights=[1, 0]).weights_of(runs) == [0.5, 0.5]


def test_threshold_json_is_shown_as_text(run):
    tuned = tune([run])
    undefined = Estimate(None, None, None)
    shown = replace(tuned, auc=undefined, site_thresholds={"1": 0.2, "2": 0.3}).describe().value
    assert shown["threshold"] == tuned.threshold and shown["calibration"] == tuned.calibration.method
    nested = tuned.pf1_nested
    assert shown["pf1_nested"] == f"{nested.value:.3f} [{nested.low:.3f}, {nested.high:.3f}]"
    assert shown["auc"] == "undefined" and shown["site_thresholds"] == "1: 0.2; 2: 0.3" and shown["runs"] == str(run)
