"""The process that runs a group's checks: ``python -m benchmarks.gpu_check.worker PLAN WORK REPORT SECONDS NAME...``.

It writes the report after each check, so a crash loses nothing. It ends at the first check that fails: after some errors a GPU
refuses every call of the process, so the next check gets a new process.
"""

import faulthandler
import math
import sys
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_check.check import Check, Skipped
from utils.core.files import write_json

TRACEBACK_LINES = 12


def main() -> None:
    """Run the named checks of a plan."""
    plan, work, report, seconds, *names = sys.argv[1:]
    checks = [check for group in import_module(plan).PLAN for check in group if check.name in names]
    run_checks(checks, Path(work), Path(report), float(seconds))


def run_checks(checks: list[Check], work: Path, report: Path, seconds: float) -> None:
    """Run checks until one fails or time is up; ``running`` in the report is the one in progress."""
    results: list[dict] = []
    ends = time.monotonic() + seconds
    for check in checks:
        left = ends - time.monotonic()
        if left <= 0:
            return
        write_json(report, {"results": results, "running": check.name})
        # Its watching thread needs neither Python's lock nor signals, so it also ends a process that hangs in CUDA.
        faulthandler.dump_traceback_later(min(check.limit_s, left), exit=True)
        results.append(run_check(check, work))
        faulthandler.cancel_dump_traceback_later()
        write_json(report, {"results": results, "running": None})
        if results[-1]["status"] == "failed":
            return


def run_check(check: Check, work: Path) -> dict:
    """Run one check in this process; return its result."""
    result = {"name": check.name, "proves": check.proves, "remedy": check.remedy, "status": "passed", "reason": ""}
    result |= {"numbers": {}, "warnings": [], "traceback": []}
    print(f"--- {check.name}", flush=True)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            module, function = check.function.split(":")
            arguments = (work, check.argument) if check.argument else (work,)
            result["numbers"] = _finite(getattr(import_module(module), function)(*arguments))
        except Skipped as skipped:
            result |= {"status": "skipped", "reason": str(skipped), "numbers": _finite(skipped.numbers)}
        except Exception as error:
            lines = traceback.format_exc().splitlines()
            result |= {"status": "failed", "reason": f"{type(error).__name__}: {error}", "traceback": lines[-TRACEBACK_LINES:]}
            result["numbers"] = _finite(getattr(error, "numbers", {}))
    result["seconds"] = time.perf_counter() - start
    result["warnings"] = sorted({f"{warning.category.__name__}: {_first_line(warning.message)}" for warning in caught})
    print(result["status"], result["reason"], flush=True)
    return result


def _first_line(message: Warning | str) -> str:
    return (str(message).strip().splitlines() or [""])[0]


def _finite(value):
    """Replace numbers that JSON does not know by their text."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
