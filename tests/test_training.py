import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from utils import training
from utils.dataset import ImageDataset, Vocabulary
from utils.metrics import sigmoid
from utils.models import ModelConfig
from utils.training import (
    OOF_COLUMNS,
    TrainConfig,
    TrainingError,
    as_numbers,
    load_config,
    load_fold,
    predict_logits,
    train_run,
)


def make_config(settings, architecture="cnn", **changes):
    model = ModelConfig(architecture, settings.image_height, settings.image_width, encoders=("cnn",))
    values = {"n_folds": 2, "epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"}
    return TrainConfig(model, settings, **values | changes)


@pytest.fixture(scope="module")
def run(images, cache_dir, tmp_path_factory):
    """A finished run of the plain CNN, with its configuration and out-of-fold table."""
    from conftest import TINY

    run_dir = tmp_path_factory.mktemp("runs") / "cnn"
    config = make_config(TINY)
    return run_dir, config, train_run(config, images, cache_dir, run_dir)


def weights_of(run_dir, fold=0):
    return safetensors.torch.load_file(run_dir / f"fold{fold}" / "weights.safetensors")


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
    model, vocabulary = load_fold(load_config(run_dir), run_dir / "fold1")
    held_out = images[images.image_id.isin(oof.image_id[oof.fold == 1])]
    logits = predict_logits(model, ImageDataset(held_out, cache_dir, "train", vocabulary), config, torch.device("cpu"))
    wanted = oof.set_index("image_id").logit.loc[held_out.image_id]
    assert np.allclose(logits, wanted, atol=1e-5)


def test_run_folder_says_all_that_decided_it(run, images):
    run_dir, config, _ = run
    content = json.loads((run_dir / "config.json").read_text())
    assert load_config(run_dir) == config
    assert content["settings_hash"] == config.preprocessing.hash and "torch" in content["versions"]
    assert content["prevalence"] == pytest.approx(images.groupby("prediction_id").cancer.first().mean())
    folds = pd.read_csv(run_dir / "folds.csv", dtype={"patient_id": str})
    assert sorted(folds.patient_id) == sorted(images.patient_id.unique())
    history = pd.read_csv(run_dir / "history.csv")
    assert history.groupby("fold").epoch.apply(list).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert not list(run_dir.rglob("checkpoint.pt"))


def test_same_seed_gives_the_same_weights(run, images, cache_dir, tmp_path):
    run_dir, config, _ = run
    train_run(replace(config, folds=(0,)), images, cache_dir, tmp_path / "again")
    assert equal_weights(weights_of(run_dir), weights_of(tmp_path / "again"))
    train_run(replace(config, folds=(0,), seed=7), images, cache_dir, tmp_path / "other")
    assert not equal_weights(weights_of(run_dir), weights_of(tmp_path / "other"))


@pytest.mark.parametrize("architecture", ["cnn", "rnn"])
@pytest.mark.parametrize("killed_after", [1, 2])
def test_killed_run_resumes_to_the_result_of_an_uninterrupted_one(
    images, cache_dir, settings, tmp_path, monkeypatch, architecture, killed_after
):
    config = make_config(settings, architecture, folds=(0,), positive_share=0.4, keep_epoch="last", max_views=1)
    whole = train_run(config, images, cache_dir, tmp_path / "whole")
    train_epoch = training._Fitting._train

    def kill(self, epoch, bar):
        if epoch == killed_after:
            raise KeyboardInterrupt
        return train_epoch(self, epoch, bar)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training._Fitting, "_train", kill)
        train_run(config, images, cache_dir, tmp_path / "killed")
    epochs = []
    monkeypatch.setattr(training._Fitting, "_train", lambda self, e, bar: epochs.append(e) or train_epoch(self, e, bar))
    resumed = train_run(config, images, cache_dir, tmp_path / "killed")
    assert epochs == list(range(killed_after, 3))
    assert equal_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed"))
    pd.testing.assert_frame_equal(whole, resumed)


def test_folds_may_be_trained_in_several_calls(run, images, cache_dir, tmp_path):
    _, config, oof = run
    for fold in (1, 0):
        parts = train_run(replace(config, folds=(fold,)), images, cache_dir, tmp_path / "parts")
    pd.testing.assert_frame_equal(parts, oof, check_dtype=False)


def test_run_killed_before_its_history_was_written_has_it_in_the_end(images, cache_dir, settings, tmp_path, monkeypatch):
    config, write_csv = make_config(settings, folds=(0,), epochs=1), training._write_csv

    def kill(path, table):
        if path.name == "history.csv":
            raise KeyboardInterrupt
        write_csv(path, table)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_write_csv", kill)
        train_run(config, images, cache_dir, tmp_path / "run")
    train_run(config, images, cache_dir, tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 1


def test_half_precision_keeps_logits_apart(images, cache_dir, settings):
    config = make_config(settings, precision="bfloat16")
    vocabulary = Vocabulary.from_images(images)
    model = training.build_model(config.model, vocabulary)
    dataset = ImageDataset(images, cache_dir, "train", vocabulary)
    logits = predict_logits(model, dataset, config, torch.device("cpu"))
    assert len(np.unique(logits)) > 0.9 * len(logits)


def test_finished_folds_are_not_trained_again(run, images, cache_dir, monkeypatch):
    run_dir, config, oof = run
    monkeypatch.setattr(training, "_Fitting", None)
    again = train_run(config, images, cache_dir, run_dir)
    pd.testing.assert_frame_equal(again, oof, check_dtype=False)


def test_run_folder_with_other_settings_is_refused(run, images, cache_dir):
    run_dir, config, _ = run
    with pytest.raises(TrainingError, match="other settings .learning_rate.: choose another run_dir"):
        train_run(replace(config, learning_rate=0.5), images, cache_dir, run_dir)
    with pytest.raises(TrainingError, match="other images or folds"):
        train_run(config, images[images.patient_id != images.patient_id[0]], cache_dir, run_dir)


def test_breast_level_run_gives_one_row_per_breast_without_image_id(images, cache_dir, settings, tmp_path):
    oof = train_run(make_config(settings, "rnn", epochs=1), images, cache_dir, tmp_path / "rnn")
    assert sorted(oof.prediction_id) == sorted(images.prediction_id.unique())
    assert (oof.image_id == "").all()
    assert (training.read_oof(tmp_path / "rnn" / "oof.csv").image_id == "").all()


def test_model_learns_what_can_be_learned(images, settings, tmp_path):
    """Bright pictures positive, dark ones negative: any working loop separates the held-out ones."""
    import cv2

    for row in images.itertuples():
        path = training.Path(tmp_path / "cache" / "train" / f"{row.image_id}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((64, 48), 200 if row.cancer else 50, dtype=np.uint8))
    config = make_config(settings, folds=(0,), augment_strength=0, epochs=5)
    oof = train_run(config, images, tmp_path / "cache", tmp_path / "run")
    assert training.area_under_roc(oof.cancer, oof.probability) == 1


def test_diverging_run_stops_and_says_what_to_change(images, cache_dir, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(training._Fitting, "_loss", lambda self, logits, labels: logits.sum() * float("nan"))
    with pytest.raises(TrainingError, match="became nan in epoch 0: lower learning_rate"):
        train_run(make_config(settings, folds=(0,)), images, cache_dir, tmp_path / "run")


def test_fold_without_positives_keeps_the_epoch_of_lowest_loss(images, cache_dir, settings, tmp_path):
    negatives = images[images.cancer == 0]
    oof = train_run(make_config(settings, folds=(0,), epochs=2), negatives, cache_dir, tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history.valid_auc.isna().all() and len(oof)
    with training.safetensors.safe_open(tmp_path / "run" / "fold0" / "weights.safetensors", "pt") as file:
        assert int(file.metadata()["epoch"]) == history.valid_loss.idxmin()


def test_best_epoch_is_kept(run):
    run_dir, _, _ = run
    for fold, rows in pd.read_csv(run_dir / "history.csv").groupby("fold"):
        with training.safetensors.safe_open(run_dir / f"fold{fold}" / "weights.safetensors", "pt") as file:
            assert int(file.metadata()["epoch"]) == rows.set_index("epoch").valid_auc.idxmax()


def test_loss_is_weighted_smoothed_cross_entropy(settings):
    config = make_config(settings, label_smoothing=0.2, positive_weight=3.0)
    fitting = training._Fitting.__new__(training._Fitting)
    fitting.config = config
    logits, labels = torch.tensor([0.3, -1.0]), torch.tensor([1.0, 0.0])
    p = torch.sigmoid(logits)
    smooth = torch.tensor([0.9, 0.1])
    wanted = -(smooth * p.log() + (1 - smooth) * (1 - p).log()) * torch.tensor([3.0, 1.0])
    assert fitting._loss(logits, labels) == pytest.approx(wanted.mean().item(), abs=1e-6)


def test_learning_rate_warms_up_and_falls_to_zero(settings):
    factor = training._warmup_cosine(make_config(settings, epochs=10, warmup_share=0.1), steps_per_epoch=10)
    values = [factor(step) for step in range(101)]
    assert values[9] == 1 and max(values) == 1 and values[0] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(values[9:], values[10:], strict=False)) and values[100] == pytest.approx(0)


def test_vocabulary_knows_only_the_training_folds(run, images):
    run_dir, config, _ = run
    _, vocabulary = load_fold(config, run_dir / "fold0")
    assigned = training.assign_folds(images, 2, 0)
    assert vocabulary == Vocabulary.from_images(assigned[assigned.fold != 0])


def test_gpu_that_only_claims_to_work_is_not_used(monkeypatch, capsys):
    from utils.environment import pick_device

    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", broken)
    assert pick_device().type == "cpu"
    assert "no kernel image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": "1e-4"}, "learning_rate is '1e-4'"),
        ({"n_folds": 1}, "n_folds is 1"),
        ({"epochs": 0}, "epochs"),
        ({"folds": (5,)}, "folds is"),
        ({"positive_share": 1.5}, "positive_share"),
        ({"max_views": 0}, "max_views"),
        ({"keep_epoch": "first"}, "keep_epoch"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_wrong_parameters_are_named(settings, changes, message):
    with pytest.raises(TrainingError, match=message):
        make_config(settings, **changes)


@pytest.mark.parametrize(("given", "wanted"), [("", ()), ("0,2", (0, 2)), ("1", (1,)), (1, (1,)), ([0, 1], (0, 1))])
def test_folds_parameter_is_read_as_numbers(given, wanted):
    assert as_numbers(given) == wanted


def test_folds_parameter_that_is_no_number_is_refused():
    with pytest.raises(TrainingError, match="folds is 'a,b'"):
        as_numbers("a,b")
