"""Facts about finding the breast, on drawn pictures whose box is known."""

from pathlib import Path

import numpy as np
import pytest

from utils.dicom.file import read_dicom
from utils.images.breast import Crop, breast_mask, find_breast

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "rsna-sample" / "train_images" / "10011"
HEIGHT, WIDTH = 400, 320
TOP, BOTTOM, DEPTH = 80, 320, 150  # of the drawn breast, in pixels
TIGHT = 0.02 * HEIGHT  # two pixels of the mask and the anti-aliasing
both_sides = pytest.mark.parametrize("side", ["left", "right"])


def half_ellipse(height=HEIGHT, width=WIDTH, top=TOP, bottom=BOTTOM, depth=DEPTH) -> np.ndarray:
    """True inside a breast whose chest wall is the picture's left edge; its box is [top, bottom) by [0, depth)."""
    y, x = np.mgrid[:height, :width] + 0.5
    return ((y - (top + bottom) / 2) / ((bottom - top) / 2)) ** 2 + (x / depth) ** 2 < 1


def draw(side: str = "left", noise: float = 0.0, tissue=(0.3, 0.6), **shape) -> np.ndarray:
    """A breast with some texture on air that is 0 up to ``noise``."""
    generator = np.random.default_rng(0)
    inside = half_ellipse(**shape)
    image = np.where(inside, generator.uniform(*tissue, inside.shape), generator.uniform(0, noise, inside.shape))
    return orient(image.astype(np.float32), side)


def orient(image: np.ndarray, side: str) -> np.ndarray:
    return image if side == "left" else np.ascontiguousarray(image[:, ::-1])


def original_of(image: np.ndarray, crop: Crop) -> np.ndarray:
    part = image[crop.top : crop.bottom, crop.left : crop.right]
    return part[:, ::-1] if crop.flipped else part


def crop_breast(image: np.ndarray, margin: float = 0.03) -> tuple[np.ndarray, Crop]:
    crop = find_breast(image, margin)
    return original_of(image, crop), crop


def assert_box(crop: Crop, side: str, top=TOP, bottom=BOTTOM, depth=DEPTH, width=WIDTH, tight=TIGHT) -> None:
    """The box contains the breast and reaches at most ``tight`` pixels past it."""
    left, right = (0, depth) if side == "left" else (width - depth, width)
    assert 0 <= top - crop.top <= tight
    assert 0 <= crop.bottom - bottom <= tight
    assert 0 <= left - crop.left <= tight
    assert 0 <= crop.right - right <= tight


@both_sides
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_box_without_margin_is_tight_around_the_breast(side, noise):
    image = draw(side, noise)
    cropped, crop = crop_breast(image, margin=0)
    left, right = (0, DEPTH) if side == "left" else (WIDTH - DEPTH, WIDTH)
    edges = np.subtract([crop.top, crop.left, crop.bottom, crop.right], [TOP, left, BOTTOM, right])
    assert np.abs(edges).max() <= TIGHT
    assert crop.flags == ()


@both_sides
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_default_crop_contains_the_whole_breast(side, noise):
    image = draw(side, noise)
    cropped, crop = crop_breast(image)
    assert_box(crop, side, tight=TIGHT + round(0.03 * HEIGHT))
    assert (cropped > 0.29).sum() == (image > 0.29).sum()


@both_sides
def test_chest_wall_is_turned_to_the_left(side):
    cropped, crop = crop_breast(draw(side))
    assert crop.flipped == (side == "right")
    assert (cropped[:, 0] > 0.29).mean() > 0.8
    assert not (cropped[:, -1] > 0.29).any()


def test_both_sides_give_the_same_crop():
    image = draw("left")
    np.testing.assert_array_equal(crop_breast(image)[0], crop_breast(image[:, ::-1])[0])


@both_sides
@pytest.mark.parametrize("margin", [0, 0.03, 0.2])
def test_crop_maps_back_to_the_original_pixels(side, margin):
    image = draw(side, noise=0.02)
    cropped, crop = crop_breast(image, margin)
    np.testing.assert_array_equal(cropped, original_of(image, crop))


@pytest.mark.parametrize("margin", [0.01, 0.05, 1.0])
def test_margin_is_a_share_of_the_longer_side_and_stays_inside(margin):
    _, bare = crop_breast(draw(), margin=0)
    _, crop = crop_breast(draw(), margin=margin)
    by = round(margin * HEIGHT)
    assert (crop.top, crop.bottom) == (max(0, bare.top - by), min(HEIGHT, bare.bottom + by))
    assert (crop.left, crop.right) == (0, min(WIDTH, bare.right + by))


@both_sides
@pytest.mark.parametrize("scale", [1, 2, 5])
def test_box_does_not_depend_on_resolution(side, scale):
    shape = {"height": 200, "width": 160, "top": 40, "bottom": 160, "depth": 80}
    image = draw(side, **{key: value * scale for key, value in shape.items()})
    _, crop = crop_breast(image)
    assert_box(crop, side, 40 * scale, 160 * scale, 80 * scale, 160 * scale, tight=(0.03 + 0.03) * 200 * scale)


@both_sides
def test_breast_that_reaches_the_top_and_bottom_is_kept_whole(side):
    _, crop = crop_breast(draw(side, top=-100, bottom=500))
    assert (crop.top, crop.bottom) == (0, HEIGHT)
    assert crop.flipped == (side == "right")


@both_sides
@pytest.mark.parametrize("value", [0.7, 1.0])
@pytest.mark.parametrize("top, left", [(10, 250), (180, 230), (180, DEPTH + 15)])
def test_label_beside_the_breast_is_cropped_away(side, value, top, left):
    image = draw("left")
    image[top : top + 30, left : left + 60] = value
    _, crop = crop_breast(orient(image, side))
    assert_box(crop, side, tight=TIGHT + round(0.03 * HEIGHT))
    assert crop.flipped == (side == "right")


@both_sides
@pytest.mark.parametrize("value", [0.2, 1.0])
@pytest.mark.parametrize("thickness", [1, 4])
def test_frame_border_is_cropped_away(side, value, thickness):
    image = draw("left")
    border = np.ones(image.shape, dtype=bool)
    border[thickness:-thickness, thickness:-thickness] = False
    image[border & ~half_ellipse()] = value
    _, crop = crop_breast(orient(image, side))
    assert_box(crop, side, tight=TIGHT + round(0.03 * HEIGHT))
    assert crop.flipped == (side == "right")


@both_sides
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_bright_implant_does_not_narrow_the_box(side, share):
    image = draw("left", tissue=(0.2, 0.4))
    implant = half_ellipse(depth=int(DEPTH * share), top=TOP + 40, bottom=BOTTOM - 40)
    image[implant] = 1.0
    _, crop = crop_breast(orient(image, side))
    assert_box(crop, side, tight=TIGHT + round(0.03 * HEIGHT))
    assert crop.flipped == (side == "right")


@both_sides
def test_nipple_in_profile_stays_in_the_box(side):
    image = draw("left")
    image[194:206, DEPTH - 5 : DEPTH + 12] = 0.3  # 12 px high and out 12 px: opening removes it, growing back restores it
    _, crop = crop_breast(orient(image, side))
    assert_box(crop, side, depth=DEPTH + 12, tight=TIGHT + round(0.03 * HEIGHT))


@both_sides
def test_stray_bright_pixels_change_nothing(side):
    image = draw(side)
    _, expected = crop_breast(image)
    image[[5, 50, 390], [160, 161, 159]] = 1.0
    assert crop_breast(image)[1] == expected


@pytest.mark.parametrize("scale, offset", [(0.1, 0.0), (0.5, 0.3), (1.0, 0.4)])
def test_box_does_not_depend_on_brightness(scale, offset):
    _, expected = crop_breast(draw())
    assert crop_breast(draw() * np.float32(scale) + np.float32(offset))[1] == expected


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (1, 1), (1, 9), (9, 1), (2, 3)])
def test_blank_picture_falls_back_to_the_full_frame(value, shape):
    image = np.full(shape, value, dtype=np.float32)
    cropped, crop = crop_breast(image)
    assert crop == Crop(0, 0, *shape, flipped=False, flags=("no_breast",))
    np.testing.assert_array_equal(cropped, image)
    assert not breast_mask(image).any()


@pytest.mark.parametrize("size", [6, 20])
def test_what_is_too_small_is_no_breast(size):
    image = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    image[100 : 100 + size, 100 : 100 + size] = 1.0
    assert crop_breast(image)[1].flags == ("no_breast",)


@pytest.mark.parametrize("seed", range(3))
def test_pure_noise_gives_nearly_the_full_frame(seed):
    image = np.random.default_rng(seed).uniform(0, 1, (HEIGHT, WIDTH)).astype(np.float32)
    cropped, crop = crop_breast(image)
    assert cropped.size > 0.95 * image.size
    np.testing.assert_array_equal(cropped, original_of(image, crop))


def test_thin_noise_on_air_is_no_breast():
    image = np.where(np.random.default_rng(0).random((256, 256)) < 0.02, 1.0, 0.0).astype(np.float32)
    assert crop_breast(image)[1].flags == ("no_breast",)


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 2), (1, 50), (50, 1), (2, 50), (1000, 2)])
def test_thin_picture_with_contrast_is_cropped_or_left_whole(shape):
    image = np.linspace(1, 0, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    cropped, crop = crop_breast(image)
    assert cropped.size > 0
    np.testing.assert_array_equal(cropped, original_of(image, crop))


@pytest.mark.parametrize("shape", [(3, 3), (5, 4), (7, 31), (257, 255)])
def test_small_and_odd_pictures_map_back(shape):
    image = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    cropped, crop = crop_breast(image)
    assert cropped.size > 0
    np.testing.assert_array_equal(cropped, original_of(image, crop))


@pytest.mark.parametrize("shape, expected", [((400, 320), (256, 205)), ((320, 400), (205, 256)), ((100, 80), (100, 80))])
def test_mask_is_small_boolean_and_in_proportion(shape, expected):
    mask = breast_mask(np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32))
    assert mask.dtype == bool
    assert mask.shape == expected


def test_mask_marks_the_breast_and_little_else():
    mask, truth = breast_mask(draw()), half_ellipse(256, 205, TOP * 0.64, BOTTOM * 0.64, DEPTH * 0.64)
    assert (mask & truth).sum() / (mask | truth).sum() > 0.95


def test_input_is_left_as_it_was():
    image = draw("right", noise=0.02)
    before = image.copy()
    find_breast(image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize("image_id, wall_is_right", [("220375232", False), ("1031443799", True)])
def test_real_mammogram_is_cropped_with_its_chest_wall_at_the_left(image_id, wall_is_right):
    image = read_dicom(REAL / f"{image_id}.dcm")
    cropped, crop = crop_breast(image)
    assert crop.flags == ()
    assert crop.flipped == wall_is_right
    assert 0.1 < cropped.size / image.size < 0.9
    band = cropped.shape[1] // 20
    assert cropped[:, :band].mean() > 0.2
    assert cropped[:, :band].mean() > 4 * cropped[:, -band:].mean()
    assert cropped.sum() > 0.95 * image[image > 0.06].sum()


def lit(image: np.ndarray, direction: str, brightness: float) -> np.ndarray:
    """Lay scattered light behind a breast: from the chest wall at the left, the top, both, or the corners."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] / np.array([HEIGHT, WIDTH]).reshape(2, 1, 1)
    corners = 2 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    light = {"wall": 1 - x, "top": 1 - y, "both": 1 - (x + y) / 2, "corners": corners, "even": np.ones_like(x)}
    noise = np.random.default_rng(1).normal(0, 0.01, image.shape)
    return np.clip(np.maximum(image, brightness * light[direction]) + noise, 0, 1).astype(np.float32)


@both_sides
@pytest.mark.parametrize("brightness", [0.05, 0.1, 0.15, 0.2])
@pytest.mark.parametrize("direction", ["wall", "top", "both", "corners", "even"])
def test_scattered_light_does_not_widen_the_crop(side, direction, brightness):
    _, crop = crop_breast(orient(lit(draw("left"), direction, brightness), side))
    assert_box(crop, side, tight=0.1 * HEIGHT)  # without the mend more than a third
    assert crop.flipped == (side == "right")
    assert crop.flags == ()


@pytest.mark.parametrize("image", [draw(top=-200, bottom=600, depth=400), np.random.default_rng(0).uniform(0, 1, (200, 200))])
def test_crop_that_is_the_whole_picture_is_flagged(image):
    assert crop_breast(image.astype(np.float32))[1].flags == ("whole_frame",)
