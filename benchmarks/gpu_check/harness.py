"""Runs a plan's groups of checks in a process each, within a time budget; nothing here imports torch."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_check.check import Check
from benchmarks.gpu_check.worker import TRACEBACK_LINES
from utils.core.files import read_json, write_json
from utils.core.folders import PROJECT

GRACE_S = 10.0  # for a process that does not end by itself when time is up


def run_plan(plan: str, out: Path, budget_s: float, only: list[str] | None = None) -> dict:
    """Run a plan's checks, and write the report to ``gpu_check.json`` in ``out`` after each process.

    Parameters
    ----------
    plan : str
        Module whose ``PLAN`` is a sequence of groups, each a sequence of `Check` that share a process.
    out : Path
    budget_s : float
        Seconds for everything; checks that have not started by then are not run.
    only : list of str, optional
        Names of checks; all if empty.

    Returns
    -------
    dict
        ``seconds``, ``budget_s`` and ``results``, one dictionary per check.
    """
    start = time.monotonic()
    groups = [[check for check in group if not only or check.name in only] for group in import_module(plan).PLAN]
    log = out.resolve() / "gpu_check.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    report: dict = {"seconds": 0.0, "budget_s": budget_s, "results": []}
    with tempfile.TemporaryDirectory() as work:
        for left in filter(None, groups):
            print(f"Running {', '.join(check.name for check in left)} …", flush=True)
            while left:
                seconds = budget_s - (time.monotonic() - start)
                results = _run_process(plan, left, Path(work), seconds, log) if seconds > 0 else _not_run(left)
                left = left[len(results) :]
                report["results"] += results
                report["seconds"] = time.monotonic() - start
                write_json(out / "gpu_check.json", report)
    return report


def _run_process(plan: str, checks: list[Check], work: Path, seconds: float, log: Path) -> list[dict]:
    """Run checks in a new process; return the results of the first ones, at least one."""
    part = work / "report.json"
    part.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check.worker", plan, work, part, seconds]
    ends = time.monotonic() + seconds
    begun = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*map(str, command), *(check.name for check in checks)],
            cwd=PROJECT,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that its own processes end with it
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds + GRACE_S)
        finally:  # also after Ctrl-C, which does not reach a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    found = read_json(part) if part.exists() else {"results": [], "running": checks[0].name}
    results = found["results"]
    if found["running"]:
        text = log.read_bytes()[begun:].decode(errors="replace")
        results.append(_died(checks[len(results)], code, text, is_late=time.monotonic() >= ends))
    return results or _not_run(checks)


def _died(check: Check, code: int, output: str, is_late: bool) -> dict:
    """Return the result of a check whose process ended in the middle of it; ``is_late`` if the time for all checks is up."""
    lines = output.splitlines()
    timeouts = [place for place, line in enumerate(lines) if line.startswith("Timeout (")]  # as faulthandler writes it
    shown = lines[timeouts[-1] :][:TRACEBACK_LINES] if timeouts else lines[-TRACEBACK_LINES:]
    if is_late:
        return _not_run([check])[0] | {"traceback": shown}
    if timeouts:
        reason = f"It did not end within {check.limit_s:g} s."
    else:
        reason = f"Its process died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})."
    return _without_run(check, "failed", reason) | {"traceback": shown}


def _not_run(checks: list[Check]) -> list[dict]:
    return [_without_run(check, "not run", "The time for all checks was up before it ended.") for check in checks]


def _without_run(check: Check, status: str, reason: str) -> dict:
    of_check = {"name": check.name, "proves": check.proves, "remedy": check.remedy}
    return of_check | {"status": status, "reason": reason, "numbers": {}, "warnings": [], "traceback": [], "seconds": 0.0}
