"""Checks that pass, fail, die and hang, for tests of what runs them."""

import math
import os
import signal
import time
import warnings

from benchmarks.gpu_check.check import Check, CheckError, Skipped

HERE = "tests.benchmarks.gpu_check_plan"
PLAN = (
    (
        Check("passes", "it passes", f"{HERE}:passes", argument="given"),
        Check("fails", "it fails", f"{HERE}:fails", "Mend it."),
        Check("after-failure", "another process runs it", f"{HERE}:process"),
    ),
    (
        Check("dies", "it dies", f"{HERE}:dies"),
        Check("hangs", "it hangs", f"{HERE}:hangs", limit_s=1.0),
        Check("skips", "it skips", f"{HERE}:skips"),
        Check("after-skip", "the same process runs it", f"{HERE}:process"),
    ),
)


def passes(work, argument):
    (work / "made").write_text(argument, encoding="utf-8")
    warnings.warn("mind this", stacklevel=1)
    return {"argument": argument, "ratio": math.inf}


def fails(work):
    raise CheckError(f"It found {(work / 'made').read_text(encoding='utf-8')}.", {"measured": 3})


def process(work):
    return {"process": os.getpid()}


def dies(work):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(work):
    time.sleep(60)


def skips(work):
    raise Skipped("There is nothing to check.", {"process": os.getpid()})
