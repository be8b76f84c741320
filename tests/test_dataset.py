import numpy as np
import pandas as pd
import pytest
import torch

from utils.augment import Augment
from utils.cache import load_picture
from utils.dataset import METADATA, BreastDataset, ImageDataset, ShareSampler, Vocabulary, collate, make_loader


@pytest.fixture
def vocabulary(images):
    return Vocabulary.from_images(images)


def test_image_item_is_the_cached_picture_as_uint8(images, cache_dir, vocabulary):
    item = ImageDataset(images, cache_dir, "train", vocabulary)[3]
    assert item["images"].dtype == torch.uint8 and item["images"].shape == (1, 1, 64, 48)
    assert np.array_equal(item["images"][0, 0].numpy(), load_picture(cache_dir, "train", images.image_id[3]))
    assert item["label"] == images.cancer[3] and item["index"] == 3


def test_breast_item_holds_all_its_images_in_view_order(images, cache_dir, vocabulary):
    dataset = BreastDataset(images, cache_dir, "train", vocabulary)
    assert len(dataset) == images.prediction_id.nunique()
    for index in range(len(dataset)):
        rows = dataset.images.iloc[dataset._rows(index)]
        wanted = images[images.prediction_id == dataset.items.prediction_id[index]]
        assert set(rows.image_id) == set(wanted.image_id)
        ranks = rows["view"].map({"CC": 0, "MLO": 1}).fillna(2)
        assert ranks.is_monotonic_increasing
        assert dataset.labels[index] == wanted.cancer.iloc[0]


def test_max_views_draws_anew_each_epoch_in_training_and_never_in_validation(images, cache_dir, vocabulary):
    training = BreastDataset(images, cache_dir, "train", vocabulary, Augment(), max_views=1)
    validation = BreastDataset(images, cache_dir, "train", vocabulary, max_views=1)
    drawn = {"training": set(), "validation": set()}
    for epoch in range(6):
        training.epoch = validation.epoch = epoch
        drawn["training"].add(str([training._rows(index) for index in range(len(training))]))
        drawn["validation"].add(str([validation._rows(index) for index in range(len(validation))]))
    assert len(drawn["training"]) == 6 and len(drawn["validation"]) == 1
    assert all(len(validation._rows(index)) == 1 for index in range(len(validation)))


def test_augmentation_hangs_on_seed_epoch_and_item_alone(images, cache_dir, vocabulary):
    make = lambda: ImageDataset(images, cache_dir, "train", vocabulary, Augment(), seed=5)  # noqa: E731
    first, second = make(), make()
    second[1]  # another order of access
    assert torch.equal(first[0]["images"], second[0]["images"])
    second.epoch = 1
    assert not torch.equal(first[0]["images"], second[0]["images"])


def test_batch_joins_breasts_of_any_length(images, cache_dir, vocabulary):
    dataset = BreastDataset(images, cache_dir, "train", vocabulary)
    items = [dataset[index] for index in range(5)]
    batch = collate(items)
    assert batch["lengths"].tolist() == [len(item["images"]) for item in items]
    assert batch["images"].shape == (sum(batch["lengths"]), 1, 64, 48)
    assert batch["metadata"].shape == (sum(batch["lengths"]), len(METADATA))


def test_loader_gives_every_item_once_whatever_the_workers(images, cache_dir, vocabulary):
    dataset = ImageDataset(images, cache_dir, "train", vocabulary)
    for workers in (0, 2):
        seen = torch.cat([batch["index"] for batch in make_loader(dataset, 8, workers)])
        assert seen.tolist() == list(range(len(dataset)))


def test_unseen_and_missing_metadata_are_code_zero(images, vocabulary):
    strange = images.head(2).assign(age=[np.nan, 50.0], machine_id=[99999, images.machine_id[0]], view=["XX", None])
    encoded = pd.DataFrame(vocabulary.encode(strange), columns=METADATA)
    assert encoded.age[0] == 0 and encoded.age_missing.tolist() == [1, 0]
    assert encoded.machine_id[0] == 0 and encoded.machine_id[1] > 0
    assert encoded["view"].tolist() == [0, 0]
    assert np.isfinite(encoded.to_numpy()).all()


def test_known_values_get_codes_of_their_own(images, vocabulary):
    encoded = pd.DataFrame(vocabulary.encode(images), columns=METADATA)
    codes = pd.crosstab(images.machine_id.to_numpy(), encoded.machine_id.to_numpy())
    assert (codes.gt(0).sum(axis=1) == 1).all() and (codes.gt(0).sum(axis=0) == 1).all() and 0 not in codes.columns


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_sampler_draws_the_share_of_positives(share):
    labels = np.array([1] * 10 + [0] * 190)
    drawn = labels[list(ShareSampler(labels, share, seed=0))]
    assert len(drawn) == 200 and drawn.mean() == pytest.approx(share)


def test_sampler_repeats_nothing_before_all_were_drawn():
    labels = np.array([1] * 10 + [0] * 90)
    counts = np.bincount(list(ShareSampler(labels, 0.5, seed=0)), minlength=100)
    assert set(counts[:10]) == {5} and set(counts[10:]) <= {0, 1}


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1], [0, 1, 0]])
def test_sampler_without_a_share_or_a_class_shuffles(labels):
    share = None if len(set(labels)) == 2 else 0.5
    assert sorted(ShareSampler(np.array(labels), share, seed=0)) == list(range(len(labels)))


def test_sampler_order_hangs_on_seed_and_epoch():
    sampler, twin = ShareSampler(np.zeros(50), None, 1), ShareSampler(np.zeros(50), None, 1)
    first = list(sampler)
    assert first == list(twin)
    twin.epoch = 1
    assert first != list(twin)
