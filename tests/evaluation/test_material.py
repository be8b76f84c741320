"""A report's runs, threshold and data belong together, and its reader is warned of traps."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from tests.helpers import TINY, make_config, write_run
from utils.core.files import write_json
from utils.core.folders import PROJECT
from utils.decision import tuning
from utils.decision.tuning import Tuning, find_threshold, tune
from utils.evaluation import pictures
from utils.evaluation.explanation import ExplanationError
from utils.evaluation.material import SUSPICIOUS_AUC
from utils.evaluation.material import gather as gather_material
from utils.evaluation.pictures import explanations, say_what_has_no_maps, trained_rows
from utils.evaluation.subgroups import IMAGES_PER_BREAST, METADATA, VERDICT
from utils.images import cache
from utils.images.boxes import CROP
from utils.images.cache import build_cache
from utils.images.cached import read_manifest
from utils.images.inputs import open_inputs
from utils.images.training_data import TrainingData
from utils.metrics.intervals import Interval
from utils.phantom.competition import BOXES_FILE
from utils.runs.config import ModelError
from utils.runs.oof import PredictionError, oof_of_runs
from utils.runs.run import Run
from utils.runs.tables import OOF_COLUMNS
from utils.tables.boxes import read_boxes
from utils.tables.folds import assign_folds
from utils.training.folds import train_run


def make_run(run_dir, images, seed=0, gain=0.3):
    """A made-up finished run of images that knows a little."""
    probability = 0.1 + 0.5 * np.random.default_rng(seed).random(len(images)) + gain * images.cancer
    oof = assign_folds(images, 2, 0).assign(probability=probability, logit=np.log(probability / (1 - probability)))
    write_run(run_dir, oof[OOF_COLUMNS])
    write_json(run_dir / "config.json", make_config(TINY).to_json() | {"prevalence": 0.25})
    return run_dir


@pytest.fixture(autouse=True)
def no_threshold_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "working_dir", lambda: tmp_path / "nothing")


@pytest.fixture
def run(tmp_path, images):
    return make_run(tmp_path / "a", images)


def gather(runs, competition_dir, cache_dir, threshold_path="", **options):
    """Gather as report.ipynb does."""
    settings = Run(runs[0]).config.preprocessing
    inputs = open_inputs(competition_dir, cache_dir, settings.image_height, settings.image_width)
    return gather_material(runs, find_threshold(runs, threshold_path), inputs, **options)


@pytest.fixture
def where(run, competition, cache_dir):
    return {"runs": [run], "competition_dir": str(competition), "cache_dir": str(cache_dir)}


def tables_alone(folder, images, competition):
    """A competition's folder with another train.csv."""
    folder.mkdir()
    (folder / "test.csv").write_text((competition / "test.csv").read_text())
    images.drop(columns="prediction_id").to_csv(folder / "train.csv", index=False)
    return str(folder)


def test_material_is_the_runs_breasts_with_their_decisions_traits_and_pictures(where, run, images):
    material = gather(**where)
    assert (material.title, len(material.breasts), len(material.decisions)) == ("a", images.prediction_id.nunique(), 32)
    assert material.curves["a"].equals(oof_of_runs([run]))
    assert set(material.decisions) == {0, 1} and material.breasts.machine_id.notna().all()
    assert "PHANTOM" in material.subtitle and "32 breasts" in material.subtitle
    assert material.has_pictures(run) and len(material.manifest_of(run)) == len(images)


def test_train_csv_without_some_of_the_breasts_is_refused(where, images, competition, tmp_path):
    lost = images.prediction_id.iloc[0]
    folder = tables_alone(tmp_path / "other", images[images.prediction_id != lost], competition)
    with pytest.raises(
        PredictionError, match=f"other/train.csv lacks 1 of the runs' 32 breasts, .* first {lost}: give the comp"
    ):
        gather(**where | {"competition_dir": folder})


def test_train_csv_that_labels_breasts_otherwise_is_refused(where, images, competition, tmp_path):
    flipped = images.prediction_id == images.prediction_id.iloc[0]
    changed = images.assign(cancer=np.where(flipped, 1 - images.cancer, images.cancer))
    with pytest.raises(PredictionError, match="lacks 1 of the runs' 32 breasts, or labels them differently"):
        gather(**where | {"competition_dir": tables_alone(tmp_path / "other", changed, competition)})


def test_train_csv_with_more_breasts_is_no_error(where, images, competition, tmp_path):
    more = pd.concat([images, images.iloc[:1].assign(patient_id="another", image_id="another")])
    material = gather(**where | {"competition_dir": tables_alone(tmp_path / "other", more, competition)})
    assert len(material.breasts) == 32


def test_one_image_tunes_again_on_one_image_of_each_breast(where, run):
    whole, one = gather(**where), gather(**where, one_image=True)
    assert (whole.tuned.one_image, one.tuned.one_image) == (False, True)
    assert one.tuned == tune([run], Tuning(one_image=True))
    fair = oof_of_runs([run], one_image=True)
    for breasts in (one.curves["a"], one.breasts):
        assert roc_auc_score(breasts.cancer, breasts.probability) == roc_auc_score(fair.cancer, fair.probability)
    assert not np.allclose(whole.curves["a"].probability, one.curves["a"].probability)
    assert "one random image" in one.subtitle and "one random image" not in whole.subtitle


def test_one_image_keeps_the_aggregation_choice_and_weights_of_threshold_json(where, run, images, tmp_path):
    other = make_run(tmp_path / "b", images, seed=1)
    path = tmp_path / "threshold.json"
    tune([run, other], Tuning("max", "maximum"), [0.9, 0.1]).save(path)
    runs = [other, run]  # in another order than they were tuned in
    tuned = gather(**where | {"runs": runs, "threshold_path": str(path)}, one_image=True).tuned
    assert (tuned.aggregation, tuned.choice, tuned.one_image) == ("max", "maximum", True)
    assert dict(zip(tuned.runs, tuned.weights, strict=True)) == {str(run): 0.9, str(other): 0.1}


def test_weights_stay_with_their_runs_in_any_order(run, images, tmp_path):
    other = make_run(tmp_path / "b", images, seed=1)
    tuned = tune([run, other], weights=[0.9, 0.1])
    there, back = tuned.out_of_fold([run, other]), tuned.out_of_fold([other, run])
    assert np.allclose(there.probability, back.set_index("prediction_id").probability.loc[there.prediction_id])
    swapped = replace(tuned, weights=(0.1, 0.9)).out_of_fold([run, other])
    assert not np.allclose(there.probability, swapped.probability)


CHANCE = Interval(0.5, 0.4, 0.6)


def sources_with(count=CHANCE, verdict="better"):
    """A table of sources of AUC in which only two facts matter."""
    rows = {
        "the model": {"AUC [95 %]": Interval(0.8, 0.7, 0.9), VERDICT: ""},
        METADATA: {"AUC [95 %]": Interval(0.6, 0.5, 0.7), VERDICT: verdict},
        IMAGES_PER_BREAST: {"AUC [95 %]": count, VERDICT: ""},
    }
    return pd.DataFrame(rows).T.rename_axis("source")


def test_honest_material_needs_no_note(where):
    assert gather(**where).notes(sources_with()) == []


@pytest.mark.parametrize("one_image", [False, True])
def test_number_of_images_that_tells_cancer_is_named_with_the_remedy(where, one_image):
    found = gather(**where, one_image=one_image).notes(sources_with(count=Interval(0.9, SUSPICIOUS_AUC + 0.01, 0.95)))
    assert len(found) == 1 and "AUC of 0.900 [0.610, 0.950]" in found[0]
    assert ("-p one_image True" in found[0] and "-p max_views 1" in found[0]) != one_image
    assert ("all figures here leave it out" in found[0]) == one_image


def test_number_of_images_within_noise_is_not_named(where):
    assert gather(**where).notes(sources_with(count=Interval(0.65, SUSPICIOUS_AUC, 0.8))) == []


@pytest.mark.parametrize("verdict", ["worse", "not measurably different"])
def test_model_that_is_not_better_than_metadata_is_named(where, verdict):
    found = gather(**where).notes(sources_with(verdict=verdict))
    assert len(found) == 1 and "not better than metadata alone" in found[0]


def test_headline_says_what_threshold_json_does(where):
    material = gather(**where)
    table = material.headline(sources_with())
    values = table["value [95 %]"]
    nested = material.tuned.pf1_nested
    assert str(values["AUC"]) == "0.800 [0.700, 0.900]"
    assert values["pF1, nested over folds"] == f"{nested.value:.3f} [{nested.low:.3f}, {nested.high:.3f}]"
    assert values["threshold"] == f"{material.tuned.threshold:.4f}"
    assert table.loc["AUC of metadata alone", "what it says"] == "the model is better"


def test_average_is_called_weighted_where_the_weights_differ(where, run, images, tmp_path):
    other = make_run(tmp_path / "b", images, seed=1)
    equal = gather(**where | {"runs": [run, other]})
    weighted = replace(equal, tuned=replace(equal.tuned, weights=(0.9, 0.1)))
    assert (equal.title, weighted.title) == ("the average of 2 runs", "the weighted average of 2 runs")


@pytest.mark.parametrize(
    ("keep_epoch", "weights", "said"),
    [
        ("last", (0.5, 0.5), "an honest estimate for new patients"),
        ("best_auc", (0.5, 0.5), "an estimate for new patients, a little too high: these breasts chose the epochs (keep_"),
        ("last", (0.9, 0.1), "an estimate for new patients, a little too high: these breasts chose the runs' weights"),
        ("best_auc", (0.9, 0.1), "these breasts chose the runs' weights and the epochs (keep_epoch best_auc)"),
    ],
)
def test_headline_names_all_that_the_breasts_chose(where, run, images, tmp_path, keep_epoch, weights, said):
    runs = [run, make_run(tmp_path / "b", images, seed=1)]
    for folder in runs:
        write_json(folder / "config.json", make_config(TINY, keep_epoch=keep_epoch).to_json() | {"prevalence": 0.25})
    material = gather(**where | {"runs": runs})
    table = replace(material, tuned=replace(material.tuned, weights=weights)).headline(sources_with())
    assert said in table.loc["pF1, nested over folds", "what it says"]


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ({}, "on the calibrated probability, at the maximum of pF1"),
        ({"1": 0.25}, "on the calibrated probability, at the maximum of pF1; except site 1: 0.2500"),
        ({"1": 0.25, "2": 0.5}, "at the maximum of pF1; except site 1: 0.2500, site 2: 0.5000"),
    ],
)
def test_headline_names_thresholds_of_sites(where, sites, said):
    material = gather(**where)
    tuned = replace(material.tuned, choice="maximum", site_thresholds=sites)
    assert replace(material, tuned=tuned).headline(sources_with()).loc["threshold", "what it says"].endswith(said)


@pytest.mark.parametrize("verdict", ["better", "worse", "not measurably different"])
def test_headline_compares_with_metadata_in_a_sentence(where, verdict):
    table = gather(**where).headline(sources_with(verdict=verdict))
    assert table.loc["AUC of metadata alone", "what it says"] == f"the model is {verdict}"


def test_runs_of_another_image_size_have_a_cache_of_their_own(where, run, images, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "working_dir", lambda: tmp_path / "working")
    other = make_run(tmp_path / "b", images, seed=1)
    small = replace(TINY, image_height=32, image_width=24)
    write_json(other / "config.json", make_config(small).to_json() | {"prevalence": 0.25})
    material = gather(**where | {"runs": [run, other]})
    assert material.has_pictures(run) and not material.has_pictures(other)
    named = material.inputs_of[run]
    assert named.cache_dir == Path(where["cache_dir"])
    own = material.inputs_of[other].cache_dir
    assert own == cache.default_cache_dir(named.competition_dir, small)
    build_cache(images.head(1), named.competition_dir, "train", own, small)
    found = gather(**where | {"runs": [run, other]}).readable_images[other]
    assert found.image_id.tolist() == images.image_id[:1].tolist()


def test_run_without_its_pictures_has_no_training_rows(where, run, tmp_path):
    material = gather(**where | {"cache_dir": str(tmp_path / "empty")})
    assert not material.has_pictures(run) and trained_rows(material) == {}
    assert material.manifest_of(run).empty


def test_picture_that_is_gone_costs_its_image_and_a_breast_without_any_the_pictures(where, run, images, cache_dir, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "train_manifest.csv").write_text((cache_dir / "train_manifest.csv").read_text())
    (copy / "train").mkdir()
    for picture in (cache_dir / "train").glob("*.png"):
        (copy / "train" / picture.name).symlink_to(picture)
    assert gather(**where | {"cache_dir": str(copy)}).readable_images[run].equals(images)
    first, *others = images.image_id[images.prediction_id == images.prediction_id.mode()[0]]
    (copy / "train" / f"{first}.png").unlink()
    material = gather(**where | {"cache_dir": str(copy)})
    assert material.has_pictures(run) and first not in material.readable_images[run].image_id.tolist()
    for name in others:
        (copy / "train" / f"{name}.png").unlink()
    assert not gather(**where | {"cache_dir": str(copy)}).has_pictures(run)


def test_explanations_that_cant_be_had_are_a_sentence(where, tmp_path, monkeypatch):
    [(without, _)] = explanations(gather(**where | {"cache_dir": str(tmp_path / "empty")}), "a")
    assert without == "a: the cache lacks its images; give the cache_dir that it was trained on."

    def refuse(*_):
        raise ExplanationError("Swin gives tokens")

    monkeypatch.setattr(pictures, "explain_run", refuse)
    assert explanations(gather(**where), "a") == [("a: Swin gives tokens", "")]


@pytest.fixture
def real(competition, images, cache_dir, tmp_path):
    """Where a run that predicts boxes, of a competition that is no phantom, has its files; and true boxes, all benign."""
    folder = shutil.copytree(competition, tmp_path / "real", ignore=shutil.ignore_patterns("phantom*", "test_*"))
    boxes = read_boxes(competition / BOXES_FILE)
    boxes[boxes.image_id.isin(images.image_id)].to_csv(folder / "boxes.csv", index=False)
    config = make_config(TINY, epochs=1, box_weight=1.0, model={"box_head": True})
    train_run(config, TrainingData(images, cache_dir, boxes=boxes), tmp_path / "run")
    return {"runs": [tmp_path / "run"], "competition_dir": str(folder), "cache_dir": str(cache_dir)}


def test_maps_and_predicted_boxes_are_measured_wherever_the_competition_has_boxes(real, images):
    boxes = read_boxes(Path(real["competition_dir"]) / "boxes.csv")
    count = boxes.image_id.nunique()
    (surest, maps), (pointing, said), (examples, _), (marks, _) = explanations(gather(**real), "run", box_images=10)
    assert f"Images with boxes: {count} of {len(images)}; measured on 10 drawn at random." in said
    assert maps.endswith("Maps of run: HiResCAM (Draelos and Carin 2020).")
    assert pointing.loc["the run's map", "images"] == 10 and isinstance(pointing.iloc[0, 1], Interval)
    assert "brightest spot" in pointing.index and isinstance(marks.loc["the run", "hit rate [95 %]"], Interval)
    dashed = [patch for axis in surest.axes + examples.axes for patch in axis.patches if patch.get_linestyle() == "--"]
    shown = [axis for axis in surest.axes + examples.axes if axis.get_title()]
    assert len(dashed) == len(shown)  # one predicted box in each image
    for figure, is_decided in ((surest, True), (examples, False)):
        assert figure.get_suptitle() == "run: out-of-fold probability of the breast, not calibrated"
        assert {"threshold" in axis.get_title() for axis in figure.axes if axis.get_title()} == {is_decided}


def test_boxes_of_images_with_and_without_cancer_are_told_apart(real, images, tmp_path):
    boxes = read_boxes(Path(real["competition_dir"]) / "boxes.csv")
    crops = read_manifest(real["cache_dir"], "train", TINY)
    crops = crops[crops.image_id.isin(images.image_id[images.cancer == 0])].head(3)
    benign = crops.rename(columns=dict(zip(CROP, ["y_min", "x_min", "y_max", "x_max"], strict=True))).assign(label="benign")
    pd.concat([boxes, benign[boxes.columns]]).to_csv(tmp_path / "b.csv", index=False)
    found = explanations(gather(**real, boxes_path=str(tmp_path / "b.csv")), "run")
    tables = {said: item for item, said in found if isinstance(item, pd.DataFrame)}
    (everywhere,) = (table for said, table in tables.items() if said.endswith("measured on all.") and "lies in" in said)
    (cancer,) = (table for said, table in tables.items() if said.endswith("of images with cancer alone."))
    assert everywhere.images.iloc[0] == cancer.images.iloc[0] + 3


def test_run_and_competition_without_boxes_are_shown_without_figures_of_them(real, tmp_path):
    assert [type(item) for item, _ in explanations(gather(**real), "run", box_images=0)] == [Figure]
    (tmp_path / "run" / "boxes.csv").unlink()
    *shown, (lost, _) = explanations(gather(**real), "run")
    assert len(shown) == 3 and "boxes.csv is missing" in lost
    (Path(real["competition_dir"]) / "boxes.csv").unlink()
    assert [type(item) for item, _ in explanations(gather(**real), "run")] == [Figure]


@pytest.mark.parametrize("error", [ExplanationError, ModelError])  # no maps; a network that this version of timm lacks
def test_network_that_has_no_maps_is_named_before_the_report_begins(where, monkeypatch, capsys, error):
    def refuse(_):
        raise error("LevitDistilled gives no maps: explain another network.")

    monkeypatch.setattr(pictures, "check_network", refuse)
    say_what_has_no_maps(gather(**where).runs)
    assert "The report will show no maps of a. LevitDistilled gives no maps" in capsys.readouterr().out


def test_report_without_maps_needs_no_torch():
    code = "import sys, utils.evaluation.material, utils.evaluation.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60).returncode == 0
