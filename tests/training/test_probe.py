"""Facts about heads that start as a logistic regression, and about runs whose encoder stays as it is."""

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from tests.helpers import make_config
from utils.images.training_data import TrainingData
from utils.networks.encoders import build_encoder
from utils.phantom.competition import TRUTH_FOLDER
from utils.runs.config import ModelConfig
from utils.runs.summary import oof_summary
from utils.runs.tables import read_oof
from utils.tables.boxes import read_boxes
from utils.tables.folds import assign_folds
from utils.tables.vocabulary import Vocabulary
from utils.training.dataset import make_dataset
from utils.training.fold_weights import load_fold
from utils.training.folds import train_run
from utils.training.probe import INVERSE_PENALTY, LEAST_SPREAD, fit_head


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory):
    """Weights of an encoder, as good as any: no number in these tests is about quality."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    safetensors.torch.save_file(build_encoder(ModelConfig("test_resnet", 64, 48)).backbone.state_dict(), path)
    return str(path)


@pytest.fixture
def config(settings, weights_path):
    def make(**changes):
        model = {"weights_path": weights_path, "pooling": "stages"} | changes.pop("model", {})
        return make_config(settings, "test_resnet", model=model, **{"folds": (0,)} | changes)

    return make


def draw(count=80, features=5):
    generator = np.random.default_rng(0)
    labels = (generator.random(count) < 0.3).astype(np.float32)
    values = generator.normal(size=(count, features)) * [1, 10, 0.01, 3, 0] + labels[:, None] * [0.5, 4, 0.01, 0, 0] + 7
    return values.astype(np.float32), labels


def test_head_is_scikit_learns_regression_on_standardised_features():
    features, labels = draw()
    head = nn.Linear(5, 1)
    fit_head(head, features, labels)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)).fit(features, labels)
    with torch.inference_mode():
        logits = head(torch.from_numpy(features)).squeeze(1).numpy()
    np.testing.assert_allclose(logits, model.decision_function(features), atol=1e-3)


def test_feature_that_only_varies_by_rounding_errors_is_left_out():
    features, labels = draw()
    features[:, 0] = 1000 + np.where(labels > 0, 1e-4, 0)
    head = nn.Linear(5, 1)
    fit_head(head, features, labels)
    assert head.weight[0, 0] == 0 and head.weight[0, 1] != 0 and head.weight[0, 4] == 0


def test_logit_moves_to_the_share_of_positives_that_training_draws():
    features, labels = draw()
    plain, moved = nn.Linear(5, 1), nn.Linear(5, 1)
    fit_head(plain, features, labels)
    fit_head(moved, features, labels, positive_share=0.5)
    assert torch.equal(plain.weight, moved.weight)
    share = labels.mean()
    assert (moved.bias - plain.bias).item() == pytest.approx(np.log((1 - share) / share), abs=1e-4)


def test_run_of_no_epochs_keeps_its_encoder_and_predicts_with_the_regression(images, cache_dir, config, tmp_path, weights_path):
    run = tmp_path / "run"
    oof = train_run(config(epochs=0), TrainingData(images, cache_dir), run)
    model, _ = load_fold(config(epochs=0), run / "fold0")
    model.eval()
    start = safetensors.torch.load_file(weights_path)
    assert all(torch.equal(value, start[key]) for key, value in model.encoder.backbone.state_dict().items())
    assert read_oof(run / "probe.csv").equals(read_oof(run / "oof.csv"))
    inside = assign_folds(images, 2, 0).query("fold != 0")
    dataset = make_dataset(config(), inside, cache_dir, "train", Vocabulary.from_images(inside))
    with torch.inference_mode():
        features = model.encoder(torch.cat([dataset[i]["images"] for i in range(len(dataset))]))[0].numpy()
        held_out = assign_folds(images, 2, 0).query("fold == 0")
        seen = make_dataset(config(), held_out, cache_dir, "train", Vocabulary.from_images(inside))
        asked = model.encoder(torch.cat([seen[i]["images"] for i in range(len(seen))]))[0].numpy()
    varies = features.std(axis=0) > LEAST_SPREAD * np.abs(features.mean(axis=0))
    wanted = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=1000))
    wanted.fit(features[:, varies], inside.cancer)
    np.testing.assert_allclose(oof.logit, wanted.decision_function(asked[:, varies]), atol=1e-2)
    assert train_run(config(epochs=0), TrainingData(images, cache_dir), run).equals(oof)  # finished: nothing is done again


def test_training_starts_from_the_regression_and_the_summary_shows_both(images, cache_dir, config, tmp_path):
    train_run(config(epochs=0), TrainingData(images, cache_dir), tmp_path / "probe")
    barely = config(epochs=1, learning_rate=1e-9, freeze_norms=True)
    train_run(barely, TrainingData(images, cache_dir), tmp_path / "run")
    before, after = (read_oof(tmp_path / name / "oof.csv") for name in ("probe", "run"))
    np.testing.assert_allclose(before.logit, after.logit, atol=1e-3)
    assert read_oof(tmp_path / "run" / "probe.csv").equals(before)
    summary = oof_summary(tmp_path / "run", assign_folds(images, 2, 0))
    assert "its encoder before training" in summary.index and "metadata alone" in summary.index


def test_network_from_scratch_has_no_floor(images, cache_dir, settings, tmp_path):
    run = tmp_path / "run"
    train_run(make_config(settings, folds=(0,), epochs=1), TrainingData(images, cache_dir), run)
    assert not (run / "probe.csv").exists() and not (run / "fold0" / "probe.csv").exists()
    assert "its encoder before training" not in oof_summary(run, assign_folds(images, 2, 0)).index


@pytest.mark.parametrize("epochs", [0, 2])
def test_resumed_run_is_not_probed_again(epochs, images, cache_dir, config, tmp_path, monkeypatch):
    from utils.training import fitting

    run, write = tmp_path / "run", fitting.Fitting._save

    def killed(self):
        write(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting.Fitting, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        train_run(config(epochs=epochs), TrainingData(images, cache_dir), run)
    monkeypatch.setattr(fitting.Fitting, "_save", write)
    monkeypatch.setattr(fitting, "fit_head", lambda *arguments: 1 / 0)
    probed = pd.read_csv(run / "fold0" / "probe.csv")
    train_run(config(epochs=epochs), TrainingData(images, cache_dir), run)
    assert pd.read_csv(run / "probe.csv").equals(probed)


def test_patch_run_without_epochs_is_a_regression_on_what_patches_taught(images, cache_dir, settings, competition, tmp_path):
    boxes = read_boxes(competition / TRUTH_FOLDER / "boxes.csv")
    config = make_config(settings, "test_resnet", folds=(0,), epochs=0, patch_epochs=1, patch_size=32)
    train_run(config, TrainingData(images, cache_dir, boxes=boxes), tmp_path / "run")
    patches = safetensors.torch.load_file(tmp_path / "run" / "fold0" / "patches" / "weights.safetensors")
    whole = safetensors.torch.load_file(tmp_path / "run" / "fold0" / "weights.safetensors")
    assert all(torch.equal(value, patches[key]) for key, value in whole.items() if key.startswith("encoder."))
    assert (tmp_path / "run" / "probe.csv").is_file()
