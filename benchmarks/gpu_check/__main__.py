"""Checks that the kit works on this machine's GPU, and measures how fast it trains there, in at most 8 minutes.

``make gpu-check``, or ``python -m benchmarks.gpu_check [--only NAME,NAME] [--out outputs/gpu-check]`` from the project's root,
prints one page and writes it to ``gpu_check.md``. ``gpu_check.json`` has the same figures, and ``gpu_check.log`` everything
that the checks printed. The exit code is 1 if a check failed, or was not run as time was up.

Without a GPU, everything runs at toy size on the CPU: this takes two minutes, and tests the checks, not a GPU.
`benchmarks.gpu_check.plan` lists the checks.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.gpu_check.harness import run_plan
from benchmarks.gpu_check.page import DEVICE, make_page
from benchmarks.gpu_check.plan import PLAN
from utils.core.files import write_atomic

BUDGET_S = 480.0


def main() -> None:
    """Run the checks, print the page and write it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", default="", help="names of checks with commas between; empty for all")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-check"))
    given = parser.parse_args()
    only = [name.strip() for name in given.only.split(",") if name.strip()]
    unknown = set(only) - {check.name for group in PLAN for check in group}
    if unknown:
        parser.error(f"there is no check {', '.join(sorted(unknown))}")
    report = run_plan("benchmarks.gpu_check.plan", given.out, BUDGET_S, only and [DEVICE, *only])
    page = make_page(report)
    with write_atomic(given.out / "gpu_check.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"\n{page}\nWritten to {given.out}.")
    sys.exit(any(result["status"] in ("failed", "not run") for result in report["results"]))


if __name__ == "__main__":
    main()
