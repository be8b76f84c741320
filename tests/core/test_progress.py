"""Facts about progress bars: how often they are drawn."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tqdm.std

from utils.core.progress import progress_bar

UTILS = Path(__file__).resolve().parents[2] / "utils"


class Stream(io.StringIO):
    """A stderr that is a terminal or not."""

    def __init__(self, is_terminal: bool):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def drawn(monkeypatch, seconds: int, is_terminal: bool = False, resumed: int = 0) -> list[str]:
    """What a bar draws that is updated once a second, by a clock that only the updates move."""
    now, stream = [1e9], Stream(is_terminal)
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(None, "Testing", "items", resumed + seconds, initial=resumed) as bar:
        for _ in range(seconds):
            now[0] += 1
            bar.set_postfix(errors=0, refresh=False)
            bar.update()
    return [line for line in re.split(r"[\r\n]+", stream.getvalue()) if line.strip()]


@pytest.mark.parametrize(("seconds", "lines"), [(1, 0), (59, 0), (60, 2), (90, 2), (600, 11), (3599, 60)])
def test_log_gets_a_line_a_minute_and_one_at_the_end(monkeypatch, seconds, lines):
    found = drawn(monkeypatch, seconds)
    assert len(found) == lines
    assert not found or re.match(rf"Testing: 100%.* {seconds}/{seconds} .*items/s", found[-1])


def test_resumed_work_is_counted_from_where_it_resumes(monkeypatch):
    assert re.match(r"Testing:  76%.* 260/340 ", drawn(monkeypatch, 140, resumed=200)[0])


def test_terminal_is_refreshed_each_second(monkeypatch):
    assert len(drawn(monkeypatch, 30, is_terminal=True)) >= 30


@pytest.mark.parametrize("can_answer", [True, False])
def test_notebook_is_watched_if_its_front_end_can_answer(monkeypatch, can_answer):
    """papermill and nbconvert can't, and what they run is read later, as a log."""
    request = {"content": {"allow_stdin": can_answer}}
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda: request))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert (len(drawn(monkeypatch, 30)) >= 30) == can_answer


def test_iterating_draws_no_more_than_updating(monkeypatch):
    now, stream = [1e9], Stream(is_terminal=False)
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress_bar(range(300), "Testing", "items"):
        now[0] += 1
    assert stream.getvalue().count("Testing") == 6


def test_every_bar_is_made_here():
    makers = [path.name for path in UTILS.rglob("*.py") if re.search(r"\btqdm\(|\btrange\(", path.read_text("utf-8"))]
    assert makers == ["progress.py"]
