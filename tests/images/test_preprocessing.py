"""Facts about one file's way to its picture: what is decoded, how near it comes to the full decode, where the crop lies."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from utils.dicom.file import DicomError, open_dicom
from utils.images.breast import breast_mask, find_breast
from utils.images.preprocessing import MIN_OVERSAMPLING, describe, draw, make_plan, preprocess
from utils.images.resample import resize
from utils.phantom.dicom import MACHINES, write_dicom
from utils.phantom.pictures import Breast, Drawing, draw_breast, draw_image

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "rsna-sample"
JPEG2000 = replace(MACHINES[0], transfer_syntax=JPEG2000Lossless)
LOSSLESS = replace(MACHINES[0], transfer_syntax=JPEGLosslessSV1)
SHAPE = (1300, 1040)
HALF, QUARTER = (400, 300), (200, 150)  # sizes for which SHAPE is halved once and twice
BREAST = Breast("C", half_height=0.42, depth=0.5, center=0.5, wobble=0.3)


def write(path: Path, picture: np.ndarray, machine=JPEG2000) -> Path:
    write_dicom(path, picture.clip(0, 1).astype(np.float32), machine, "1", "2")
    return path


@pytest.fixture(scope="module")
def picture() -> tuple[np.ndarray, np.ndarray]:
    """A phantom picture with its white noise, and the breast's mask."""
    drawn, _, mask = draw_image(Drawing("CC", "L", BREAST), SHAPE, np.random.default_rng(1))
    return drawn, mask


@pytest.fixture
def file(picture, tmp_path):
    return write(tmp_path / "image.dcm", picture[0])


def both_ways(path: Path, size: tuple[int, int]) -> tuple:
    """The fast picture, the exact one, and the plan of the fast one; grey values of 255."""
    with open_dicom(path) as file:
        plan = make_plan(file, *size, margin=0.03, exact=False)
        return draw(file, plan) * 255, draw(file, replace(plan, discard=0)) * 255, plan


def lanczos(path: Path, plan) -> np.ndarray:
    with open_dicom(path) as file:
        crop = plan.crop
        full = file.grey(file.stored())[crop.top : crop.bottom, crop.left : crop.right] * 255
    shrunk = Image.fromarray(np.ascontiguousarray(full)).resize((plan.width, plan.height), Image.LANCZOS)
    return np.asarray(shrunk)[:, ::-1] if crop.flipped else np.asarray(shrunk)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def overlap(first, second) -> float:
    """Intersection over union of two boxes (top, left, bottom, right)."""
    top, left, bottom, right = (*np.maximum(first, second)[:2], *np.minimum(first, second)[2:])
    shared = max(0, bottom - top) * max(0, right - left)
    return shared / (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)) - shared)


# What is decoded


@pytest.mark.parametrize("size, halvings", [((1000, 900), 0), (HALF, 1), (QUARTER, 2), ((60, 50), 4)])
def test_picture_is_halved_as_often_as_leaves_enough_pixels(file, size, halvings):
    with open_dicom(file) as opened:
        plan = make_plan(opened, *size, margin=0.03, exact=False)
    assert plan.discard == halvings
    height = plan.crop.bottom - plan.crop.top
    assert halvings == 0 or height / 2**halvings >= MIN_OVERSAMPLING * plan.height
    assert height / 2 ** (halvings + 1) < MIN_OVERSAMPLING * plan.height


@pytest.mark.parametrize("size, decoded, share", [(HALF, "1/2", 0.35), (QUARTER, "1/4", 0.12)])
def test_manifest_tells_what_was_decoded_and_read(file, size, decoded, share):
    row = preprocess(file, *size)[1]
    assert (row["codec"], row["decoded"], row["halved"]) == ("jpeg2000", decoded, decoded)
    assert row["bytes_read"] < share * file.stat().st_size


def test_exact_decodes_all_of_it(file):
    row = preprocess(file, *QUARTER, exact=True)[1]
    assert (row["decoded"], row["halved"]) == ("1/1", "1/1")
    assert row["bytes_read"] > 0.99 * file.stat().st_size


def test_exact_picture_is_the_area_average_of_the_crop(file):
    pixels, row = preprocess(file, *QUARTER, exact=True)
    with open_dicom(file) as opened:
        full = opened.grey(opened.stored())[row["crop_top"] : row["crop_bottom"], row["crop_left"] : row["crop_right"]]
    width = round(full.shape[1] * 200 / full.shape[0])
    np.testing.assert_array_equal(
        pixels[:, :width], np.rint(cv2.resize(full, (width, 200), interpolation=cv2.INTER_AREA) * 255)
    )
    assert not pixels[:, width:].any()


def test_file_without_a_window_is_decoded_in_full_and_stretched_over_its_own_range(picture, tmp_path):
    path = write(tmp_path / "image.dcm", picture[0] * 0.5, replace(JPEG2000, windows=()))
    pixels, row = preprocess(path, *QUARTER)
    assert (row["decoded"], row["halved"]) == ("1/1", "1/4")
    with open_dicom(path) as file:
        assert file.grey(file.stored()).max() == 1
    assert np.abs(pixels.astype(int) - preprocess(path, *QUARTER, exact=True)[0]).mean() < 1


def test_codestream_with_fewer_resolutions_is_filtered_for_the_rest(picture, tmp_path):
    machine = replace(JPEG2000, boxed=False)
    path = write(tmp_path / "image.dcm", cv2.resize(picture[0], (104, 130), interpolation=cv2.INTER_AREA), machine)
    with open_dicom(path) as file:
        assert file.levels == 3
    pixels, row = preprocess(path, 6, 5)
    assert (row["decoded"], row["halved"]) == ("1/8", "1/16")
    assert np.abs(pixels.astype(int) - preprocess(path, 6, 5, exact=True)[0]).mean() < 8


# How near it comes to the full decode


@pytest.mark.parametrize("size", [HALF, QUARTER])
def test_error_is_under_one_grey_level_and_under_that_of_choosing_lanczos(file, picture, size):
    fast, exact, plan = both_ways(file, size)
    assert plan.discard > 0
    crop = plan.crop
    inside = resize(picture[1][crop.top : crop.bottom, crop.left : crop.right].astype(np.float32), *exact.shape) > 0.99
    error = np.abs(fast - exact)[inside].mean()
    assert error < 1
    assert error < np.abs(lanczos(file, plan) - exact)[inside].mean()


@pytest.mark.parametrize("size", [HALF, QUARTER])
def test_picture_is_not_shifted(file, size):
    fast, exact, _ = both_ways(file, size)
    for gradient in np.gradient(exact):
        shift = (gradient * (exact - fast)).sum() / (gradient**2).sum()  # in pixels, to first order
        assert abs(shift) < 0.02


@pytest.mark.parametrize("size", [HALF, QUARTER])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_small_calcifications_keep_nine_tenths_of_their_peaks(picture, tmp_path, size, sigma):
    """Each of a hundred dots of 2.4 or 4.7 pixels across at half their height; the mean of fast peak over exact peak."""
    generator = np.random.default_rng(2)
    dots = np.zeros(SHAPE, dtype=np.float32)
    places = generator.uniform((350, 40), (950, 300), (100, 2))
    for y, x in places:
        rows, columns = int(y) + np.arange(-8, 9), int(x) + np.arange(-8, 9)
        squared = (rows[:, None] - y) ** 2 + (columns - x) ** 2
        part = np.ix_(rows, columns)
        dots[part] = np.maximum(dots[part], 0.4 * np.exp(-squared / (2 * sigma**2)))
    without, with_dots = (both_ways(write(tmp_path / "image.dcm", image), size) for image in (picture[0], picture[0] + dots))
    crop, scale = without[2].crop, without[2].height / (without[2].crop.bottom - without[2].crop.top)
    peaks = []
    for y, x in places:
        row, column = int((y - crop.top) * scale), int((x - crop.left) * scale)
        near = np.s_[row - 2 : row + 3, max(0, column - 2) : column + 3]
        peaks.append([(with_dots[way] - without[way])[near].max() for way in (0, 1)])
    fast, exact = np.transpose(peaks)
    assert (fast / exact).mean() > 0.9


@pytest.mark.parametrize("size", [(1000, 900), HALF, QUARTER])
def test_both_codecs_give_the_same_picture(picture, tmp_path, size):
    (first, row), (second, other) = (
        preprocess(write(tmp_path / f"{name}.dcm", picture[0], machine), *size)
        for name, machine in (("jpeg2000", JPEG2000), ("lossless", LOSSLESS))
    )
    assert [row[key] for key in row if key.startswith("crop")] == [other[key] for key in other if key.startswith("crop")]
    difference = np.abs(first.astype(int) - second)
    assert difference.max() <= 1 and difference.mean() < 0.1


# Where the crop lies


def test_crop_box_matches_the_true_breast(tmp_path):
    """Over all machines, sides, views, markers and frames of the phantom."""
    overlaps = []
    for number in range(24):
        generator = np.random.default_rng(number)
        machine = MACHINES[number % len(MACHINES)]
        height = round(600 * machine.scale)
        breast = draw_breast(generator, "ABCD"[number % 4], implant=number % 7 == 0)
        view, side = ("CC", "MLO", "ML")[number % 3], "LR"[number % 2]
        drawing = Drawing(view, side, breast, mirrored=number % 5 == 0, marker=number % 2 == 0, framed=number % 8 == 3)
        drawn, _, mask = draw_image(drawing, (height, round(machine.aspect * height)), generator)
        with open_dicom(write(tmp_path / "image.dcm", drawn, machine)) as file:
            tight, crop = (make_plan(file, 512, 256, margin, exact=False).crop for margin in (0, 0.03))
        overlaps.append(overlap((tight.top, tight.left, tight.bottom, tight.right), box_of(mask)))
        kept = mask[crop.top : crop.bottom, crop.left : crop.right].sum() / mask.sum()
        assert kept > 0.99
        assert crop.flipped == (mask[:, -1].sum() > mask[:, 0].sum())
    assert np.mean(overlaps) > 0.95


@pytest.mark.parametrize("step", [2, 8])
def test_box_found_on_every_nth_sample_is_that_of_the_original(picture, step):
    image, mask = picture[0].clip(0, 1), picture[1]
    crop = find_breast(image[::step, ::step], 0, step, image.shape)
    assert overlap((crop.top, crop.left, crop.bottom, crop.right), box_of(mask)) > 0.97


def test_blank_picture_is_taken_whole_and_flagged(tmp_path):
    path = write(tmp_path / "image.dcm", np.zeros((300, 200), dtype=np.float32))
    pixels, row = preprocess(path, 60, 50)
    assert row["flags"] == "no_breast" and row["crop_bottom"] == 300 and not pixels.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 2), (257, 255)])
@pytest.mark.parametrize("machine", [JPEG2000, LOSSLESS, MACHINES[4]], ids=["jpeg2000", "lossless", "uncompressed"])
def test_any_size_gives_a_picture(tmp_path, shape, machine):
    image = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    pixels, row = preprocess(write(tmp_path / "image.dcm", image, machine), 20, 10)
    assert pixels.shape == (20, 10) and pixels.dtype == np.uint8
    assert (row["source_height"], row["source_width"]) == shape


def test_file_cut_behind_what_is_needed_is_still_refused(file):
    with open_dicom(file) as opened:
        make_plan(opened, *QUARTER, margin=0.03, exact=False)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DicomError, match="the file ends .* bytes before its pixel data does"):
        preprocess(file, *QUARTER)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize("size", [(512, 512), (1024, 512)])
def test_real_files_pass_the_same_limits(size):
    for path in sorted(REAL.rglob("*.dcm"))[::4]:
        fast, exact, plan = both_ways(path, size)
        with open_dicom(path) as file:
            row, full = describe(file, plan), file.grey(file.stored())
        mask = cv2.resize(breast_mask(full).astype(np.float32), full.shape[::-1])
        inside = resize(mask[row["crop_top"] : row["crop_bottom"], row["crop_left"] : row["crop_right"]], *exact.shape) > 0.5
        inside = inside[:, ::-1] if row["flipped"] else inside
        error = np.abs(fast - exact)[inside].mean()
        assert error < 1
        assert error < np.abs(lanczos(path, plan) - exact)[inside].mean()
