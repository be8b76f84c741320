import numpy as np
import pandas as pd
import pytest
import torch

from utils.images.cached import load_picture
from utils.networks.auxiliary import auxiliary_targets
from utils.tables.boxes import COLUMNS, CORNERS
from utils.tables.vocabulary import METADATA, Vocabulary
from utils.training.augment import Augment
from utils.training.dataset import BreastDataset, ImageDataset


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
    training = BreastDataset(images, cache_dir, "train", vocabulary, max_views=1)
    training.augment = Augment()
    validation = BreastDataset(images, cache_dir, "train", vocabulary, max_views=1)
    drawn = {"training": set(), "validation": set()}
    for epoch in range(6):
        training.epoch = validation.epoch = epoch
        drawn["training"].add(str([training._rows(index) for index in range(len(training))]))
        drawn["validation"].add(str([validation._rows(index) for index in range(len(validation))]))
    assert len(drawn["training"]) == 6 and len(drawn["validation"]) == 1
    assert all(len(validation._rows(index)) == 1 for index in range(len(validation)))


def test_augmentation_hangs_on_seed_epoch_and_item_alone(images, cache_dir, vocabulary):
    first, second = (ImageDataset(images, cache_dir, "train", vocabulary, seed=5) for _ in range(2))
    first.augment = second.augment = Augment()
    second[1]  # another order of access
    assert torch.equal(first[0]["images"], second[0]["images"])
    second.epoch = 1
    assert not torch.equal(first[0]["images"], second[0]["images"])


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


def test_metadata_of_an_item_is_that_of_its_images(images, cache_dir, vocabulary):
    dataset = BreastDataset(images, cache_dir, "train", vocabulary)
    item = dataset[2]
    wanted = vocabulary.encode(dataset.images.iloc[dataset._rows(2)])
    assert np.array_equal(item["metadata"].numpy(), wanted)
    assert torch.equal(item["auxiliary"], torch.from_numpy(auxiliary_targets(dataset.items))[2])


def test_table_without_labels_gives_zeros(images, cache_dir, vocabulary):
    dataset = ImageDataset(images.drop(columns="cancer"), cache_dir, "train", vocabulary)
    assert not dataset.labels.any() and len(dataset.labels) == len(dataset) and dataset[0]["label"] == 0


# Boxes


@pytest.fixture
def boxes(images):
    """The second image has two boxes, the fifth has one."""
    rows = [(1, 0.1, 0.1, 0.2, 0.2), (1, 0.3, 0.4, 0.6, 0.6), (4, 0.5, 0.5, 0.7, 0.9)]
    return pd.DataFrame([(images.image_id[number], *corners, "mass") for number, *corners in rows], columns=COLUMNS)


def test_box_of_an_item_is_its_images_largest(images, cache_dir, vocabulary, boxes):
    dataset = ImageDataset(images, cache_dir, "train", vocabulary)
    dataset.add_boxes(boxes)
    for number, row in ((1, 1), (4, 2)):
        assert dataset[number]["box"].dtype == torch.float32
        assert dataset[number]["box"].tolist() == pytest.approx(boxes[CORNERS].iloc[row].tolist())
    assert dataset[0]["box"].isnan().all()
    assert ImageDataset(images, cache_dir, "train", vocabulary)[1]["box"].isnan().all()


def test_box_moves_with_the_augmented_picture(images, cache_dir, vocabulary, boxes):
    dataset = ImageDataset(images, cache_dir, "train", vocabulary, seed=5)
    dataset.augment = augment = Augment()
    dataset.add_boxes(boxes)
    found = set()
    for dataset.epoch in range(5):
        item = dataset[1]
        seed = int(dataset._generator(1).integers(2**31))
        picture, box = augment(load_picture(cache_dir, "train", images.image_id[1]), seed, dataset.boxes[1])
        assert np.array_equal(item["images"][0, 0].numpy(), picture) and np.array_equal(item["box"].numpy(), box)
        found.add(tuple(item["box"].tolist()))
    assert len(found) == 5
