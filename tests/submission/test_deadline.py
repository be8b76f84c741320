import itertools

import pytest

from utils.submission import deadline
from utils.submission.deadline import Deadline, Pace, Plan, Work

TWO_SIZES = [Work(((3, True), (2, False))), Work(((3, False),))]


def measured(overlaps=False, works=TWO_SIZES, decode=0.1, predict=0.07):
    """A pace that knows its rates: one picture size takes 0.1 s to decode and 0.07 s for its 7 or 3 passes."""
    pace = Pace(works, overlaps)
    for variant in range(len(works)):
        pace.measured(variant, pace.full, images=10, decode=10 * decode, predict=10 * predict)
    return pace


def test_mirror_images_go_first_then_folds_then_picture_sizes():
    plans = list(Pace(TWO_SIZES, False).full.lesser())
    assert plans == [Plan(True, 3, 2), Plan(False, 3, 2), Plan(False, 2, 2), Plan(False, 1, 2), Plan(False, 1, 1)]


def test_every_lesser_plan_takes_less_time():
    pace = measured()
    seconds = [pace.seconds_per_image(plan) for plan in pace.full.lesser()]
    assert all(more > less for more, less in itertools.pairwise(seconds))
    assert seconds[0] == pytest.approx(0.1 + 0.07 + 0.1 + 0.07)
    assert seconds[-1] == pytest.approx(0.1 + 0.07 / 8 * 2)  # of 3 * 2 + 2 passes, one for each run is left


def test_fullest_plan_that_fits_is_chosen():
    pace = measured()
    for plan in pace.full.lesser():
        seconds = 1000 * pace.seconds_per_image(plan)
        assert pace.choose(1000, seconds * 1.0001) == plan
    assert pace.choose(1000, 1.0) == plan == Plan(False, 1, 1)  # the least where none fits
    assert pace.choose(1000, float("inf")) == pace.full


def test_nothing_is_left_out_before_anything_is_measured():
    pace = Pace(TWO_SIZES, False)
    assert pace.choose(10**6, 1.0) == pace.full


def test_slower_of_decoding_and_predicting_decides_where_they_overlap():
    pace = measured(overlaps=True)
    assert pace.seconds_per_image(pace.full) == pytest.approx(0.2)
    assert pace.choose(1000, 199) == Plan(True, 3, 1)  # fewer passes would not help, fewer decodings do


def test_time_that_a_left_out_picture_size_frees_goes_to_the_others():
    pace = measured(decode=0.3)
    assert pace.seconds_per_image(Plan(False, 1, 2)) > 0.55 > pace.seconds_per_image(Plan(True, 3, 1))
    assert pace.choose(1000, 550) == Plan(True, 3, 1)


def test_newest_measurement_counts_half():
    pace = measured(works=TWO_SIZES[:1], predict=0)
    pace.measured(0, pace.full, images=1, decode=0.3, predict=0)
    assert pace.seconds_per_image(pace.full) == pytest.approx(0.2)


def test_deadline_keeps_a_reserve_and_has_no_end_without_a_budget(monkeypatch):
    now = iter([0.0, 1800.0, 3500.0])
    monkeypatch.setattr(deadline.time, "monotonic", lambda: next(now))
    hour = Deadline(1.0)
    assert hour.left == pytest.approx(3600 * 0.95 - 1800) and hour.left < 0
    monkeypatch.undo()
    assert Deadline().left == float("inf")
