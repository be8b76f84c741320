"""The start-up table: what counts as the first useful line, in a real kernel, and how the numbers are shown."""

import pytest

from benchmarks.startup import (
    KERNEL,
    LIMITS,
    NOTEBOOKS,
    PAPERMILL,
    StartupError,
    table,
    time_notebook,
    time_papermill,
)


def test_first_useful_line_is_what_a_notebook_prints_after_its_imports(competition, tmp_path):
    parameters = {"competition_dir": str(competition), "cache_dir": str(tmp_path), "run_dirs": "not of this notebook"}
    kernel_s, waited_s, line = time_notebook("preprocess", parameters)
    assert line.startswith(f"Competition: {competition} (PHANTOM")
    assert kernel_s > 0 and 0 < waited_s < 60


def test_notebook_that_fails_ends_the_measurement(tmp_path):
    with pytest.raises(StartupError, match="does not exist"):
        time_notebook("preprocess", {"competition_dir": str(tmp_path / "nowhere")})


def test_papermill_is_timed_to_its_first_cell(tmp_path):
    assert 0 < time_papermill(tmp_path) < 60


def test_table_has_a_row_for_each_start_with_median_and_spread():
    seconds = {name: [1.0, 4.0, 2.0] for name in (*LIMITS, KERNEL, PAPERMILL)}
    results = {"machine": {"cpus": 2, "cpu": "a CPU"}, "seconds": seconds, "lines": dict.fromkeys(NOTEBOOKS, "Competition")}
    first, _, _, _, *rows = table(results).splitlines()
    assert first == "On 2 CPUs (a CPU): medians of 3 rounds [lowest, highest]."
    assert rows[0] == "| explore | 2.0 [1.0, 4.0] | 3 | Competition |"
    assert rows[2] == "| train | 2.0 [1.0, 4.0] | 8 | Competition |"
    assert rows[-1] == f"| {PAPERMILL} | 2.0 [1.0, 4.0] | – | – |"
    assert len(rows) == len(seconds)
