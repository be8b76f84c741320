"""Facts about the pointing game: what hits, what it is compared with, and how sure the difference is."""

import numpy as np
import pandas as pd
import pytest

from tests.helpers import TINY
from utils.evaluation.pointing import (
    BRIGHTEST,
    MIDDLE,
    OTHERS,
    OWN,
    RANDOM,
    RANDOM_POINTS,
    Landmarks,
    find_landmarks,
    play_pointing_game,
    pointing_table,
    read_landmarks,
    strongest_place,
)
from utils.images.boxes import to_picture
from utils.images.cached import read_manifest
from utils.phantom.competition import BOXES_FILE
from utils.tables.boxes import CORNERS, read_boxes

UPPER_RIGHT = {"image_id": "a", "x_min": 0.5, "y_min": 0.0, "x_max": 1.0, "y_max": 0.5}
IN_IT, BESIDE_IT = (0.75, 0.25), (0.25, 0.75)
SHARE = "in a true box [95 %]"
QUARTERS = np.array([[x, y] for x in (0.25, 0.75) for y in (0.25, 0.75)])


def boxes_of(*image_ids):
    return pd.DataFrame([UPPER_RIGHT | {"image_id": name} for name in image_ids])


def landmarks_of(*image_ids, brightest=BESIDE_IT, middle=BESIDE_IT, spread=QUARTERS):
    return dict.fromkeys(image_ids, Landmarks(brightest, middle, spread))


def spot(y, x, shape=(4, 4)):
    heat = np.zeros(shape, dtype=np.float32)
    heat[y, x] = 1
    return heat


def test_points_hit_in_any_of_their_images_boxes_and_empty_maps_miss():
    places = {"a": IN_IT, "b": BESIDE_IT, "c": None, "without a box": IN_IT}
    boxes = pd.concat([boxes_of("a", "b", "c", "without a map"), boxes_of("b").assign(x_min=0.0, x_max=0.1)])
    patients = pd.Series({"a": "1", "b": "2", "c": "3"})
    hits = play_pointing_game(places, landmarks_of("a", "b", "c", brightest=IN_IT), boxes, patients)
    assert hits.index.tolist() == ["a", "b", "c"] and hits.patient_id.tolist() == ["1", "2", "3"]
    assert hits[OWN].tolist() == [1, 0, 0]
    assert hits[OTHERS].tolist() == [0, 0.5, 0.5]  # b's and c's map on a's boxes, and so on
    assert hits[[BRIGHTEST, MIDDLE, RANDOM]].iloc[0].tolist() == [1, 0, 0.25]


def test_edges_of_a_box_are_half_open():
    for place, hit in {(0.5, 0.0): 1, (0.5, 0.5): 0, (1.0, 0.25): 0}.items():
        found = play_pointing_game({"a": place}, landmarks_of("a"), boxes_of("a"), pd.Series({"a": "1"}))
        assert found[OWN].tolist() == [hit]


def test_map_of_the_same_patient_is_no_other_map():
    patients = pd.Series({"a": "1", "b": "1", "c": "2"})
    places = {"a": IN_IT, "b": IN_IT, "c": BESIDE_IT}
    hits = play_pointing_game(places, landmarks_of(*"abc"), boxes_of(*"abc"), patients)
    assert hits[OTHERS].tolist() == [0, 0, 1]
    alone = play_pointing_game({"a": IN_IT}, landmarks_of("a"), boxes_of("a"), patients)
    row = pointing_table(alone).loc[OTHERS]
    assert alone[OTHERS].isna().all() and row["images"] == 0 and str(row[SHARE]) == "undefined"


def test_game_without_boxes_is_undefined():
    hits = play_pointing_game({"a": IN_IT}, landmarks_of("a"), boxes_of("another"), pd.Series({"a": "1"}))
    assert hits.empty and str(pointing_table(hits)[SHARE][OWN]) == "undefined"


def test_intervals_are_over_patients_and_differences_are_paired():
    rng = np.random.default_rng(0)
    by_patient = rng.random(40) < 0.5
    table = pd.DataFrame({"patient_id": np.repeat(np.arange(40), 25).astype(str), OWN: np.repeat(by_patient, 25).astype(float)})
    table[BRIGHTEST] = np.where(np.arange(1000) % 25 == 0, 0, table[OWN])  # one hit less for each patient with hits
    found = pointing_table(table)
    share = found[SHARE][OWN]
    assert share.value == by_patient.mean()
    # 1,000 images of 40 patients who are found or not as wholes: as sure as 40 images
    assert share.high - share.low == pytest.approx(2 * 1.96 * np.sqrt(share.value * (1 - share.value) / 40), rel=0.1)
    sign, low, high = found.loc[BRIGHTEST, f"{OWN} minus it"].replace("[", "").replace("]", "").replace(",", "").split()
    assert float(sign) == pytest.approx(by_patient.mean() / 25, abs=1e-3)
    assert float(low) > 0 and float(high) < 0.04 and found.loc[BRIGHTEST, f"{OWN} is"] == "better"


def test_share_of_all_or_none_is_not_certain():
    table = pd.DataFrame({"patient_id": list("abcdef") * 2, OWN: 1.0, BRIGHTEST: 0.0})
    found = pointing_table(table)[SHARE]
    assert (found[OWN].value, found[OWN].high) == (1, 1) and found[OWN].low == pytest.approx(1 / (1 + 1.96**2 / 6), abs=1e-3)
    assert (found[BRIGHTEST].value, found[BRIGHTEST].low) == (0, 0) and found[BRIGHTEST].high > 0.3


def test_strongest_place_of_a_plateau_is_its_middle_and_never_between_two():
    heat = np.zeros((4, 8), dtype=np.float32)
    heat[0:2, 0:4] = 1
    assert strongest_place(heat) == (0.25, 0.25)
    heat[3, 7] = 1
    assert strongest_place(heat) == (0.25, 0.25)
    assert strongest_place(np.zeros((4, 8), dtype=np.float32)) is None


def test_landmarks_are_the_bright_spot_the_middle_and_points_all_over_the_breast():
    picture = np.zeros((100, 60), np.uint8)
    picture[20:80, :40] = 90
    picture[60:68, 10:18] = 250
    found = find_landmarks(picture)
    assert found.brightest == pytest.approx((14 / 60, 64 / 100), abs=0.02)
    assert found.middle == pytest.approx((20 / 60, 50 / 100), abs=0.05)
    assert found.spread.shape == (RANDOM_POINTS, 2)
    x, y = found.spread.T * [[60], [100]]
    assert (x < 43).all() and (y > 17).all() and (y < 83).all()
    assert (x.mean(), y.mean()) == (pytest.approx(20, abs=2), pytest.approx(50, abs=2))


def test_picture_without_a_breast_has_landmarks_too():
    found = find_landmarks(np.zeros((20, 10), np.uint8))
    assert found.brightest == found.middle == (0.5, 0.5) and len(found.spread) == 200


def test_maps_drawn_from_the_truth_win_and_those_of_others_lose(competition, images, cache_dir):
    boxes = to_picture(read_boxes(competition / BOXES_FILE), read_manifest(cache_dir, "train", TINY), TINY)
    places = {}
    for image_id, group in boxes.groupby("image_id"):
        x_min, y_min, x_max, y_max = group[CORNERS].iloc[0]
        places[image_id] = strongest_place(spot(int((y_min + y_max) * 32), int((x_min + x_max) * 24), (64, 48)))
    patients = images.set_index("image_id").patient_id
    hits = play_pointing_game(places, read_landmarks(list(places), cache_dir), boxes, patients)
    table = pointing_table(hits)
    shares = {kind: interval.value for kind, interval in table[SHARE].items()}
    assert shares[OWN] == 1 and (table.images == len(places)).all()
    assert shares[OTHERS] < 0.7 and 0 < shares[RANDOM] < 0.3
    assert all(interval.low <= interval.value <= interval.high for interval in table[SHARE])
    assert table.loc[RANDOM, f"{OWN} is"] == "better"
