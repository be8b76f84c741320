"""Facts about predicted boxes: what counts as found, and what they are compared with."""

import numpy as np
import pandas as pd
import pytest

from utils.evaluation.marks import (
    AT_BRIGHTEST,
    AT_MIDDLE,
    AT_RANDOM,
    KINDS,
    MINUS,
    OTHERS,
    OWN,
    marks_table,
    measure_marks,
    median_sizes,
)
from utils.evaluation.pointing import Landmarks
from utils.images.boxes import localisation
from utils.tables.boxes import CORNERS

SIZE = {0: np.array([0.2, 0.2]), 1: np.array([0.4, 0.4])}


def table_of(*rows):
    return pd.DataFrame(rows, columns=["image_id", *CORNERS])


def landmarks_at(*image_ids, brightest=(0.5, 0.5)):
    return dict.fromkeys(image_ids, Landmarks(brightest, (0.1, 0.1), np.array([(0.5, 0.5), (0.9, 0.9)])))


def measured(marks, boxes, patients=None, **landmarks):
    marks = marks.assign(fold=np.arange(len(marks)) % 2)
    patients = pd.Series(patients or {name: name for name in marks.image_id})
    return measure_marks(marks, boxes, landmarks_at(*boxes.image_id, **landmarks), patients, SIZE)


def row_of(found, image_id, kind):
    return found[(found.image_id == image_id) & (found.kind == kind)][["boxes", "overlap", "hits", "false"]].iloc[0].tolist()


def test_marks_are_measured_by_hand():
    marks = table_of(("a", 0.4, 0.4, 0.6, 0.6), ("b", 0.0, 0.0, 0.2, 0.2), ("healthy", 0.4, 0.4, 0.6, 0.6))
    boxes = table_of(("a", 0.4, 0.4, 0.6, 0.8), ("a", 0.45, 0.45, 0.55, 0.55), ("b", 0.4, 0.4, 0.6, 0.6))
    found = measured(marks, boxes)
    assert len(found) == 3 * len(KINDS)
    assert row_of(found, "a", OWN) == [2, pytest.approx(0.5), 2, 0]
    assert row_of(found, "b", OWN) == [1, 0, 0, 1]
    assert row_of(found, "a", OTHERS) == [2, 0, 0, 1]  # the mark of b; that of the healthy image is no box's
    assert row_of(found, "a", AT_BRIGHTEST) == [2, pytest.approx(0.5), 2, 0]  # fold 0's size
    assert row_of(found, "b", AT_BRIGHTEST) == [1, pytest.approx(0.25), 1, 0]  # fold 1's, twice as large
    assert row_of(found, "b", AT_MIDDLE)[2:] == [0, 1]
    assert row_of(found, "b", AT_RANDOM) == [1, pytest.approx(0.125), 0.5, 0.5]
    assert all(row_of(found, "healthy", kind) == [0, 0, 0, 1] for kind in KINDS)


def test_mark_of_the_same_patient_is_no_other_mark():
    marks = table_of(("a", 0.4, 0.4, 0.6, 0.6), ("b", 0.4, 0.4, 0.6, 0.6))
    found = measured(marks, marks, {"a": "1", "b": "1"})
    assert found[found.kind == OTHERS].overlap.isna().all()
    assert str(marks_table(found).loc[OTHERS, "mean IoU [95 %]"]) == "undefined"


def test_table_agrees_with_localisation():
    rng = np.random.default_rng(0)

    def random_boxes(names):
        corners = np.sort(rng.random((len(names), 2, 2)), axis=1)
        return table_of(*((name, *box.ravel()) for name, box in zip(names, corners, strict=True)))

    names = [str(number) for number in range(60)]
    marks, boxes = random_boxes(names), random_boxes(names[:40] + names[:15])
    patients = {name: str(int(name) // 2) for name in names}
    table, wanted = marks_table(measured(marks, boxes, patients)), localisation(marks, boxes)
    for title, key in {"mean IoU": "mean_iou", "hit rate": "hit_rate", "false marks an image": "false_marks"}.items():
        interval = table.loc[OWN, f"{title} [95 %]"]
        assert interval.value == pytest.approx(wanted[key]) and interval.low < interval.value < interval.high
    assert table.index.tolist() == KINDS and table.loc[OWN, f"mean IoU, {MINUS}"] == ""


def test_difference_to_the_brightest_spot_is_paired():
    names = [str(number) for number in range(30)]
    boxes = table_of(*((name, 0.4, 0.4, 0.6, 0.6) for name in names))
    found = marks_table(measured(boxes, boxes, brightest=(0.1, 0.9)))
    assert found.loc[AT_BRIGHTEST, f"hit rate, {MINUS}"] == "+1.000 [+1.000, +1.000]"
    assert found.loc[AT_BRIGHTEST, f"false marks an image, {MINUS}"] == "-1.000 [-1.000, -1.000]"
    assert found.loc[OWN, "hit rate [95 %]"].low < 0.9  # 30 of 30 are not certainly all


def test_usual_size_is_that_of_the_other_folds():
    boxes = table_of(("a", 0, 0, 0.1, 0.2), ("b", 0.5, 0.5, 0.8, 0.9), ("c", 0, 0, 0.5, 0.6))
    sizes = median_sizes(boxes, pd.Series({"a": 0, "b": 1, "c": 1, "healthy": 2}))
    assert sizes[0].tolist() == pytest.approx([0.4, 0.5]) and sizes[1].tolist() == pytest.approx([0.1, 0.2])
    assert sizes[2].tolist() == pytest.approx([0.3, 0.4])
    assert median_sizes(boxes, pd.Series({"a": 0, "b": 0, "c": 0}))[0].tolist() == pytest.approx([0.3, 0.4])
