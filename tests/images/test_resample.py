"""Facts about making pictures smaller: JPEG 2000's low-pass, area averages, fitting."""

import numpy as np
import pytest

from tests.dicom.test_jpeg2000 import encode, noise, reduced_by_openjpeg, smooth
from utils.images import resample
from utils.images.resample import CUBIC_SHARE, average_areas, fitted_size, low_pass, pad, resize


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


# The low-pass of JPEG 2000


def checkers(shape: tuple[int, int], bits: int) -> np.ndarray:
    """Sharp edges everywhere, along rows, columns and diagonals."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((x // 5 + y // 7 + (x + y) // 11) % 2 * (2**bits - 1)).astype(np.uint16)


def filtered(picture: np.ndarray, levels: int) -> np.ndarray:
    """The 5/3 wavelet's low-pass without roundings, straight from its definition."""
    values = picture.astype(np.float64)
    for _ in range(levels):
        for _axis in range(2):
            padded = np.pad(values, ((2, 3), (0, 0)), mode="reflect")
            taps = zip((-1, 2, 6, 2, -1), range(5), strict=True)
            values = (sum(weight * padded[start : start + len(values)] for weight, start in taps) / 8)[::2].T
    return values


@pytest.mark.parametrize("content", [noise, smooth, checkers])
@pytest.mark.parametrize("shape", [(257, 290), (300, 256), (65, 63), (64, 33)])
def test_low_pass_is_that_of_the_reversible_wavelet(content, shape):
    """The wavelet rounds four times a level, mostly up; the low-pass twice, a quarter up each time."""
    picture = content(shape, 12).astype(np.uint16) + 20_000  # far from the ends of the range, where decoders clip
    codestream = encode(picture, 16)
    levels = 5 if min(shape) > 200 else 1
    for level in range(1, levels + 1):
        expected = reduced_by_openjpeg(codestream, level).astype(int)
        halved = low_pass(picture, level)
        assert halved.dtype == np.uint16
        assert halved.shape == expected.shape
        difference = np.abs(halved - expected)
        assert difference.max() <= level + 1
        assert (difference <= level).mean() > 0.99
        assert abs((halved - expected).mean()) < 0.15 * level


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 64), (37, 50)])
@pytest.mark.parametrize("levels", [1, 2, 3, 6])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_low_pass_is_a_mirrored_5_tap_filter_level_by_level(shape, levels, bits):
    picture = noise(shape, bits)
    expected = filtered(picture, levels).clip(0, np.iinfo(picture.dtype).max)
    expected += levels / 2  # the quarters that the wavelet's roundings add
    np.testing.assert_allclose(low_pass(picture, levels), expected, atol=3)


@pytest.mark.parametrize("levels", [0, 1, 2, 4])
@pytest.mark.parametrize(
    "rows, columns",
    [(slice(0, 3), slice(2, 4)), (slice(1, 2), slice(None)), (slice(2, 99), slice(3, 99)), (slice(None), slice(0, 1))],
)
def test_part_of_the_low_pass_is_that_of_the_whole(levels, rows, columns):
    picture = noise((75, 101), 12)
    whole = low_pass(picture, levels)
    part = low_pass(picture, levels, rows, columns)
    np.testing.assert_array_equal(part, whole[rows, columns])
    assert part.size > 0


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 60)])
@pytest.mark.parametrize("bits", [12, 16])  # int16, and float32
def test_low_pass_in_bands_is_that_at_once(monkeypatch, levels, rows, bits):
    picture = noise((140, 31), bits)
    picture[100:] //= 16  # alone, these rows would be filtered as int16
    whole = low_pass(picture, levels, rows)
    monkeypatch.setattr(resample, "FILTERED_ROWS", 32)
    np.testing.assert_array_equal(low_pass(picture, levels, rows), whole)


@pytest.mark.parametrize("dtype, value", [(np.uint8, 255), (np.uint16, 65_535), (np.int16, -32_768), (np.uint8, 0)])
def test_low_pass_keeps_constants(dtype, value):
    np.testing.assert_array_equal(low_pass(np.full((33, 21), value, dtype), 3), np.full((5, 3), value, dtype))


@pytest.mark.parametrize(
    "dtype, lowest, highest",
    [(np.uint8, 0, 255), (np.uint16, 0, 65_535), (np.uint16, 0, 4095), (np.int16, -16_000, 16_000)],
)
def test_low_pass_overshoots_at_edges_but_never_wraps(dtype, lowest, highest):
    edges = np.where(checkers((33, 21), 1), highest, lowest).astype(dtype)
    exact, limits = filtered(edges, 1), np.iinfo(dtype)
    assert exact.max() > highest and exact.min() < lowest
    np.testing.assert_allclose(low_pass(edges, 1), exact.clip(limits.min, limits.max), atol=1.5)


# Averages over areas

WINDOWS = [(0.0, 40.0), (3.0, 29.0), (2.25, 33.8), (-6.5, 41.0), (5.0, 47.3), (-9.0, 52.0), (10.2, 10.9)]
windows = pytest.mark.parametrize("window", WINDOWS, ids=str)


def interpolated(samples: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What `average_areas` integrates, at places x: linear and cubic (Keys 1981, a = -1/2) interpolation."""
    left = np.floor(x - 0.5).astype(int)
    t = x - 0.5 - left
    before, here, after, beyond = (samples[(left + offset).clip(0, len(samples) - 1)] for offset in (-1, 0, 1, 2))
    linear = here * (1 - t) + after * t
    bend = 2 * before - 5 * here + 4 * after - beyond + t * (3 * (here - after) + beyond - before)
    cubic = here + 0.5 * t * (after - before + t * bend)
    return (1 - CUBIC_SHARE) * linear + CUBIC_SHARE * cubic


@windows
@pytest.mark.parametrize("count", [1, 7, 40, 90])
def test_average_areas_is_the_integral_of_the_interpolation(window, count):
    """Against sums over 500 places in each new pixel, along one axis and then along the other."""
    samples = np.random.default_rng(4).uniform(0, 1, 40)
    edges = np.linspace(*window, count + 1)
    places = edges[:-1, None] + (np.arange(500) + 0.5) / 500 * np.diff(edges)[:, None]
    expected = interpolated(samples, places).mean(axis=1)
    picture = np.outer(samples, [1, 2, 0.5, 0.25]).astype(np.float32)
    columns = average_areas(picture, window, (0, 4), count, 4)
    np.testing.assert_allclose(columns, np.outer(expected, columns[0] / expected[0]), atol=1e-4)
    flat = np.repeat(samples[None].astype(np.float32), 3, axis=0)
    np.testing.assert_allclose(average_areas(flat, (0, 3), window, 2, count), np.tile(expected, (2, 1)), atol=1e-4)


@windows
@pytest.mark.parametrize("size", [(1, 1), (8, 5), (60, 90)])
def test_constant_pictures_stay_constant(window, size):
    averaged = average_areas(np.full((40, 30), 0.7, np.float32), window, (-3.0, 31.5), *size)
    assert averaged.dtype == np.float32
    assert averaged.shape == size
    np.testing.assert_allclose(averaged, 0.7, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 11), (30, 44), (26, 35), (61, 90)])
def test_brightness_of_the_whole_is_kept(size):
    picture = np.pad(np.random.default_rng(0).uniform(0, 1, (26, 40)), 2, mode="edge").astype(np.float32)
    assert average_areas(picture, (0, 30), (0, 44), *size).mean() == pytest.approx(picture.mean(), abs=1e-6)


@windows
@pytest.mark.parametrize("height", [1, 16, 37])
def test_average_areas_in_bands_is_that_at_once(monkeypatch, window, height):
    picture = np.random.default_rng(0).integers(0, 4096, (40, 30)).astype(np.uint16)

    def show(samples: np.ndarray) -> np.ndarray:
        return np.minimum(samples / np.float32(3000), 1)

    whole = average_areas(show(picture), window, (-3.0, 31.5), height, 9)
    monkeypatch.setattr(resample, "AVERAGED_ROWS", 8)
    np.testing.assert_array_equal(average_areas(picture, window, (-3.0, 31.5), height, 9, show), whole)


@windows
def test_a_ramp_gives_the_middle_of_each_area(window):
    ramp = np.add.outer(np.arange(40) + 0.5, 100 * (np.arange(30) + 0.5)).astype(np.float32)
    averaged = average_areas(ramp, window, (4, 26), 9, 6)
    rows, columns = (np.linspace(*ends, count + 1) for ends, count in ((window, 9), ((4, 26), 6)))
    inner = (rows[:-1] >= 1.5) & (rows[1:] <= 38.5)  # of the others the kernel meets the edge
    expected = np.add.outer(rows[:-1] + rows[1:], 100 * (columns[:-1] + columns[1:])) / 2
    np.testing.assert_allclose(averaged[inner], expected[inner], rtol=1e-6)
    assert inner.any()


def test_beyond_the_edges_the_outermost_samples_go_on():
    picture = np.random.default_rng(1).uniform(0, 1, (20, 15)).astype(np.float32)
    padded = np.pad(picture, 12, mode="edge")
    window = average_areas(picture, (-7.5, 24.0), (-3.25, 20.0), 9, 11)
    np.testing.assert_allclose(window, average_areas(padded, (4.5, 36.0), (8.75, 32.0), 9, 11), atol=1e-6)


@pytest.mark.parametrize("part", [(0.0, 11.0), (-4.0, 3.0), (17.5, 24.0)])
def test_average_of_a_part_needs_only_the_samples_near_it(part):
    picture = np.random.default_rng(2).uniform(0, 1, (20, 20)).astype(np.float32)
    expected = average_areas(picture, part, part, 4, 4)
    far = np.arange(20) + 0.5
    far = (far < part[0] - 2) | (far > part[1] + 2)
    picture[far, :] = picture[:, far] = np.nan
    np.testing.assert_array_equal(average_areas(picture, part, part, 4, 4), expected)


# Both, as preprocessing uses them


def halved_then_averaged(picture, halvings: int, rows, columns, size, shift: float = 0.5) -> np.ndarray:
    """Shrink part of a picture by way of its halved copy, whose sample i lies on the full picture's sample 2**halvings * i."""
    ends = [tuple((edge - shift) / 2**halvings + shift for edge in pair) for pair in (rows, columns)]
    return average_areas(low_pass(picture, halvings).astype(np.float32), *ends, *size)


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_halving_first_does_not_move_the_picture(halvings):
    y, x = np.mgrid[:301, :260]
    ramp = (1000 + 20 * y + 50 * x).astype(np.uint16)
    rows, columns, size = (40, 260), (33, 233), (20, 20)
    expected = resize(ramp[slice(*rows), slice(*columns)].astype(np.float32), *size)
    assert np.abs(halved_then_averaged(ramp, halvings, rows, columns, size) - expected).max() < 1  # a fiftieth of a pixel


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_halving_first_gives_nearly_the_average_of_the_full_picture(halvings):
    """A texture like tissue's, with 1.5 halved pixels for each new one; the samples' places count for most of the error."""
    frequencies, random = np.hypot(np.fft.fftfreq(480)[:, None], np.fft.rfftfreq(360)[None]), np.random.default_rng(6)
    noises = random.normal(size=(2, *frequencies.shape))
    spectrum = (noises[0] + 1j * noises[1]) / (frequencies + 1e-3) ** 1.5
    texture = np.fft.irfft2(spectrum, s=(480, 360))
    picture = (30_000 + 5000 * texture / texture.std()).astype(np.uint16)
    whole, size = ((0, 480), (0, 360)), (round(320 / 2**halvings), round(240 / 2**halvings))
    expected = resize(picture.astype(np.float32), *size)

    def error(shift: float) -> float:
        return float(np.std(halved_then_averaged(picture, halvings, *whole, size, shift) - expected) / expected.std())

    assert error(0.5) < 0.05
    assert error(0.5) < error(0) / 3
