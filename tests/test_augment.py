import numpy as np
import pytest

from utils.augment import Augment


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(50, 200, (64, 48), dtype=np.uint8)


def test_keeps_shape_and_dtype(picture):
    changed = Augment()(picture, seed=1)
    assert changed.shape == picture.shape and changed.dtype == np.uint8


def test_same_seed_gives_the_same_picture_in_any_order(picture):
    first = [Augment()(picture, seed) for seed in range(5)]
    augment = Augment()
    again = [augment(picture, seed) for seed in reversed(range(5))]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_other_seeds_give_other_pictures(picture):
    augment = Augment()
    assert len({augment(picture, seed).tobytes() for seed in range(20)}) > 15


def test_strength_zero_changes_nothing(picture):
    assert np.array_equal(Augment(strength=0)(picture, seed=1), picture)


def test_every_part_of_the_pipeline_takes_its_arguments(recwarn):
    Augment()
    assert not [warning for warning in recwarn if "not valid" in str(warning.message)]
