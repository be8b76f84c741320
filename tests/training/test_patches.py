"""Facts about patches around boxes and elsewhere, on a cache whose grey values tell what is what."""

import albumentations as A  # noqa: N812  (the name that its own documentation uses)
import cv2
import numpy as np
import pandas as pd
import pytest

from tests.helpers import TINY, make_config
from utils.images.cached import picture_path
from utils.images.training_data import TrainingData
from utils.tables.boxes import COLUMNS
from utils.tables.vocabulary import Vocabulary
from utils.training.augment import Augment
from utils.training.patches import LEAST_TISSUE, MOST_OF_BOX, PatchDataset, choose_background, cut_patch

HEIGHT, WIDTH, SIZE = 64, 48, 16
VOCABULARY = Vocabulary(58.0, 10.0, ("CC", "MLO"), ("21",), ("1",))
WITHOUT, WITH, CANCER_WITHOUT, LESION = 100, 150, 200, 250  # grey of tissue by kind of image, and of what is in a box
BOXES = [("1", 10, 20, 16, 26, "mass"), ("1", 24, 40, 30, 44, "calcification"), ("2", 0, 30, 6, 38, "mass")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Images 1 and 2 have boxes, that of 2 around a benign mass; 7 and 8 show cancer that nobody marked."""
    folder = tmp_path_factory.mktemp("patches")
    for number in range(1, 9):
        picture = np.zeros((HEIGHT, WIDTH), np.uint8)
        picture[4:60, :36] = WITH if number < 3 else WITHOUT if number < 7 else CANCER_WITHOUT
        for _, left, top, right, bottom, _ in (box for box in BOXES if box[0] == str(number)):
            picture[top:bottom, left:right] = LESION
        path = picture_path(folder, "train", str(number))
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), picture)
    return folder


@pytest.fixture
def images():
    numbers = [str(number) for number in range(1, 9)]
    table = pd.DataFrame({"image_id": numbers, "patient_id": numbers, "prediction_id": numbers})
    table["cancer"] = [1, 0, 0, 0, 0, 0, 1, 1]
    return table.assign(age=50.0, implant=0, view="CC", machine_id=21, site_id=1, laterality="L")


@pytest.fixture
def boxes():
    table = pd.DataFrame(BOXES, columns=COLUMNS)
    return table.assign(
        **{name: table[name] / WIDTH for name in ("x_min", "x_max")},
        **{name: table[name] / HEIGHT for name in ("y_min", "y_max")},
    )


@pytest.fixture
def make(cache, images, boxes):
    def patches(augment: Augment | None = None, seed: int = 0, images: pd.DataFrame = images) -> PatchDataset:
        config = make_config(TINY, patch_size=SIZE, seed=seed)
        dataset = PatchDataset(config, TrainingData(images, cache, boxes), images, VOCABULARY)
        dataset.augment = augment
        return dataset

    return patches


def pixels(dataset: PatchDataset) -> list[np.ndarray]:
    return [dataset[index]["images"][0, 0].numpy() for index in range(len(dataset))]


def test_half_of_the_patches_are_around_boxes(make):
    dataset = make()
    assert dataset.images.around_box.tolist() == [True] * 3 + [False] * 3
    assert all(patch.shape == (SIZE, SIZE) and patch.dtype == np.uint8 for patch in pixels(dataset))


def test_a_patch_shows_cancer_around_a_box_of_an_image_with_cancer_alone(make):
    dataset = make()
    assert dataset.labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert [dataset[index]["label"] for index in range(6)] == [1, 1, 0, 0, 0, 0]


def test_kinds_are_numbered_and_background_is_none(make):
    dataset = make()
    assert dataset.kinds == ("calcification", "mass") and dataset.auxiliary_sizes == (3,)
    assert dataset.auxiliary[:, 0].tolist() == [2, 1, 2, 0, 0, 0]
    assert dataset[1]["auxiliary"].tolist() == [1]


def test_patch_without_augmentation_is_centred_on_its_box(make):
    patches = pixels(make())
    for patch, (_, left, top, right, bottom, _) in zip(patches, BOXES, strict=False):
        rows, columns = np.nonzero(patch == LESION)
        assert (rows.min() + rows.max() + 1) / 2 == SIZE / 2 and (columns.min() + columns.max() + 1) / 2 == SIZE / 2
        assert len(rows) == (right - left) * (bottom - top)


def test_shifted_patch_still_holds_its_lesion(make):
    dataset, places = make(Augment(strength=0)), set()
    for dataset.epoch in range(8):
        for patch, (_, left, top, right, bottom, _) in zip(pixels(dataset), BOXES, strict=False):
            assert (patch == LESION).sum() == (right - left) * (bottom - top)
            places.add(tuple(np.argwhere(patch == LESION)[0]))
    assert len(places) > 8


def test_background_is_tissue_of_the_same_image_away_from_its_boxes(make):
    for seed in range(5):
        dataset = make(seed=seed)
        assert dataset.images.image_id.tolist() == ["1", "1", "2"] * 2
        for patch in pixels(dataset)[3:]:
            assert (patch > 0).mean() >= LEAST_TISSUE and patch[SIZE // 2, SIZE // 2] != LESION
            assert (patch == LESION).sum() < MOST_OF_BOX * 2 * 6 * 8  # of the two boxes, none larger than 6 x 8


def test_background_of_an_image_that_a_box_fills_is_cut_all_the_same():
    picture = np.full((20, 20), WITH, np.uint8)
    place = choose_background(picture, np.array([[0.0, 0.0, 1.0, 1.0]]), 8, np.random.default_rng(0))
    assert cut_patch(picture, place, 8).any()


def test_background_of_a_narrow_breast_is_the_place_with_most_tissue():
    picture = np.zeros((64, 64), np.uint8)
    picture[:, :3] = WITH
    places = [choose_background(picture, np.empty((0, 4)), 16, np.random.default_rng(seed)) for seed in range(20)]
    assert np.mean([(cut_patch(picture, place, 16) > 0).mean() for place in places]) > 2 * 3 / 64


def test_augmented_patch_still_shows_its_lesion_and_no_border_within_the_breast(make):
    class OnlyTurns(Augment):
        """No rectangles, and no change of brightness."""

        def _pipeline(self):
            return A.Compose([A.Affine(rotate=(-45, 45), p=1.0)], bbox_params=A.BboxParams(format="albumentations", clip=True))

    dataset = make(OnlyTurns())
    shown = []
    for dataset.epoch in range(8):
        patch = pixels(dataset)[1]  # of the box in the middle of image 1
        shown.append((patch > (WITH + LESION) / 2).sum())
        assert (patch[:, : SIZE // 2] > 0).mean() > 0.6
    assert np.min(shown) > 6


def test_boxes_of_images_that_are_held_out_never_appear(make, images):
    dataset = make(images=images[images.image_id != "1"])
    assert dataset.images.image_id.tolist() == ["2", "2"] and len(dataset) == 2
    assert dataset.kinds == ("mass",)


def test_images_without_boxes_give_no_patches(make, images):
    assert len(make(images=images[2:])) == 0


def test_same_seed_gives_the_same_patches_and_another_others(make):
    first, again, other = pixels(make(Augment(), 1)), pixels(make(Augment(), 1)), pixels(make(Augment(), 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert make(seed=1).images.equals(make(seed=1).images)


def test_epoch_changes_patches_in_training_alone(make):
    training, validation = make(Augment(strength=0)), make()
    before = pixels(training), pixels(validation)
    training.epoch = validation.epoch = 1
    assert not np.array_equal(before[0], pixels(training))
    assert np.array_equal(before[1], pixels(validation))


def test_each_patch_is_a_finding_of_its_own(make):
    assert make().items.prediction_id.is_unique


@pytest.mark.parametrize("centre", [(8, 8), (0, 0), (19.6, 3.2), (10, 30), (19, 29)])
@pytest.mark.parametrize("size", [5, 8])
def test_patch_is_black_where_the_picture_ends(centre, size):
    picture = np.random.default_rng(0).integers(1, 256, (20, 30), dtype=np.uint8)
    top, left = (round(value) - size // 2 for value in centre)
    wanted = [
        [picture[row, column] if 0 <= row < 20 and 0 <= column < 30 else 0 for column in range(left, left + size)]
        for row in range(top, top + size)
    ]
    assert cut_patch(picture, np.array(centre), size).tolist() == np.array(wanted).tolist()
