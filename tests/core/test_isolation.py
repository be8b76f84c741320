"""Facts about isolated processes: one that dies is replaced, whatever it did."""

import os
import signal
import sys
import time

import pytest

from utils.core import isolation
from utils.core.isolation import IsolatedPool, IsolationError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")


def identity(_):
    return os.getpid()


@pytest.mark.parametrize("seconds", [0.0, 0.5])  # before and after pebble notices
def test_process_that_dies_while_it_is_idle_is_replaced(seconds):
    with IsolatedPool(1) as pool:
        first = pool.call(identity, None)
        os.kill(first, signal.SIGKILL)
        time.sleep(seconds)
        second = pool.call(identity, None)
        assert second != first and pool.call(identity, None) == second
        assert len(pool._started) == 1  # the dead one is forgotten


def test_call_after_the_end_is_refused_instead_of_waiting_for_ever():
    with IsolatedPool(1) as pool:
        pool.call(identity, None)
    with pytest.raises(IsolationError, match="stopped"):
        pool.call(identity, None)


def test_pool_that_is_stopped_while_a_process_is_replaced_starts_no_other(monkeypatch):
    pool = IsolatedPool(1)
    os.kill(pool.call(identity, None), signal.SIGKILL)
    end = isolation._end
    monkeypatch.setattr(isolation, "_end", lambda broken: (end(broken), monkeypatch.undo(), pool.stop()))
    with pytest.raises(IsolationError, match="stopped"):
        while True:  # until the death is noticed
            pool.call(identity, None)
