import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.torch
import torch

from tests.helpers import TINY, make_config
from utils.core.files import write_json
from utils.images.cached import picture_path
from utils.images.training_data import TrainingData
from utils.metrics.scores import area_under_roc, sigmoid
from utils.networks.models import build_model
from utils.phantom.competition import read_truth
from utils.runs import folder as run_folder
from utils.runs.config import TrainingError
from utils.runs.execution import Execution
from utils.runs.folder import claim_run
from utils.runs.run import Run
from utils.runs.tables import OOF_COLUMNS, read_oof
from utils.tables.folds import assign_folds
from utils.tables.vocabulary import Vocabulary
from utils.training import folds as training
from utils.training.dataset import ImageDataset
from utils.training.fitting import Fitting
from utils.training.fold_weights import load_fold
from utils.training.folds import train_run
from utils.training.inference import predict_logits


@pytest.fixture(scope="module")
def run(images, cache_dir, tmp_path_factory):
    """A finished run of the plain CNN, with its configuration and out-of-fold table."""
    run_dir = tmp_path_factory.mktemp("runs") / "cnn"
    config = make_config(TINY, keep_epoch="best_auc")
    return run_dir, config, train_run(config, TrainingData(images, cache_dir), run_dir)


def weights_of(run_dir, fold=0):
    folder = run_dir if fold is None else run_dir / f"fold{fold}"
    return safetensors.torch.load_file(folder / "weights.safetensors")


def equal_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_every_image_is_predicted_once_by_the_fold_that_held_it_out(run, images):
    _, _, oof = run
    assert list(oof.columns) == OOF_COLUMNS
    assert sorted(oof.image_id) == sorted(images.image_id)
    assert oof.groupby("patient_id").fold.nunique().max() == 1
    assert np.allclose(oof.probability, sigmoid(oof.logit))
    labels = images.set_index("image_id").cancer
    assert (oof.set_index("image_id").cancer == labels.loc[oof.image_id]).all()


def test_saved_weights_repeat_the_out_of_fold_predictions(run, images, cache_dir):
    run_dir, config, oof = run
    model, vocabulary = load_fold(Run(run_dir).config, run_dir / "fold1")
    held_out = images[images.image_id.isin(oof.image_id[oof.fold == 1])]
    logits = predict_logits(model, ImageDataset(held_out, cache_dir, "train", vocabulary), config, torch.device("cpu"))
    wanted = oof.set_index("image_id").logit.loc[held_out.image_id]
    assert np.allclose(logits, wanted, atol=1e-5)


def test_run_folder_says_all_that_decided_it(run, images):
    run_dir, config, _ = run
    content = json.loads((run_dir / "config.json").read_text())
    assert Run(run_dir).config == config
    assert content["settings_hash"] == config.preprocessing.hash and "torch" in content["versions"]
    assert content["phantom"] is False and content["smoke_test"] is False
    assert content["prevalence"] == pytest.approx(images.groupby("prediction_id").cancer.first().mean())
    folds = pd.read_csv(run_dir / "folds.csv", dtype={"patient_id": str})
    assert sorted(folds.patient_id) == sorted(images.patient_id.unique())
    history = pd.read_csv(run_dir / "history.csv")
    assert history.groupby("fold").epoch.apply(list).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert not list(run_dir.rglob("checkpoint.pt"))


def test_same_seed_gives_the_same_weights(run, images, cache_dir, tmp_path):
    run_dir, config, _ = run
    train_run(replace(config, folds=(0,)), TrainingData(images, cache_dir), tmp_path / "again")
    assert equal_weights(weights_of(run_dir), weights_of(tmp_path / "again"))
    train_run(replace(config, folds=(0,), seed=7), TrainingData(images, cache_dir), tmp_path / "other")
    assert not equal_weights(weights_of(run_dir), weights_of(tmp_path / "other"))


@pytest.mark.parametrize("architecture", ["cnn", "rnn"])
@pytest.mark.parametrize("killed_after", [1, 2])
def test_killed_run_resumes_to_the_result_of_an_uninterrupted_one(
    images, cache_dir, settings, tmp_path, monkeypatch, architecture, killed_after
):
    config = make_config(settings, architecture, folds=(0,), positive_share=0.4, keep_epoch="last", max_views=1)
    whole = train_run(config, TrainingData(images, cache_dir), tmp_path / "whole")
    train_epoch = Fitting.train_epoch

    def kill(self, epoch, bar):
        if epoch == killed_after:
            raise KeyboardInterrupt
        return train_epoch(self, epoch, bar)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fitting, "train_epoch", kill)
        train_run(config, TrainingData(images, cache_dir), tmp_path / "killed")
    epochs = []
    monkeypatch.setattr(Fitting, "train_epoch", lambda self, e, bar: epochs.append(e) or train_epoch(self, e, bar))
    resumed = train_run(config, TrainingData(images, cache_dir), tmp_path / "killed")
    assert epochs == list(range(killed_after, 3))
    assert equal_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed"))
    pd.testing.assert_frame_equal(whole, resumed)


def test_folds_may_be_trained_in_several_calls(run, images, cache_dir, tmp_path):
    _, config, oof = run
    for fold in (1, 0):
        parts = train_run(replace(config, folds=(fold,)), TrainingData(images, cache_dir), tmp_path / "parts")
    pd.testing.assert_frame_equal(parts, oof, check_dtype=False)


def test_run_killed_before_its_history_was_written_has_it_in_the_end(images, cache_dir, settings, tmp_path, monkeypatch):
    config, write_csv = make_config(settings, folds=(0,), epochs=1), run_folder.write_csv

    def kill(path, table):
        if path.name == "history.csv":
            raise KeyboardInterrupt
        write_csv(path, table)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("utils.training.fitting.write_csv", kill)
        train_run(config, TrainingData(images, cache_dir), tmp_path / "run")
    train_run(config, TrainingData(images, cache_dir), tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 1


def test_half_precision_keeps_logits_apart(images, cache_dir, settings):
    config = make_config(settings, precision="bfloat16")
    vocabulary = Vocabulary.from_images(images)
    model = build_model(config.model, vocabulary)
    dataset = ImageDataset(images, cache_dir, "train", vocabulary)
    logits = predict_logits(model, dataset, config, torch.device("cpu"))
    assert len(np.unique(logits)) > 0.9 * len(logits)


def test_finished_folds_are_not_trained_again_which_is_said(run, images, cache_dir, monkeypatch, capsys):
    run_dir, config, oof = run
    monkeypatch.setattr(training, "Fitting", None)
    again = train_run(config, TrainingData(images, cache_dir), run_dir)
    pd.testing.assert_frame_equal(again, oof, check_dtype=False)
    said = capsys.readouterr().out
    assert f"Nothing was trained. Already finished in {run_dir}: fold0, fold1. To train one again, delete its folder" in said
    assert "Warning" not in said and "Finished after" not in said and "Not trained yet" not in said


def test_fold_that_was_deleted_is_trained_and_the_other_said_to_be_finished(run, images, cache_dir, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "fold1")
    train_run(run[1], TrainingData(images, cache_dir), tmp_path / "run")
    assert re.search(r"Finished after \d+ s: fold1\.\nAlready finished in .*: fold0\. ", capsys.readouterr().out)


def test_folds_that_are_left_are_named(run, images, cache_dir, tmp_path, monkeypatch, capsys):
    shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "fold1")
    monkeypatch.setattr(training, "Fitting", None)
    train_run(replace(run[1], folds=(0,)), TrainingData(images, cache_dir), tmp_path / "run")
    said = capsys.readouterr().out
    assert "Nothing was trained. " in said and "Not trained yet: 1 of 2 folds. To train them: -p folds 1\n" in said


@pytest.mark.parametrize(
    ("then", "says"),
    [
        ({"commit": "1a2b3c"}, "commit was 1a2b3c and is .*The modules that training executes are the same"),
        ({"code": "0"}, "code was 0 and is [0-9a-f]{12}. To train all folds with the same code"),
        ({"commit": "1a2b3c-dirty", "code": "0"}, "commit was 1a2b3c-dirty and is .*, code was 0 and is"),
        ({"torch": "1.0"}, "torch was 1.0 and is"),
    ],
)
def test_run_that_was_started_with_other_code_is_resumed_with_a_warning(
    run, images, cache_dir, tmp_path, monkeypatch, capsys, then, says
):
    shutil.copytree(run[0], tmp_path / "run")
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    content["versions"] |= then
    write_json(tmp_path / "run" / "config.json", content)
    monkeypatch.setattr(training, "Fitting", None)
    train_run(run[1], TrainingData(images, cache_dir), tmp_path / "run")
    assert re.search(f"Warning: .*run was started with other code: {says}", capsys.readouterr().out)


def test_run_folder_with_other_settings_is_refused(run, images, cache_dir):
    run_dir, config, _ = run
    with pytest.raises(TrainingError, match="other settings .learning_rate.: choose another run_dir"):
        train_run(replace(config, learning_rate=0.5), TrainingData(images, cache_dir), run_dir)
    with pytest.raises(TrainingError, match="other images, labels or folds"):
        train_run(config, TrainingData(images[images.patient_id != images.patient_id[0]], cache_dir), run_dir)


def test_breast_level_run_gives_one_row_per_breast_without_image_id(images, cache_dir, settings, tmp_path):
    oof = train_run(make_config(settings, "rnn", epochs=1), TrainingData(images, cache_dir), tmp_path / "rnn")
    assert sorted(oof.prediction_id) == sorted(images.prediction_id.unique())
    assert (oof.image_id == "").all()
    assert (read_oof(tmp_path / "rnn" / "oof.csv").image_id == "").all()


def test_model_learns_what_can_be_learned(images, settings, tmp_path):
    """Bright pictures positive, dark ones negative: any working loop separates the held-out ones."""
    import cv2

    for row in images.itertuples():
        path = picture_path(tmp_path / "cache", "train", row.image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((64, 48), 200 if row.cancer else 50, dtype=np.uint8))
    config = make_config(settings, folds=(0,), augment_strength=0, epochs=5)
    oof = train_run(config, TrainingData(images, tmp_path / "cache"), tmp_path / "run")
    assert area_under_roc(oof.cancer, oof.probability) == 1


def test_best_epoch_is_kept(run):
    run_dir, _, _ = run
    for fold, rows in pd.read_csv(run_dir / "history.csv").groupby("fold"):
        with safetensors.safe_open(run_dir / f"fold{fold}" / "weights.safetensors", "pt") as file:
            assert int(file.metadata()["epoch"]) == rows.set_index("epoch").valid_auc.idxmax()


def test_vocabulary_knows_only_the_training_folds(run, images):
    run_dir, config, _ = run
    _, vocabulary = load_fold(config, run_dir / "fold0")
    assigned = assign_folds(images, 2, 0)
    assert vocabulary == Vocabulary.from_images(assigned[assigned.fold != 0])


def test_gpu_that_only_claims_to_work_is_not_used(monkeypatch, capsys):
    from utils.core.devices import pick_device

    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", broken)
    assert pick_device().type == "cpu"
    assert "no kernel image" in capsys.readouterr().out


def test_smoke_run_is_marked(images, settings, cache_dir, tmp_path):
    claim_run(tmp_path, make_config(settings), TrainingData(assign_folds(images, 2, 0), "", smoke_test=True), "hash")
    assert json.loads((tmp_path / "config.json").read_text())["smoke_test"] is True


def test_cache_that_lacks_images_is_refused_before_training(images, settings, tmp_path):
    (tmp_path / "cache" / "train").mkdir(parents=True)
    with pytest.raises(TrainingError, match=rf"lacks {len(images)} of {len(images)} images .*run preprocess.ipynb"):
        train_run(make_config(settings), TrainingData(images, tmp_path / "cache"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_goes_on_with_other_settings_of_memory(run, images, cache_dir):
    run_dir, config, oof = run
    smaller = replace(config, micro_batch_size=2, activation_checkpointing=True)
    again = train_run(smaller, TrainingData(images, cache_dir), run_dir)
    pd.testing.assert_frame_equal(again, oof, check_dtype=False)


def test_batch_that_processes_can_not_share_is_refused(images, cache_dir, settings, tmp_path):
    with pytest.raises(TrainingError, match="batch_size is 8, which 3 processes can't share evenly"):
        train_run(make_config(settings), TrainingData(images, cache_dir), tmp_path / "run", Execution(num_processes=3))


def test_boxes_of_other_images_are_refused(competition, images, cache_dir, settings, tmp_path):
    boxes, _ = read_truth(competition)
    config = make_config(settings, model={"box_head": True}, box_weight=1.0)
    with pytest.raises(TrainingError, match="None of the images has a box"):
        train_run(config, TrainingData(images, cache_dir, boxes=boxes.assign(image_id="elsewhere")), tmp_path / "run")


def test_run_is_not_continued_on_other_labels(run, images, cache_dir):
    run_dir, config, _ = run
    flipped = images.assign(cancer=1 - images.cancer)
    with pytest.raises(TrainingError, match="other images, labels or folds"):
        train_run(config, TrainingData(flipped, cache_dir), run_dir)


def test_held_out_fold_of_one_class_is_said_so_and_keeps_the_epoch_of_lowest_loss(
    images, cache_dir, settings, tmp_path, capsys
):
    positive = images[images.cancer == 1].patient_id.iloc[0]
    few = images[(images.cancer == 0) | (images.patient_id == positive)]
    folds = assign_folds(few, 2, 0)
    without = 1 - int(folds.fold[folds.patient_id == positive].iloc[0])
    train_run(make_config(settings, folds=(without,), epochs=2), TrainingData(few, cache_dir), tmp_path / "run")
    assert f"Fold {without} holds out breasts of one class only" in capsys.readouterr().out
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history.valid_auc.isna().all()
    with safetensors.safe_open(tmp_path / "run" / f"fold{without}" / "weights.safetensors", "pt") as file:
        assert int(file.metadata()["epoch"]) == history.valid_loss.idxmin()
    with pytest.raises(TrainingError, match=f"Fold {1 - without}: all .* show no cancer, so there is nothing to learn"):
        train_run(make_config(settings, folds=(1 - without,), epochs=2), TrainingData(few, cache_dir), tmp_path / "other")


def test_disk_that_fills_up_ends_the_run_with_the_remedy_and_loses_no_epoch(images, cache_dir, settings, tmp_path):
    resource = pytest.importorskip("resource")  # a limit on a file's size fails like a full disk does
    config = make_config(settings, folds=(0,))
    whole = train_run(config, TrainingData(images, cache_dir), tmp_path / "whole")
    epoch = Fitting._run_epoch
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_in_second(self, number, bar):
        row = epoch(self, number, bar)
        if number == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fitting, "_run_epoch", fill_in_second)
        try:
            with pytest.raises(TrainingError, match="can't be written .*Free disk space, then run again"):
                train_run(config, TrainingData(images, cache_dir), tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(torch.load(tmp_path / "run" / "fold0" / "checkpoint.pt", weights_only=True)["history"]) == 1
    assert not [path for path in (tmp_path / "run" / "fold0").iterdir() if path.name.startswith(".")]
    pd.testing.assert_frame_equal(whole, train_run(config, TrainingData(images, cache_dir), tmp_path / "run"))


def test_boxes_are_predicted_out_of_fold_in_pixels_of_the_files(competition, images, cache_dir, settings, tmp_path):
    boxes, _ = read_truth(competition)
    config = make_config(settings, epochs=1, model={"box_head": True}, box_weight=1.0)
    train_run(config, TrainingData(images, cache_dir, boxes=boxes), tmp_path / "run")
    predicted = pd.read_csv(tmp_path / "run" / "boxes.csv", dtype={"image_id": str})
    assert sorted(predicted.image_id) == sorted(images.image_id)
    assert (predicted.x_max > predicted.x_min).all() and predicted.x_max.max() > 2  # pixels, not shares
    with pytest.raises(TrainingError, match="need boxes: give boxes_path"):
        train_run(config, TrainingData(images, cache_dir), tmp_path / "other")


def test_weights_of_another_version_of_the_kit_are_refused(run, tmp_path):
    run_dir, config, _ = run
    with safetensors.safe_open(run_dir / "fold0" / "weights.safetensors", "pt") as file:
        renamed = {key.replace("head.", "top."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        safetensors.torch.save_file(renamed, tmp_path / "weights.safetensors", file.metadata())
    with pytest.raises(TrainingError, match="4 of its tensors do not fit the network .*train it again"):
        load_fold(config, tmp_path)


def test_patches_teach_the_encoder_that_the_whole_image_model_starts_from(competition, images, cache_dir, settings, tmp_path):
    boxes, _ = read_truth(competition)
    config = make_config(settings, folds=(0,), epochs=1, learning_rate=1e-30, patch_epochs=1, patch_size=32, ema_decay=0.0)
    train_run(config, TrainingData(images, cache_dir, boxes=boxes), tmp_path / "run")
    whole, patches = weights_of(tmp_path / "run"), weights_of(tmp_path / "run" / "fold0" / "patches", None)
    kernels = [key for key in whole if key.startswith("encoder.") and key.endswith("weight")]
    assert kernels and all(torch.equal(whole[key], patches[key]) for key in kernels)


def test_patch_training_is_not_repeated_by_a_resumed_run(competition, images, cache_dir, settings, tmp_path, monkeypatch):
    boxes, _ = read_truth(competition)
    config = make_config(settings, folds=(0,), epochs=2, patch_epochs=1, patch_size=32)
    whole = train_run(config, TrainingData(images, cache_dir, boxes=boxes), tmp_path / "whole")
    train_epoch, trained = Fitting.train_epoch, []

    def kill(self, epoch, bar):
        trained.append((self.fold_dir.name, epoch))
        if trained[-1] == ("fold0", 1) and len(trained) == 3:
            raise KeyboardInterrupt
        return train_epoch(self, epoch, bar)

    monkeypatch.setattr(Fitting, "train_epoch", kill)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, TrainingData(images, cache_dir, boxes=boxes), tmp_path / "run")
    resumed = train_run(config, TrainingData(images, cache_dir, boxes=boxes), tmp_path / "run")
    assert trained == [("patches", 0), ("fold0", 0), ("fold0", 1), ("fold0", 1)]
    pd.testing.assert_frame_equal(whole, resumed)


def test_level_breast_predicts_each_breast_once(images, cache_dir, settings, tmp_path):
    config = make_config(settings, epochs=1, model={"level": "breast"}, auxiliary_weight=0.1)
    oof = train_run(config, TrainingData(images, cache_dir), tmp_path / "run")
    assert sorted(oof.prediction_id) == sorted(images.prediction_id.unique()) and (oof.image_id == "").all()


def test_weights_are_the_same_whichever_processes_load(images, cache_dir, settings, tmp_path):
    config = make_config(settings, folds=(0,), keep_epoch="last")
    for name, workers in {"none": 0, "two": 2}.items():
        train_run(config, TrainingData(images, cache_dir), tmp_path / name, Execution(num_workers=workers))
    assert equal_weights(weights_of(tmp_path / "none"), weights_of(tmp_path / "two"))
