"""Facts about mapping a function over items."""

import math
import os
import pickle
from collections import Counter

import cv2
import numpy as np
import pytest

from utils.core import progress
from utils.core.parallel import Outcome, StopRunError, map_items

here_or_in_processes = pytest.mark.parametrize("num_workers", [0, 1, 2])


def run(function, items, num_workers: int = 0) -> list[Outcome]:
    return list(map_items(function, items, num_workers, "testing", "item"))


def reciprocal(item: int) -> float:
    return 1 / item


def fail_on_path(item: int):
    raise FileNotFoundError(item)


def stop_at_three(item: int) -> int:
    if item == 3:
        raise StopRunError("the disk is full")
    return item


def threads_and_process(item: int) -> tuple[int, int, str | None]:
    return os.getpid(), cv2.getNumThreads(), os.environ.get("OMP_NUM_THREADS")


@here_or_in_processes
def test_every_item_comes_back_once_with_its_value(num_workers):
    outcomes = run(math.sqrt, [1, 4, 4, 9, 16], num_workers)
    assert Counter((o.item, o.value, o.error) for o in outcomes) == {
        (1, 1.0, ""): 1,
        (4, 2.0, ""): 2,
        (9, 3.0, ""): 1,
        (16, 4.0, ""): 1,
    }


@here_or_in_processes
def test_error_is_kept_with_its_item_and_does_not_end_the_run(num_workers):
    outcomes = {o.item: o for o in run(reciprocal, [2, 0, 4], num_workers)}
    assert outcomes[0] == Outcome(0, None, "ZeroDivisionError: division by zero")
    assert outcomes[2] == Outcome(2, 0.5)
    assert outcomes[4] == Outcome(4, 0.25)


@here_or_in_processes
def test_stop_run_ends_the_run(num_workers):
    with pytest.raises(StopRunError, match="the disk is full"):
        run(stop_at_three, list(range(6)), num_workers)


def test_nothing_runs_after_a_stop():
    ran = []

    def record(item):
        ran.append(item)
        return stop_at_three(item)

    with pytest.raises(StopRunError):
        run(record, list(range(6)))
    assert ran == [0, 1, 2, 3]


def test_no_workers_means_this_process():
    assert [o.value[0] for o in run(threads_and_process, [1, 2], 0)] == [os.getpid()] * 2


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_are_other_processes(num_workers):
    assert os.getpid() not in {o.value[0] for o in run(threads_and_process, [1, 2], num_workers)}


def test_two_workers_use_one_blas_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {o.value[2] for o in run(threads_and_process, [1, 2], 2)} == {"1"}


def test_two_workers_use_one_opencv_thread_each():
    assert {o.value[1] for o in run(threads_and_process, [1, 2], 2)} == {1}


@here_or_in_processes
def test_no_items_give_no_outcomes(num_workers):
    assert run(reciprocal, [], num_workers) == []


def test_value_none_is_no_error():
    assert run({1: None}.get, [1]) == [Outcome(1, None, "")]


def test_error_without_a_message_still_counts_as_one():
    class SilentError(Exception):
        pass

    def fail(item):
        raise SilentError

    assert run(fail, ["a"]) == [Outcome("a", None, "SilentError: ")]


def test_error_names_its_class_and_message():
    assert run(fail_on_path, ["a.dcm"])[0].error == "FileNotFoundError: a.dcm"


def test_keyboard_interrupt_is_not_swallowed():
    def interrupt(item):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupt, [1])


def test_outcomes_come_while_the_work_goes_on():
    done = []
    outcomes = map_items(lambda item: done.append(item), [1, 2, 3], 0, "testing", "item")
    next(outcomes)
    assert done == [1]
    outcomes.close()


@here_or_in_processes
def test_arrays_survive_the_way_back(num_workers):
    outcomes = {o.item: o.value for o in run(np.ones, [3, 5], num_workers)}
    np.testing.assert_array_equal(outcomes[5], np.ones(5))


@pytest.fixture
def watched(monkeypatch):
    """A stderr that somebody watches: in a log, such short work leaves no line."""
    monkeypatch.setattr(progress, "_is_watched", lambda: True)


def test_progress_names_the_work_and_counts_items_and_errors(watched, capsys):
    run(reciprocal, [1, 0, 2, 0])
    shown = capsys.readouterr().err
    assert "testing" in shown
    assert "4/4" in shown
    assert "errors=2" in shown
    assert "item/s" in shown


def test_progress_is_silent_without_items(watched, capsys):
    run(reciprocal, [])
    assert capsys.readouterr().err == ""


def test_outcome_survives_pickling():
    assert pickle.loads(pickle.dumps(Outcome("a", 1, ""))) == Outcome("a", 1, "")
