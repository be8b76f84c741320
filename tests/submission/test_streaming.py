import copy
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.helpers import TINY, make_config
from utils.core.files import write_json
from utils.decision.calibration import Calibration
from utils.decision.tuning import tune
from utils.images.cache import build_cache
from utils.images.settings import CacheSettings
from utils.images.training_data import TrainingData
from utils.metrics.scores import sigmoid
from utils.runs.oof import aggregate
from utils.runs.run import Run
from utils.submission import acceleration, decoding, ensemble, streaming
from utils.submission.acceleration import Candidate, accelerate
from utils.submission.deadline import Deadline, Plan
from utils.submission.decoding import Source
from utils.submission.draft import PRIOR, Draft, SubmissionError, complete, validate_submission
from utils.submission.ensemble import check_run, load_variants
from utils.submission.streaming import predict_runs
from utils.tables.competition import read_sample_submission
from utils.training.dataset import make_dataset
from utils.training.fold_weights import load_fold
from utils.training.folds import train_run
from utils.training.inference import predict_logits

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(images, cache_dir, tmp_path_factory):
    """Two short runs, one per image and one per breast, which asks for mirror images too."""
    runs = []
    for architecture, flip in {"cnn": False, "rnn": True}.items():
        runs.append(tmp_path_factory.mktemp("runs") / architecture)
        config = make_config(TINY, architecture, epochs=1, test_time_flip=flip)
        train_run(config, TrainingData(images, cache_dir, is_phantom=True), runs[-1])
    return runs


@pytest.fixture(scope="module")
def tuned(trained):
    """As of threshold.json, with a calibration that keeps probabilities as they are."""
    return replace(tune(trained), calibration=Calibration())


@pytest.fixture(scope="module")
def test_cache(test_images, competition, tmp_path_factory):
    folder = tmp_path_factory.mktemp("test-cache")
    build_cache(test_images, competition, "test", folder, TINY)
    return folder


@pytest.fixture(scope="module")
def source(test_images, competition, test_cache):
    return Source(test_images, competition, test_cache)


@pytest.fixture(scope="module")
def alone(trained, tuned, source):
    """What each run predicts by itself: shape (breasts, runs)."""
    found = [predict_runs([run], tuned, source)[0] for run in trained]
    return pd.concat(found, axis=1)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(streaming, "FIRST_CHUNK", 1)
    monkeypatch.setattr(streaming, "LARGEST_CHUNK", 1)


@pytest.fixture
def broken_competition(competition, tmp_path):
    """A copy of the phantom, to break."""
    folder = tmp_path / "broken"
    shutil.copytree(competition, folder)
    return folder


def test_run_predicts_what_each_of_its_folds_predicts_by_itself(trained, alone, test_images, test_cache):
    for run, column in zip(trained, alone, strict=True):
        by_fold, config = [], Run(run).config
        for fold_dir in Run(run).finished_folds():
            model, vocabulary = load_fold(config, fold_dir)
            items = make_dataset(config, test_images, test_cache, "test", vocabulary)
            logits = predict_logits(model, items, config, CPU)
            by_fold.append(aggregate(items.items.assign(probability=sigmoid(logits)), "mean"))
        expected = pd.concat(by_fold, axis=1).mean(axis=1)
        assert np.allclose(alone[column].loc[expected.index], expected, atol=1e-6)


@pytest.mark.parametrize("weights", [[1, 1], [1, 3], [0, 2]])
def test_runs_predict_every_breast_of_the_test_averaged_by_their_weights(trained, tuned, source, alone, test_images, weights):
    found, _ = predict_runs(trained, replace(tuned, weights=tuple(weights)), source)
    assert set(found.index) == set(test_images.prediction_id)
    assert np.allclose(found, np.average(alone.loc[found.index], axis=1, weights=weights))
    assert not np.allclose(*alone.to_numpy().T)


def test_weights_stay_with_their_runs_in_another_order(trained, tuned, source, alone):
    weighted = replace(tuned, weights=(1.0, 3.0))
    found, _ = predict_runs(trained[::-1], weighted, source)
    assert np.allclose(found, np.average(alone.loc[found.index], axis=1, weights=[1, 3]))


def test_predictions_are_calibrated_as_threshold_json_says(trained, tuned, source, alone):
    calibration = Calibration("platt", slope=2.0, intercept=-1.0)
    changed = replace(tuned, calibration=calibration)
    found, _ = predict_runs(trained, changed, source)
    odds = (alone.mean(axis=1) / (1 - alone.mean(axis=1))).loc[found.index]
    assert np.allclose(found / (1 - found), odds**2 / np.e)


def test_run_without_weight_is_not_loaded(trained, tuned, source, monkeypatch):
    asked, load = [], load_variants
    monkeypatch.setattr(streaming, "load_variants", lambda runs, *rest: asked.extend(runs) or load(runs, *rest))
    predict_runs(trained, replace(tuned, weights=(0.0, 3.0)), source)
    assert asked == trained[1:]


def test_chunks_of_patients_change_no_prediction(trained, tuned, source, alone, test_images, small_chunks):
    drafts = []
    found, log = predict_runs(trained, tuned, source, publish=drafts.append)
    assert np.allclose(found, alone.mean(axis=1).loc[found.index], atol=1e-6)
    assert len(drafts) == test_images.patient_id.nunique() and [len(draft) for draft in drafts] == [2, 4, 6, 8]
    assert log.stages["decode"]["images"] == log.stages["predict"]["images"] == len(test_images)


def test_overlapped_decoding_changes_no_prediction(trained, tuned, source, alone, small_chunks, monkeypatch):
    init = streaming._Stream.__init__
    overlap = lambda self, *a: init(self, *a) or setattr(self.pace, "overlaps", True)  # noqa: E731
    monkeypatch.setattr(streaming._Stream, "__init__", overlap)
    found, _ = predict_runs(trained, tuned, source)
    assert np.allclose(found, alone.mean(axis=1).loc[found.index], atol=1e-6)


def test_folds_on_two_devices_change_no_prediction(trained, test_images, test_cache):
    one, two = (load_variants(trained, True, devices)[0] for devices in ([CPU], [CPU, torch.device("cpu", 0)]))
    assert len({member.device for member in two.members}) == 2
    plan = Plan(True, 2, 1)
    tables = [variant.predict(test_images, test_cache, "mean", plan) for variant in (one, two)]
    assert np.allclose(*tables, atol=1e-6)


def test_memory_that_runs_out_costs_no_prediction(trained, test_images, test_cache, monkeypatch):
    variant = load_variants(trained, True, [CPU])[0]
    expected = variant.predict(test_images, test_cache, "mean", Plan(False, 2, 1))
    forward, sizes = ensemble.forward, []

    def short_of_memory(model, batch, device):
        sizes.append(len(batch["label"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(model, batch, device)

    monkeypatch.setattr(ensemble, "forward", short_of_memory)
    assert np.allclose(variant.predict(test_images, test_cache, "mean", Plan(False, 2, 1)), expected, atol=1e-6)
    assert max(sizes) > 3


def test_plan_leaves_out_mirror_images_and_later_folds(trained, test_images, test_cache):
    variant = load_variants(trained, True, [CPU])[0]
    member = next(member for member in variant.members if member.run == trained[0] and member.number == 0)
    alone = sigmoid(ensemble.predict_members([member], test_images, test_cache, False)[1])[:, 0]
    found, fuller = (variant.predict(test_images, test_cache, "mean", Plan(flip, 1, 1)) for flip in (False, True))
    expected = test_images.assign(probability=alone).groupby("prediction_id").probability.mean()
    assert np.allclose(found[trained[0]], expected.loc[found.index], atol=1e-6)
    assert np.allclose(found[trained[0]], fuller[trained[0]]) and not np.allclose(found[trained[1]], fuller[trained[1]])


def test_accelerated_networks_predict_the_same(trained, tuned, source, alone, monkeypatch):
    tried, copied = [], Candidate(lambda encoder, images: copy.deepcopy(encoder))
    both = {"copied": copied, "too slow to prepare": Candidate(copied.make, prepare_s=math.inf)}

    def spied_on(model, batch, device, candidates, work_seconds):
        tried.append(list(candidates))
        return accelerate(model, batch, device, candidates, work_seconds)

    changes = {"LEAST_IMAGES": 1, "LEAST_SECONDS": 0.0, "accelerate": spied_on, "offered": lambda *_: both}
    for name, value in changes.items():
        monkeypatch.setattr(ensemble, name, value)
    monkeypatch.setattr(acceleration, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(acceleration, "_race", lambda *_: 2.0)
    found, log = predict_runs(trained, tuned, source)
    assert np.allclose(found, alone.mean(axis=1).loc[found.index], atol=1e-5)
    assert tried == [list(both), ["copied"]] * 2  # later folds do not choose
    assert all("copied, 2.00 times as fast" in what for what in log.acceleration.values()) and len(log.acceleration) == 2


def test_few_images_are_not_worth_trying_what_is_faster(trained, tuned, source):
    assert predict_runs(trained, tuned, source)[1].acceleration == {}


def test_short_time_sheds_work_and_says_so(trained, tuned, source, test_images, small_chunks, monkeypatch):
    deadline = Deadline(1.0)
    monkeypatch.setattr(streaming.Pace, "seconds_per_image", lambda pace, plan: 900.0 if plan.flip else 1.0)
    found, log = predict_runs(trained, tuned, source, deadline)
    assert len(found) == 8 and log.plans == {"no mirror images, 2 folds": len(test_images)}


def test_over_time_what_is_predicted_stays_and_the_rest_has_the_prior(trained, tuned, source, small_chunks, monkeypatch):
    class Short(Deadline):
        left = property(lambda self: 1e9 if self.chunks < 2 else -1.0)

    deadline = Short()
    deadline.chunks, drafts = 0, []

    def publish(probabilities):
        deadline.chunks += 1
        drafts.append(probabilities)

    found, log = predict_runs(trained, tuned, source, deadline, publish)
    assert len(found) == 4 and "Out of time" in log.failures[0]


def test_failure_costs_its_own_patient_alone(trained, tuned, source, test_images, monkeypatch):
    lost, predict = test_images.patient_id.iloc[0], ensemble.Variant.predict

    def fails_for_one(self, images, *arguments):
        if lost in set(images.patient_id):
            raise RuntimeError("CUDA error: an illegal memory access")
        return predict(self, images, *arguments)

    monkeypatch.setattr(ensemble.Variant, "predict", fails_for_one)
    found, log = predict_runs(trained, tuned, source)
    assert set(found.index) == set(test_images.prediction_id[test_images.patient_id != lost])
    assert len(log.failures) == 1 and "illegal memory access" in log.failures[0]


def test_networks_that_can_not_be_made_faster_predict_as_they_are(trained, tuned, source, alone, monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ensemble.Variant, "accelerate", out_of_memory)
    found, _ = predict_runs(trained, tuned, source)
    assert np.allclose(found, alone.mean(axis=1).loc[found.index], atol=1e-6)


def test_full_disk_at_an_update_does_not_end_the_run(trained, tuned, source, small_chunks):
    def publish(probabilities):
        raise OSError(28, "No space left on device")

    assert len(predict_runs(trained, tuned, source, publish=publish)[0]) == 8


def test_pictures_that_were_there_before_are_not_deleted(trained, tuned, source, test_images, test_cache, monkeypatch):
    usage = shutil.disk_usage(test_cache)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda folder: usage._replace(free=0))
    predict_runs(trained, tuned, source)
    assert len(list(test_cache.rglob("*.png"))) == len(test_images)


def test_what_is_wrong_from_the_start_ends_the_run(trained, tuned, source, monkeypatch):
    def fails(self, *arguments):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(ensemble.Variant, "predict", fails)
    with pytest.raises(RuntimeError, match="no kernel image"):
        predict_runs(trained, tuned, source)


@pytest.mark.parametrize("free", [10**18, 0])
def test_pictures_are_deleted_behind_where_the_disk_is_short(
    trained, tuned, test_images, competition, tmp_path, small_chunks, monkeypatch, free
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda folder: usage._replace(free=free))
    found, _ = predict_runs(trained, tuned, Source(test_images, competition, tmp_path / "cache"))
    assert len(found) == 8 and len(list(tmp_path.rglob("*.png"))) == (len(test_images) if free else 0)


def test_unreadable_images_fall_back_to_the_breast_then_to_the_prior(trained, tuned, test_images, broken_competition, tmp_path):
    counts = test_images.groupby("prediction_id").size()
    partly, wholly = counts.index[counts > 1][:2]
    lost = [test_images[test_images.prediction_id == partly].head(1), test_images[test_images.prediction_id == wholly]]
    for row in pd.concat(lost).itertuples():
        (broken_competition / "test_images" / row.patient_id / f"{row.image_id}.dcm").write_bytes(b"broken")
    predicted, _ = predict_runs(trained, tuned, Source(test_images, broken_competition, tmp_path / "cache"))
    completed, filled = complete(predicted, test_images, prior=0.02)
    assert filled == [wholly] and completed[wholly] == 0.02 and completed[partly] != 0.02
    assert len(completed) == len(counts)


def test_wholly_unreadable_test_set_still_gives_a_submission(trained, tuned, test_images, broken_competition, tmp_path):
    for path in (broken_competition / "test_images").rglob("*.dcm"):
        path.unlink()
    predicted, _ = predict_runs(trained, tuned, Source(test_images, broken_competition, tmp_path / "cache"))
    completed, filled = complete(predicted, test_images, prior=0.02)
    assert (completed == 0.02).all() and len(filled) == len(completed)


@pytest.mark.parametrize("image_id", ["9" * 300, "é" * 100, "../../secret", "a/b", "..", "nul\0", ""])
def test_image_id_that_can_not_name_a_file_costs_its_own_image(
    trained, tuned, alone, test_images, competition, test_cache, image_id
):
    changed = test_images.assign(image_id=test_images.image_id.where(test_images.index != 0, image_id))
    found, _ = predict_runs(trained, tuned, Source(changed, competition, test_cache))
    whole = test_images.prediction_id[test_images.prediction_id != test_images.prediction_id[0]].unique()
    assert np.allclose(found[whole], alone.mean(axis=1)[whole], atol=1e-6)


def broken_logits(monkeypatch, member_breaks, value, rows=slice(None)):
    """Make the logits of some members, or of some of their items, no finite number."""
    logits = ensemble._logits

    def broken(member, batch, flip):
        found = logits(member, batch, flip)
        if member_breaks(member):
            found[rows] = value
        return found

    monkeypatch.setattr(ensemble, "_logits", broken)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_fold_without_finite_numbers_is_named_and_counts_for_nothing(
    trained, tuned, source, test_images, test_cache, monkeypatch, small_chunks, capsys, value
):
    first = Run(trained[0]).finished_folds()[0]
    variant = load_variants(trained, True, [CPU])[0]
    members = [member for member in variant.members if member.fold_dir != first]
    expected = ensemble.Variant(TINY, members).predict(test_images, test_cache, "mean", Plan(True, 2, 1)).mean(axis=1)
    broken_logits(monkeypatch, lambda member: member.fold_dir == first, value)
    found, log = predict_runs(trained, tuned, source)
    assert np.allclose(found, expected.loc[found.index], atol=1e-6) and len(found) == 8
    assert log.not_finite == {str(first): len(test_images)}
    assert json.loads(json.dumps(log.to_json(Deadline())))["not_finite"] == log.not_finite
    assert log.table().images[f"NaN or infinite: {first}"] == len(test_images)
    assert capsys.readouterr().out.count(f"{first} predicts NaN or infinity") == 1


def test_single_images_without_finite_numbers_are_counted(trained, tuned, source, test_images, monkeypatch):
    monkeypatch.setattr(streaming, "FIRST_CHUNK", len(test_images))  # one batch
    folds = [str(fold) for run in trained for fold in Run(run).finished_folds()]
    broken_logits(monkeypatch, lambda member: str(member.fold_dir) in folds[1:3], np.nan, rows=0)
    found, log = predict_runs(trained, tuned, source)
    assert len(found) == 8 and found.notna().all()
    breasts = test_images.groupby("prediction_id").size()
    assert log.not_finite[folds[1]] == 1 and log.not_finite[folds[2]] in set(breasts)  # the second run reads breasts
    assert list(log.not_finite) == folds[1:3]


@pytest.mark.parametrize("broken_runs", [1, 2])
def test_run_without_finite_numbers_leaves_the_others_then_the_prior(
    trained, tuned, source, alone, test_images, competition, monkeypatch, tmp_path, broken_runs
):
    broken_logits(monkeypatch, lambda member: member.run in trained[:broken_runs], np.nan)
    draft = Draft(tmp_path / "submission.csv", test_images, competition, 0.02, lambda probabilities: probabilities * 0)
    found, log = predict_runs(trained, tuned, source, publish=draft.update)
    assert len(log.not_finite) == 2 * broken_runs
    if broken_runs == 1:
        assert np.allclose(found, alone.iloc[:, 1].loc[found.index], atol=1e-6) and len(found) == 8
    else:
        assert found.empty and (draft.finish(found, tmp_path / "s", {}).cancer == 0.02).all()


def test_failing_summary_or_clean_up_costs_no_prediction(trained, tuned, source, monkeypatch, capsys):
    monkeypatch.setattr(decoding, "summarise", lambda manifest: 1 / 0)
    monkeypatch.setattr(decoding.Decoder, "free_disk", lambda *_: 1 / 0)
    assert len(predict_runs(trained, tuned, source)[0]) == 8
    printed = capsys.readouterr().out
    assert "were not deleted from the cache. (ZeroDivisionError" in printed
    assert "summary of decoding is unavailable. (ZeroDivisionError" in printed


def test_log_without_stages_is_an_empty_table():
    assert streaming.Log().table().empty


def test_runs_of_two_picture_sizes_are_averaged(trained, tuned, test_images, competition, images, tmp_path):
    small = CacheSettings(32, 32)
    build_cache(images, competition, "train", tmp_path / "small", small)
    run = tmp_path / "small-run"
    train_run(make_config(small, epochs=1), TrainingData(images, tmp_path / "small", is_phantom=True), run)
    runs = [trained[0], run]
    both = replace(tune(runs), calibration=Calibration())
    found, _ = predict_runs(runs, both, Source(test_images, competition, tmp_path / "cache"))
    each = [predict_runs([one], both, Source(test_images, competition, tmp_path / one.name))[0] for one in runs]
    assert np.allclose(found, pd.concat(each, axis=1).mean(axis=1).loc[found.index], atol=1e-6)


def test_run_of_another_preprocessing_is_refused(trained, tuned, test_images, competition, tmp_path):
    run = tmp_path / "old"
    shutil.copytree(trained[0], run)
    content = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", content | {"settings_hash": "0123456789ab"})
    with pytest.raises(SubmissionError, match="trained on preprocessing 0123456789ab"):
        predict_runs([run], tuned, Source(test_images, competition, tmp_path / "cache"))


def test_run_of_an_older_preprocessing_version_is_refused(trained, monkeypatch):
    check_run(trained[0], is_phantom=True)
    monkeypatch.setattr(CacheSettings, "__init__", partialmethod(CacheSettings.__init__, version=99))
    with pytest.raises(SubmissionError, match="version 2, which this kit .version 99. does not support"):
        check_run(trained[0], is_phantom=True)


def test_phantom_model_never_predicts_real_images(trained, tuned, test_images, broken_competition, tmp_path):
    (broken_competition / "phantom.json").unlink()  # now it passes for real
    with pytest.raises(SubmissionError, match="trained on the phantom, but the images are real"):
        predict_runs(trained, tuned, Source(test_images, broken_competition, tmp_path / "cache"))


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from utils.decision.threshold import Threshold
from utils.submission import streaming
from utils.submission.decoding import Source
from utils.submission.draft import Draft, write_prior
from utils.tables.competition import read_images
competition, folder, runs, tuned = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), Threshold.load(sys.argv[4])
competition = Path(competition)
streaming.FIRST_CHUNK = streaming.LARGEST_CHUNK = 1
torch.set_num_threads(1)
runs, moments = [Path(run) for run in runs], random.Random(0)
test_images = read_images(competition, "test")
def submit(folder, told):
    write_prior(folder / "submission.csv", competition)
    draft = Draft(folder / "submission.csv", test_images, competition, 0.02)
    def publish(probabilities):
        os.write(told, b".")
        draft.update(probabilities)
    streaming.predict_runs(runs, tuned, Source(test_images, competition, folder / "cache"), publish=publish)
    os._exit(0)
for number in range(20):
    folder_of_one = Path(folder) / str(number)
    write_prior(folder_of_one / "submission.csv", competition)
    hears, tells = os.pipe()
    child = os.fork() or submit(folder_of_one, tells)  # this process has no threads, which a fork would lose
    for _ in range(number % 5):  # there are four chunks
        os.read(hears, 1)
    time.sleep(moments.uniform(0, 0.2))
    os.kill(child, moments.choice([signal.SIGTERM, signal.SIGKILL]))
    os.waitpid(child, 0)
"""


def test_kill_at_any_moment_leaves_a_valid_submission(trained, tuned, competition, tmp_path):
    """Twenty processes that do what submit.ipynb does, each stopped by SIGTERM or SIGKILL at a random moment."""
    tuned.save(tmp_path / "threshold.json")
    arguments = [competition, tmp_path, json.dumps([str(run) for run in trained]), tmp_path / "threshold.json"]
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    sample, predicted = read_sample_submission(competition), set()
    for number in range(20):
        left = pd.read_csv(tmp_path / str(number) / "submission.csv", dtype={"prediction_id": str})
        validate_submission(left, sample)
        predicted.add(int((~left.cancer.isin([0.02, PRIOR])).sum()))
    assert {0} < predicted and len(predicted) > 2  # they were stopped at different moments
