"""Facts about making pictures smaller: JPEG 2000's low-pass, area averages, fitting."""

import numpy as np
import pytest

from utils.resample import average_areas, fitted_size, low_pass, pad, resize


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return pad(resize(image, *fitted_size(image.shape, height, width)), height, width)


@pytest.mark.parametrize("factor", [2, 3, 7])
@pytest.mark.parametrize("shape", [(4, 3), (5, 5), (1, 6)])
def test_shrinking_by_a_whole_factor_is_the_area_average(factor, shape):
    image = np.random.default_rng(0).uniform(0, 1, np.multiply(shape, factor)).astype(np.float32)
    expected = image.reshape(shape[0], factor, shape[1], factor).mean(axis=(1, 3))
    np.testing.assert_allclose(fit(image, *shape), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(10, 7), (7, 10), (1, 1)])
def test_right_size_is_left_alone(shape):
    image = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    np.testing.assert_array_equal(fit(image, *shape), image)


@pytest.mark.parametrize(
    "shape, size, box",  # box: rows from, rows to, columns to
    [
        ((40, 10), (20, 20), (0, 20, 5)),  # tall: padded on the right
        ((10, 40), (20, 20), (7, 12, 20)),  # wide: padded above and below
        ((10, 10), (30, 20), (5, 25, 20)),  # enlarged
        ((10, 10), (21, 10), (5, 15, 10)),  # an odd rest: one row more below
        ((33, 17), (16, 8), (0, 16, 8)),
        ((1, 1), (4, 6), (0, 4, 4)),
        ((1, 1000), (10, 10), (4, 5, 10)),  # never thinner than a pixel
        ((1000, 1), (10, 10), (0, 10, 1)),
    ],
)
def test_picture_lies_at_the_left_centred_in_its_own_proportions(shape, size, box):
    padded = fit(np.ones(shape, dtype=np.float32), *size)
    assert padded.shape == size
    assert padded.dtype == np.float32
    expected = np.zeros(size)
    expected[box[0] : box[1], : box[2]] = 1
    np.testing.assert_allclose(padded, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (13, 7), (64, 64), (200, 90)])
@pytest.mark.parametrize("shape", [(31, 17), (2, 50), (64, 64), (1, 1)])
def test_values_stay_between_0_and_1(shape, size):
    image = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)
    padded = fit(image, *size)
    assert padded.shape == size
    assert padded.min() >= 0
    assert padded.max() <= 1 + 1e-6


@pytest.mark.parametrize("size", [(20, 20), (13, 31)])
def test_brightness_of_the_average_is_kept(size):
    image = np.random.default_rng(0).uniform(0, 1, (100, 100)).astype(np.float32)
    padded = fit(image, *size)
    side = min(size)
    assert padded.sum() / side**2 == pytest.approx(image.mean(), abs=1e-4)


def test_a_mirrored_view_is_resized_like_its_copy():
    view = np.random.default_rng(0).uniform(0, 1, (20, 30)).astype(np.float32)[:, ::-1]
    np.testing.assert_array_equal(fit(view, 7, 9), fit(view.copy(), 7, 9))
