"""Facts about what networks read besides pictures."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from tests.helpers import TINY, killed_in_second_epoch, make_config
from utils.images.training_data import TrainingData
from utils.metrics.scores import area_under_roc
from utils.networks.metadata import HIDE_METADATA, MetadataEmbedding, MetadataLogit
from utils.networks.models import build_model
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.folder import differing_settings
from utils.runs.leaks import LeakError
from utils.runs.run import Run
from utils.tables.vocabulary import CATEGORIES, METADATA, Vocabulary
from utils.training.dataset import BreastDataset, ImageDataset
from utils.training.fold_weights import load_fold
from utils.training.folds import train_run
from utils.training.inference import predict_logits

VOCABULARY = Vocabulary(58.0, 10.0, ("CC", "MLO"), ("21", "49"), ("1", "2"))
AGE, MISSING, MACHINE = (METADATA.index(column) for column in ("age", "age_missing", "machine_id"))
NETWORKS = {
    "image": {"architecture": "cnn"},
    "breast": {"architecture": "cnn", "level": "breast"},
    "rnn": {"architecture": "rnn", "encoders": ("cnn",)},
}
every_network = pytest.mark.parametrize("kind", NETWORKS)


def make_network(kind: str, metadata: bool) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(ModelConfig(image_height=64, image_width=48, metadata=metadata, **NETWORKS[kind]), VOCABULARY)
    if metadata:
        for parameter in network.head.metadata.parameters():
            nn.init.normal_(parameter)
    return network.eval()


def make_batch(kind: str) -> tuple[torch.Tensor, ...]:
    lengths = torch.tensor([1, 1, 1] if kind == "image" else [2, 3, 1])
    count = int(lengths.sum())
    metadata = torch.tensor([[0.1, 0, 0, 1, 2, 1]]).repeat(count, 1)
    pictures = torch.randint(0, 256, (count, 1, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return pictures, metadata, lengths


def logits_of(network: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return network(*batch).logit


def changed(batch: tuple[torch.Tensor, ...], column: int, value: float) -> tuple[torch.Tensor, ...]:
    metadata = batch[1].clone()
    metadata[:, column] = value
    return batch[0], metadata, batch[2]


@every_network
@pytest.mark.parametrize(("column", "value"), [(AGE, 2.0), (MISSING, 1.0), (MACHINE, 1.0), (MACHINE, 0.0)])
def test_metadata_changes_the_logit_where_it_is_asked_for(kind, column, value):
    network, batch = make_network(kind, metadata=True), make_batch(kind)
    before, after = logits_of(network, batch), logits_of(network, changed(batch, column, value))
    assert after.shape == (3,) and after.isfinite().all() and (before != after).all()


@pytest.mark.parametrize("kind", ["image", "breast"])
def test_network_without_metadata_ignores_it(kind):
    network, batch = make_network(kind, metadata=False), make_batch(kind)
    for column in (AGE, MISSING, MACHINE):
        assert torch.equal(logits_of(network, batch), logits_of(network, changed(batch, column, 0.5)))
    assert not [name for name in network.state_dict() if "metadata" in name]


@every_network
def test_metadata_is_added_to_what_the_pictures_tell(kind):
    with_it, without, batch = make_network(kind, True), make_network(kind, False), make_batch(kind)
    with_it.load_state_dict(without.state_dict(), strict=False)
    alone = with_it.head.metadata(*batch[1:])
    assert torch.allclose(logits_of(with_it, batch), logits_of(without, batch) + alone, atol=1e-6)


def test_logit_of_a_breast_is_the_mean_of_its_images():
    torch.manual_seed(0)
    part = MetadataLogit(VOCABULARY).eval()
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    metadata = torch.tensor([[0.1, 0, 0, 1, 2, 1], [0.1, 0, 0, 2, 2, 1], [3.0, 0, 1, 1, 1, 2]])
    single = torch.cat([part(row[None], torch.tensor([1])) for row in metadata])
    breasts = part(metadata, torch.tensor([2, 1]))
    assert torch.allclose(breasts, torch.stack([single[:2].mean(), single[2]]), atol=1e-6)


def test_codes_and_ages_are_hidden_at_times_in_training_alone():
    torch.manual_seed(0)
    embedding, metadata = MetadataEmbedding(VOCABULARY), make_batch("image")[1][:1].repeat(2000, 1)
    known = embedding.eval()(metadata)
    assert torch.equal(known, known[:1].expand_as(known))
    read = embedding.train()(metadata)
    hidden = (read != known[:1])[:, -8 * len(CATEGORIES) :: 8]  # first number of each embedding
    assert hidden.double().mean(dim=0).tolist() == pytest.approx([HIDE_METADATA] * len(CATEGORIES), abs=0.03)
    without_age = read[:, MISSING] == 1
    assert without_age.double().mean().item() == pytest.approx(HIDE_METADATA, abs=0.03)
    assert (read[without_age, AGE] == 0).all() and torch.equal(read[~without_age, AGE], known[~without_age, AGE])


def make_table(count: int = 600) -> pd.DataFrame:
    """Images of which age and machine tell cancer, about as much as they do in the competition."""
    rng = np.random.default_rng(0)
    age, machine = rng.normal(58, 10, count), rng.integers(1, 5, count)
    cancer = rng.random(count) < 1 / (1 + np.exp(-0.05 * (age - 58) - 0.5 * (machine - 2.5)))
    values = {"age": age, "machine_id": machine, "cancer": cancer.astype(int)}
    return pd.DataFrame(values | {"implant": 0, "view": rng.choice(["CC", "MLO"], count), "site_id": 1})


def test_metadata_starts_as_the_logistic_regression_of_the_training_images():
    torch.manual_seed(0)
    table = make_table()
    vocabulary = Vocabulary.from_images(table)
    encoded = torch.from_numpy(vocabulary.encode(table))
    part = MetadataLogit(vocabulary)
    part.fit(encoded, table.cancer.to_numpy())
    with torch.inference_mode():
        logits = part.eval()(encoded, torch.ones(len(table), dtype=torch.long)).numpy()
    columns = np.column_stack([table[["age"]], pd.get_dummies(table[["machine_id", "view"]].astype(str))])
    reference = LogisticRegression(max_iter=1000).fit(columns, table.cancer).decision_function(columns)
    assert np.corrcoef(logits, reference)[0, 1] > 0.99 and logits.std() == pytest.approx(reference.std(), rel=0.2)
    assert logits.mean() == pytest.approx(0, abs=1e-4)


def test_missing_age_and_unseen_machine_count_as_the_usual_ones():
    torch.manual_seed(0)
    table = make_table()
    vocabulary, part = Vocabulary.from_images(table), MetadataLogit(Vocabulary.from_images(table))
    part.fit(torch.from_numpy(vocabulary.encode(table)), table.cancer.to_numpy())
    strange = table.head(1).assign(age=np.nan, machine_id=99, site_id=7, view="XX")
    encoded = torch.from_numpy(vocabulary.encode(strange))
    with torch.inference_mode():
        logit = part.eval()(encoded, torch.tensor([1])).item()
    assert abs(logit) < 0.4  # the known ones are from -3 to 3


def test_typing_error_of_an_age_decides_nothing():
    table = make_table()
    vocabulary = Vocabulary.from_images(table)
    wrong = vocabulary.encode(table.head(2).assign(age=[1e300, -np.inf]))[:, AGE]
    assert wrong.tolist() == [5, -5]


@pytest.mark.parametrize("architecture", ["cnn", "rnn"])
def test_trained_network_reads_metadata_that_training_lacks(images, cache_dir, tmp_path, architecture):
    images = images.assign(age=np.where(images.cancer == 1, 70.0, 50.0) + np.arange(len(images)) % 30)
    config = make_config(TINY, architecture, {"metadata": True}, folds=(0,), epochs=1, learning_rate=1e-5)
    train_run(config, TrainingData(images, cache_dir), tmp_path / "run")
    model, vocabulary = load_fold(config, tmp_path / "run" / "fold0")
    make = ImageDataset if architecture == "cnn" else BreastDataset
    table = images.head(12)
    strange = table.assign(age=np.nan, machine_id=-1, site_id=-1)
    plain, other = (
        predict_logits(model, make(rows, cache_dir, "train", vocabulary), config, torch.device("cpu"))
        for rows in (table, strange)
    )
    assert np.isfinite(other).all() and not np.allclose(plain, other)


def test_metadata_alone_is_learned_at_the_learning_rate_of_a_body(images, cache_dir, tmp_path):
    ages = np.where(images.cancer == 1, 64.0, 50.0) + np.arange(len(images)) % 20
    config = make_config(TINY, model={"metadata": True}, folds=(0,), epochs=1, learning_rate=1e-6)
    oof = train_run(config, TrainingData(images.assign(age=ages), cache_dir), tmp_path / "run")
    assert area_under_roc(oof.cancer, oof.probability) > 0.75


def test_column_that_is_the_label_is_no_metadata(cache_dir, images, tmp_path):
    many = pd.concat([images.assign(**{c: images[c] + str(n) for c in ("patient_id", "prediction_id")}) for n in range(5)])
    config = make_config(TINY, model={"metadata": True}, epochs=1)
    with pytest.raises(LeakError, match="Column age alone predicts cancer"):
        train_run(config, TrainingData(many.assign(age=50.0 + many.cancer), cache_dir), tmp_path / "run")


def test_configuration_of_before_metadata_is_that_of_a_run_without(tmp_path):
    config = make_config(TINY)
    content = config.to_json()
    del content["model"]["metadata"]
    assert TrainConfig.from_json(content) == config
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    assert differing_settings(Run(tmp_path).config.to_json(), config) == []


def test_patches_are_learned_without_metadata():
    from utils.training.folds import patch_config

    assert not patch_config(make_config(TINY, model={"metadata": True}, patch_epochs=1)).model.metadata


def test_resumed_training_keeps_what_metadata_had_learned(images, cache_dir, tmp_path, monkeypatch):
    config = make_config(TINY, model={"metadata": True}, folds=(0,), epochs=2, keep_epoch="last")
    whole = train_run(config, TrainingData(images, cache_dir), tmp_path / "whole")
    with killed_in_second_epoch(monkeypatch):
        train_run(config, TrainingData(images, cache_dir), tmp_path / "killed")
    pd.testing.assert_frame_equal(train_run(config, TrainingData(images, cache_dir), tmp_path / "killed"), whole)
