"""Facts about the number of CPU cores."""

import multiprocessing
import os

import pytest

from utils.core.devices import cpu_count


@pytest.mark.parametrize("cores", [{0}, {3, 5, 6}])
def test_cpu_count_is_what_this_process_may_use(monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cpu_count() == len(cores)


@pytest.mark.parametrize("reported, expected", [(6, 6), (None, 1)])
def test_cpu_count_without_affinity_is_the_machines_or_one(monkeypatch, reported, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: reported)
    assert cpu_count() == expected


def test_cpu_count_is_between_one_and_the_machines():
    assert 1 <= cpu_count() <= multiprocessing.cpu_count()
