"""Facts about the white frame of scanned films, on drawn pictures."""

import numpy as np
import pytest

from tests.dicom.test_file import make_dicom
from tests.images.test_breast import assert_box, both_sides, crop_breast, draw, orient
from utils.images.film import film_box
from utils.images.preprocessing import preprocess
from utils.phantom.pictures import Drawing, draw_breast, draw_image

HEIGHT, WIDTH = 400, 320


def framed(image: np.ndarray, thickness: int, value: float = 1.0, sides: str = "TBLR") -> np.ndarray:
    """Paint a frame over some sides of a picture."""
    image = image.copy()
    places = {"T": np.s_[:thickness], "B": np.s_[-thickness:], "L": np.s_[:, :thickness], "R": np.s_[:, -thickness:]}
    for side in sides:
        image[places[side]] = value
    return image


@both_sides
@pytest.mark.parametrize("thickness", [4, 8, 16, 24])
@pytest.mark.parametrize("value", [1.0, 0.7])
@pytest.mark.parametrize("sides", ["TBLR", "TB", "L", "R"])
def test_frame_does_not_widen_the_crop(side, thickness, value, sides):
    image = framed(draw(side, noise=0.02), thickness, value, sides)
    _, crop = crop_breast(image)
    assert_box(crop, side, tight=40)
    assert crop.flipped == (side == "right")
    assert "film_frame" in crop.flags
    top, left, bottom, right = crop.film
    assert (image[top:bottom, left:right] < value).all()


@pytest.mark.parametrize("tilt", [4, 10])
def test_tilted_frame_is_found_where_it_is_long(tilt):
    image = draw()
    rows = np.arange(HEIGHT)[:, None]
    image[np.arange(WIDTH) >= WIDTH - 4 - rows * tilt / HEIGHT] = 1.0
    _, crop = crop_breast(image)
    assert WIDTH - 6 - tilt <= crop.film[3] <= WIDTH - 4


def test_frame_behind_a_black_edge_is_found():
    _, crop = crop_breast(framed(framed(draw(), 14), 4, 0.0))
    assert crop.film[0] >= 14 and crop.film[3] <= WIDTH - 14
    assert_box(crop, "left", tight=30)


@both_sides
def test_what_is_no_frame_is_left_as_it_is(side):
    label = draw("left")
    label[2:22, 200:260] = 1.0  # shorter than a frame
    whole = draw("left", top=-100, bottom=500, tissue=(0.7, 1.0))  # a bright chest wall from edge to edge
    for image in (draw("left"), label, whole, framed(draw("left"), 1)):
        crop = crop_breast(orient(image, side))[1]
        assert crop.film is None and "film_frame" not in crop.flags


@pytest.mark.parametrize("height", [64, 320, 512])
def test_outline_that_a_machine_draws_is_no_film(height):
    shape = (height, height * 4 // 5)
    breast = draw_breast(np.random.default_rng(0), "B", implant=False)
    image, _, _ = draw_image(Drawing("CC", "L", breast, framed=True), shape, np.random.default_rng(1))
    assert crop_breast(image.astype(np.float32))[1].film is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 3), (20, 20)])
def test_tiny_pictures_have_no_frame(shape):
    assert film_box(np.ones(shape, np.float32), 1) == (0, 0, *shape)


@both_sides
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("size", [(300, 240), (80, 64)])
def test_frame_is_black_in_the_picture_and_moves_nothing(tmp_path, side, exact, size):
    clean = (draw(side, noise=0.02) * 4095).astype(np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain, row = preprocess(make_dicom(tmp_path, clean, **window), *size, exact=exact)
    picture, framed_row = preprocess(make_dicom(tmp_path, framed(clean, 6, 4095), **window), *size, exact=exact)
    crop = [framed_row[name] - row[name] for name in ("crop_top", "crop_left", "crop_bottom", "crop_right", "flipped")]
    assert np.abs(crop).max() <= 4
    assert framed_row["flags"] == "film_frame"
    assert plain.max() < 200 and picture.max() < 200
    columns = np.flatnonzero(picture.max(axis=0))
    assert (picture[:, : columns[0]] == 0).all() and 0 < columns[0] < 0.1 * size[1]
