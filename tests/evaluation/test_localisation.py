"""Facts about measuring a run on true boxes: which images it is measured on, and that all is out of fold."""

import numpy as np
import pandas as pd
import pytest

from tests.helpers import TINY, make_config
from utils.evaluation import localisation
from utils.evaluation.explanation import explain_run
from utils.evaluation.localisation import FOUND, MISSED, draw_boxed_images
from utils.evaluation.marks import OWN as RUN
from utils.evaluation.marks import marks_table
from utils.evaluation.pointing import OWN, RANDOM, pointing_table, strongest_place
from utils.images.boxes import CROP
from utils.images.cached import read_manifest
from utils.images.training_data import TrainingData
from utils.phantom.competition import BOXES_FILE
from utils.runs.config import TrainingError
from utils.tables.boxes import CORNERS, read_boxes
from utils.training.folds import train_run


@pytest.fixture(scope="module")
def boxes(competition, images):
    found = read_boxes(competition / BOXES_FILE)
    return found[found.image_id.isin(images.image_id)]


@pytest.fixture(scope="module")
def run(images, cache_dir, boxes, tmp_path_factory):
    """A run of one epoch that predicts boxes."""
    run_dir = tmp_path_factory.mktemp("runs") / "boxes"
    config = make_config(TINY, epochs=1, box_weight=1.0, model={"box_head": True})
    train_run(config, TrainingData(images, cache_dir, boxes=boxes), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def with_cancer(images, boxes):
    """The images that have a box."""
    return images[images.image_id.isin(boxes.image_id)]


def test_images_are_drawn_alike_in_whatever_order_boxes_come(run, images, cache_dir, boxes, with_cancer):
    drawn = draw_boxed_images(run, images, cache_dir, boxes, 5)
    again = draw_boxed_images(run, images, cache_dir, boxes[::-1], 5)
    assert len(drawn.drawn) == 5 and drawn.drawn == again.drawn and set(drawn.drawn) <= set(with_cancer.image_id)
    assert draw_boxed_images(run, images, cache_dir, boxes, 5, seed=1).drawn != drawn.drawn
    assert drawn.drawn != sorted(drawn.drawn)
    count = f"Images with boxes: {len(with_cancer)} of {len(images)}; measured on"
    assert drawn.description == f"{count} 5 drawn at random."
    assert draw_boxed_images(run, images, cache_dir, boxes, 10**6).description == f"{count} all."


def test_nothing_is_drawn_where_no_box_lies_in_a_picture(run, images, cache_dir, boxes):
    assert draw_boxed_images(run, images, cache_dir, boxes, 0) is None
    assert draw_boxed_images(run, images, cache_dir, boxes.assign(image_id="of another set"), 9) is None
    assert draw_boxed_images(run, images, cache_dir, boxes.assign(x_min=1e6, x_max=2e6), 9) is None


def test_maps_point_as_those_of_the_networks_that_never_saw_the_patients(run, images, cache_dir, boxes, monkeypatch):
    monkeypatch.setattr(localisation, "AT_ONCE", 3)
    boxed = draw_boxed_images(run, images, cache_dir, boxes, 7)
    maps = explain_run(run, images, cache_dir, boxed.drawn)
    hits = boxed.point()
    assert hits.index.tolist() == boxed.drawn
    for name, hit in hits[OWN].items():
        x, y = strongest_place(maps[name]) or (-1, -1)
        corners = boxed.boxes[boxed.boxes.image_id == name][CORNERS].to_numpy()
        assert hit == ((corners[:, :2] <= [x, y]) & ([x, y] < corners[:, 2:])).all(axis=1).any()


def test_examples_are_the_first_found_and_the_first_missed(run, images, cache_dir, boxes):
    boxed = draw_boxed_images(run, images, cache_dir, boxes, 6)
    hits = pd.DataFrame({OWN: [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]}, index=pd.Index(boxed.drawn, name="image_id"))
    found = boxed.examples(hits, 2)
    assert found.kind.tolist() == [FOUND, FOUND, MISSED, MISSED]
    assert found.image_id.tolist() == [boxed.drawn[number] for number in (1, 3, 0, 2)]


def test_true_boxes_as_predictions_are_found_in_mirrored_and_cropped_pictures(
    run, images, cache_dir, boxes, with_cancer, tmp_path
):
    (tmp_path / "perfect").mkdir()
    for name in ("config.json", "folds.csv", "oof.csv", "fold0", "fold1"):
        (tmp_path / "perfect" / name).symlink_to(run / name)
    folds = pd.read_csv(run / "folds.csv", dtype={"patient_id": str}).set_index("patient_id").fold
    first = boxes.drop_duplicates("image_id").set_index("image_id")[CORNERS]
    marks = first.reindex(images.image_id).fillna({"x_min": 1, "y_min": 1, "x_max": 2, "y_max": 2}).reset_index()
    marks["fold"] = images.patient_id.map(folds).to_numpy()
    marks.to_csv(tmp_path / "perfect" / "boxes.csv", index=False)
    boxed = draw_boxed_images(tmp_path / "perfect", images, cache_dir, boxes, 10**6)
    assert {"0", "1"} == set(boxed.manifest.flipped) and (boxed.manifest.crop_top.astype(int) > 0).any()
    table = marks_table(boxed.measure_marks())
    assert table.loc[RUN, "mean IoU [95 %]"].value > 0.95  # a box may be cut off at its crop
    healthy = 1 - len(with_cancer) / len(images)
    assert table.loc[RUN, "false marks an image [95 %]"].value == pytest.approx(healthy)
    few = draw_boxed_images(tmp_path / "perfect", images, cache_dir, boxes, 5).measure_marks()
    assert few.drop_duplicates("image_id").boxes.eq(0).mean() == pytest.approx(healthy, abs=0.1)


def test_set_whose_images_all_have_boxes_and_one_where_a_single_one_has_can_be_measured(run, images, cache_dir, boxes):
    crops = read_manifest(cache_dir, "train", TINY).astype(dict.fromkeys(CROP, float))
    middle = {
        "x_min": crops.crop_left + 9,
        "y_min": crops.crop_top + 9,
        "x_max": crops.crop_left + 20,
        "y_max": crops.crop_top + 20,
    }
    everywhere = crops[["image_id"]].assign(**middle, label="benign")
    boxed = draw_boxed_images(run, images, cache_dir, everywhere, 8)
    assert boxed.description == f"Images with boxes: {len(images)} of {len(images)}; measured on 8 drawn at random."
    assert len(boxed.point()) == 8 and (boxed.measure_marks().boxes > 0).all()
    single = draw_boxed_images(run, images, cache_dir, everywhere[:1], 300)
    hits, marks = single.point(), single.measure_marks()
    assert hits.index.tolist() == everywhere.image_id[:1].tolist()
    assert marks.image_id.nunique() == len(images) and marks.drop_duplicates("image_id").boxes.sum() == 1
    assert str(pointing_table(hits)["in a true box [95 %]"][RANDOM]).startswith("0.")
    assert marks_table(marks).index[0] == RUN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="x_max"), "lacks the columns x_max"),
        (lambda table: table.assign(y_min=np.inf), "y_min is inf in line 2, but must be a finite number"),
        (lambda table: table.assign(x_max=table.x_min - 1), "x_max is .* but must be x_min or more"),
        (lambda table: pd.concat([table, table]), "image_id is .* but must be in one row"),
        (lambda table: table.assign(fold=-1), "fold is -1"),
    ],
)
def test_predicted_boxes_that_are_not_whole_are_refused_by_file_and_field(
    run, images, cache_dir, boxes, tmp_path, change, message
):
    for name in ("config.json", "folds.csv", "oof.csv", "fold0", "fold1"):
        (tmp_path / name).symlink_to(run / name)
    change(pd.read_csv(run / "boxes.csv", dtype={"image_id": str})).to_csv(tmp_path / "boxes.csv", index=False)
    boxed = draw_boxed_images(tmp_path, images, cache_dir, boxes, 5)
    with pytest.raises(TrainingError, match=f"boxes.csv: .*{message}.*Copy the run again"):
        boxed.measure_marks()
    (tmp_path / "boxes.csv").unlink()
    with pytest.raises(TrainingError, match="boxes.csv is missing: the run predicted no boxes"):
        boxed.measure_marks()
