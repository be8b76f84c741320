import pickle

import numpy as np
import pytest

from utils.images.boxes import overlap
from utils.training.augment import Augment

MIDDLE = np.float32([0.4, 0.45, 0.6, 0.6])
CORNER = np.float32([0.0, 0.0, 0.25, 0.2])


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(50, 200, (64, 48), dtype=np.uint8)


def painted(box: np.ndarray) -> np.ndarray:
    """A grey picture that is bright where the box is."""
    picture = np.full((128, 96), 60, np.uint8)
    left, top, right, bottom = (box * [96, 128, 96, 128]).round().astype(int)
    picture[top:bottom, left:right] = 250
    return picture


def test_keeps_shape_and_dtype(picture):
    changed, box = Augment()(picture, seed=1)
    assert changed.shape == picture.shape and changed.dtype == np.uint8 and box is None


def test_same_seed_gives_the_same_picture_in_any_order(picture):
    first = [Augment()(picture, seed)[0] for seed in range(5)]
    augment = Augment()
    again = [augment(picture, seed)[0] for seed in reversed(range(5))]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_other_seeds_give_other_pictures(picture):
    augment = Augment()
    assert len({augment(picture, seed)[0].tobytes() for seed in range(20)}) > 15


def test_strength_zero_changes_nothing(picture):
    changed, box = Augment(strength=0)(picture, 1, MIDDLE)
    assert np.array_equal(changed, picture) and np.array_equal(box, MIDDLE)


def test_every_part_of_the_pipeline_takes_its_arguments(recwarn):
    Augment()
    assert not [warning for warning in recwarn if "not valid" in str(warning.message)]


def test_another_process_gets_the_same_pictures(picture):
    augment = Augment(0.7)
    augment(picture, 1)
    sent = pickle.loads(pickle.dumps(augment))
    assert np.array_equal(sent(picture, 2)[0], augment(picture, 2)[0])


def test_box_follows_what_is_in_it():
    augment, picture = Augment(), painted(MIDDLE)
    overlaps = []
    for seed in range(40):
        changed, box = augment(picture, seed, MIDDLE)
        rows, columns = np.nonzero(changed > 150)
        bright = np.array([columns.min() / 96, rows.min() / 128, (columns.max() + 1) / 96, (rows.max() + 1) / 128])
        overlaps.append(overlap(box[None], bright[None])[0])
        assert box.dtype == np.float32 and (box[:2] < box[2:]).all()
    # A turned box is larger than what it holds.
    assert min(overlaps) > 0.6 and np.median(overlaps) > 0.8


def test_box_does_not_change_the_picture(picture):
    augment = Augment()
    for seed in range(20):
        assert np.array_equal(augment(picture, seed)[0], augment(picture, seed, MIDDLE)[0])


def test_box_that_leaves_the_picture_is_gone():
    augment, picture = Augment(), painted(CORNER)
    area, left, gone = (picture == 250).sum(), [], []
    for seed in range(100):
        changed, box = augment(picture, seed, CORNER)
        (gone if np.isnan(box).all() else left).append((changed > 150).sum() / area)
        assert np.isnan(box).all() or ((box >= 0) & (box <= 1)).all()
    assert len(gone) > 5 and len(left) > 50
    assert np.median(gone) < 0.5 < np.median(left)


def test_picture_without_a_box_gets_none(picture):
    nowhere = np.full(4, np.nan, dtype=np.float32)
    assert all(np.isnan(Augment()(picture, seed, nowhere)[1]).all() for seed in range(5))
