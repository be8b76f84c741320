"""Facts about boxes: read, carried between the stored picture and the cached one, compared."""

import numpy as np
import pandas as pd
import pytest

from utils.images.boxes import largest_boxes, localisation, overlap, to_picture, to_source
from utils.images.cached import read_manifest
from utils.images.preprocessing import preprocess
from utils.images.settings import CacheSettings
from utils.phantom.competition import TRUTH_FOLDER
from utils.phantom.dicom import MACHINES, write_dicom
from utils.phantom.pictures import Breast, Drawing, draw_image
from utils.tables.boxes import COLUMNS, CORNERS, read_boxes
from utils.tables.strict_csv import TableError

SHAPE = (300, 240)
BREAST = Breast("C", half_height=0.35, depth=0.5, center=0.5, wobble=0.3)
# One size filled to its height, one to its width, and one for which the picture is halved first.
SIZES = [CacheSettings(120, 100), CacheSettings(120, 40), CacheSettings(60, 48)]
HEADER = ",".join(COLUMNS)


def box_table(*rows: tuple) -> pd.DataFrame:
    """Rows of image_id and four corners."""
    return pd.DataFrame([(*row, "mass") for row in rows], columns=COLUMNS).astype(dict.fromkeys(CORNERS, float))


def manifest_row(image_id: str = "1", error: str = "", **columns) -> dict[str, str]:
    """Text, as a manifest is read; a crop of 100 rows and 40 columns if nothing else is said."""
    crop = {"crop_top": 0, "crop_left": 0, "crop_bottom": 100, "crop_right": 40, "flipped": 0}
    return {"image_id": image_id, "error": error} | {key: str(value) for key, value in (crop | columns).items()}


# From the stored picture to the cached one and back


@pytest.mark.parametrize("settings", SIZES, ids=lambda settings: f"{settings.image_height}x{settings.image_width}")
@pytest.mark.parametrize("laterality", ["L", "R"])
def test_bright_rectangle_lands_where_its_box_does(tmp_path, settings, laterality):
    drawn, _, _ = draw_image(Drawing("CC", laterality, BREAST), SHAPE, np.random.default_rng(1))
    drawn, left = drawn * 0.5, {"L": 40, "R": 160}[laterality]
    drawn[130:170, left : left + 30] = 1
    write_dicom(tmp_path / "1.dcm", drawn.astype(np.float32), MACHINES[0], "1", "1")
    picture, row = preprocess(tmp_path / "1.dcm", *settings.arguments)
    assert row["flipped"] == (laterality == "R") and row["crop_top"] > 0
    manifest = pd.DataFrame([manifest_row(**{key: value for key, value in row.items() if key.startswith(("crop", "flip"))})])
    box = box_table(("1", left, 130, left + 30, 170))
    placed = to_picture(box, manifest, settings)
    rows, columns = np.nonzero(picture > 190)
    painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    sides = [settings.image_width, settings.image_height] * 2
    assert (placed[CORNERS].to_numpy()[0] * sides).tolist() == pytest.approx(painted, abs=1)
    pd.testing.assert_frame_equal(to_source(placed, manifest, settings), box)


@pytest.fixture
def truth(competition, images):
    boxes = read_boxes(competition / TRUTH_FOLDER / "boxes.csv")
    return boxes[boxes.image_id.isin(images.image_id)].reset_index(drop=True)


def test_every_lesion_of_the_phantom_is_in_its_crop(truth, cache_dir, settings):
    manifest = read_manifest(cache_dir, "train", settings)
    placed = to_picture(truth, manifest, settings)
    assert sorted(placed.image_id) == sorted(truth.image_id) and set(placed.label) == {"mass", "calcification"}
    flipped = manifest.set_index("image_id").flipped[placed.image_id]
    assert set(flipped) == {"0", "1"}


def test_way_back_gives_the_source_boxes(truth, cache_dir, settings):
    manifest = read_manifest(cache_dir, "train", settings)
    back = to_source(to_picture(truth, manifest, settings), manifest, settings)
    order = ["image_id", "label"]
    pd.testing.assert_frame_equal(
        back.sort_values(order).reset_index(drop=True), truth.sort_values(order).reset_index(drop=True), check_dtype=False
    )


def test_uncut_boxes_come_back_as_they_were_predicted_even_from_beyond_the_crop(truth, cache_dir, settings):
    manifest = read_manifest(cache_dir, "train", settings)
    predicted = pd.DataFrame(
        {"image_id": manifest.image_id, "x_min": -0.1, "y_min": 0.2, "x_max": 1.2, "y_max": 0.9, "fold": 0}
    )
    there = to_picture(to_source(predicted, manifest, settings), manifest, settings, cut=False)
    pd.testing.assert_frame_equal(there, predicted)
    assert not to_picture(predicted, manifest, settings)[CORNERS].equals(there[CORNERS])


def test_way_back_keeps_other_columns(settings):
    boxes = pd.DataFrame([{"image_id": "1", "probability": 0.3} | dict.fromkeys(CORNERS, 0.5)])
    back = to_source(boxes, pd.DataFrame([manifest_row()]), settings)
    assert back.columns.tolist() == boxes.columns.tolist() and back.probability.tolist() == [0.3]


def test_box_is_clipped_to_the_crop_and_left_out_where_most_of_it_is_outside(settings):
    manifest = pd.DataFrame([manifest_row(crop_left=20, crop_right=95, flipped=0)])  # as wide as the picture is
    whole, most, least, none = ("1", 30, 10, 40, 20), ("1", 16, 10, 36, 20), ("1", 4, 10, 24, 20), ("1", 0, 10, 15, 20)
    placed = to_picture(box_table(whole, most, least, none), manifest, settings)
    assert placed.x_min.tolist() == pytest.approx([10 / 75, 0]) and placed.x_max.tolist() == pytest.approx([20 / 75, 16 / 75])


@pytest.mark.parametrize("box", [(45, 20, 55, 30), (38, 20, 48, 30)])
def test_box_beside_a_narrow_crop_is_left_out_though_the_picture_has_room(settings, box):
    assert to_picture(box_table(("1", *box)), pd.DataFrame([manifest_row()]), settings).empty


def test_boxes_of_failed_and_unknown_images_are_left_out(settings):
    boxes = box_table(*((image_id, 10, 10, 20, 20) for image_id in "123"))
    manifest = pd.DataFrame([manifest_row("1"), manifest_row("2", error="it is broken")])
    assert to_picture(boxes, manifest, settings).image_id.tolist() == ["1"]
    assert to_picture(boxes, manifest.head(0), settings).empty and to_picture(boxes.head(0), manifest, settings).empty


# Reading


def write(folder, *lines: str):
    path = folder / "marks.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_boxes_are_read_with_text_and_numbers(tmp_path):
    path = write(tmp_path, f"{HEADER},reader", "007,1,2.5,30,40,mass,Ann", "007,3,4,5,6,2,Bob")
    boxes = read_boxes(path)
    assert boxes.columns.tolist() == COLUMNS
    assert boxes.image_id.tolist() == ["007", "007"] and boxes.label.tolist() == ["mass", "2"]
    assert boxes[CORNERS].to_numpy().tolist() == [[1, 2.5, 30, 40], [3, 4, 5, 6]]


def test_no_boxes_are_no_error(tmp_path):
    assert read_boxes(write(tmp_path, HEADER)).empty


@pytest.mark.parametrize("row", ["1,5,2,5,4,mass", "1,5,4,9,2,mass", "1,one,2,3,4,mass", "1,1,2,3,,mass"])
def test_bad_corner_is_refused_with_file_columns_and_line(tmp_path, row):
    with pytest.raises(TableError, match="marks.csv, line 3.*x_min.*x_max.*y_min.*y_max"):
        read_boxes(write(tmp_path, HEADER, "1,1,2,3,4,mass", row))


def test_missing_column_is_named_beside_those_that_are_there(tmp_path):
    with pytest.raises(TableError, match=r"marks.csv lacks the column\(s\) y_max, label; it has image_id, x_min, y_min, x_max"):
        read_boxes(write(tmp_path, "image_id,x_min,y_min,x_max", "1,1,2,3"))


def test_columns_twice_and_ragged_rows_are_refused(tmp_path):
    path = tmp_path / "marks.csv"
    for text in (f"{HEADER},X_min\n1,0,0,5,5,mass,3\n", f"{HEADER}\n1,0,0,5,5,mass,\n", f"{HEADER}\n1,0,0,5,5\n"):
        path.write_text(text)
        with pytest.raises(TableError, match="marks.csv"):
            read_boxes(path)


def test_image_may_be_called_na(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text(f"{HEADER}\nNA,0,0,5,5,mass\n")
    assert read_boxes(path).image_id.tolist() == ["NA"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "marks.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match="marks.csv is not a readable CSV.*image_id, x_min"):
        read_boxes(path)


def test_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(TableError, match=r"marks.csv does not exist\. boxes_path must name a CSV with image_id, x_min"):
        read_boxes(tmp_path / "marks.csv")


@pytest.mark.parametrize("row", ["1,1,2,inf,4,mass", ",1,2,3,4,mass", "1,1,2,3,4,"])
def test_endless_box_and_missing_names_are_refused(tmp_path, row):
    with pytest.raises(TableError, match="line 2"):
        read_boxes(write(tmp_path, HEADER, row))


def test_blank_lines_count_as_lines(tmp_path):
    with pytest.raises(TableError, match="line 4"):
        read_boxes(write(tmp_path, HEADER, "1,1,2,3,4,mass", "", "1,5,2,5,4,mass"))


# Comparing


def test_overlap_is_that_of_the_pixels_covered():
    corners = np.sort(np.random.default_rng(0).integers(0, 12, (2, 300, 2, 2)), axis=2)  # (side, n, lower or upper, x or y)
    corners = corners[:, (corners[:, :, 0] < corners[:, :, 1]).all(axis=(0, 2))]
    a, b = corners.reshape(2, -1, 4)
    assert len(a) > 100
    for one, other, found in zip(a, b, overlap(a.astype(float), b.astype(float)), strict=True):
        covers = np.zeros((2, 12, 12), dtype=bool)
        for cover, (x_min, y_min, x_max, y_max) in zip(covers, (one, other), strict=True):
            cover[y_min:y_max, x_min:x_max] = True
        assert found == pytest.approx(covers.all(axis=0).sum() / covers.any(axis=0).sum())


def test_localisation_of_hits_misses_and_images_without_a_box():
    true = box_table(("a", 0, 0, 4, 4), ("a", 10, 10, 20, 20), ("b", 0, 0, 2, 2))
    marks = box_table(("a", 0, 0, 4, 8), ("b", 6, 6, 8, 8), ("c", 1, 1, 2, 2), ("d", 1, 1, 2, 2))
    # a's mark covers half of its first box, whose edge its centre just misses
    assert localisation(marks, true) == {
        "mean_iou": pytest.approx((0.5 + 0) / 2),
        "hit_rate": 0,
        "false_marks": 1,
        "images_with_box": 2,
    }
    marks.loc[0, "y_max"] = 6
    found = localisation(marks, true)
    assert found["mean_iou"] == pytest.approx((16 / 24 + 0) / 2)
    assert found["hit_rate"] == pytest.approx(1 / 3) and found["false_marks"] == pytest.approx(3 / 4)


def test_right_marks_are_perfect():
    true = box_table(("a", 0, 0, 4, 4), ("b", 1, 2, 3, 4))
    assert localisation(true, true) == {"mean_iou": 1, "hit_rate": 1, "false_marks": 0, "images_with_box": 2}


def test_mark_in_two_boxes_that_overlap_is_one_true_mark():
    found = localisation(box_table(("a", 2, 2, 4, 4)), box_table(("a", 0, 0, 4, 4), ("a", 2, 2, 8, 8)))
    assert found["hit_rate"] == 1 and found["false_marks"] == 0 and found["mean_iou"] == pytest.approx(4 / 16)


def test_largest_box_of_each_image_comes_in_the_order_asked():
    boxes = box_table(("a", 0, 0, 1, 1), ("b", 0, 0, 3, 1), ("a", 0, 0, 2, 2), ("b", 0, 0, 1, 2))
    found = largest_boxes(boxes, pd.Series(["b", "x", "a", "b"]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[0, 0, 3, 1], [np.nan] * 4, [0, 0, 2, 2], [0, 0, 3, 1]])
    assert np.isnan(largest_boxes(boxes.head(0), pd.Series(["a"]))).all()
