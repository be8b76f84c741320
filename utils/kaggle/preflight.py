"""What will break later, found in seconds before the heavy work: all problems at once, each with its remedy.

It runs before a notebook's other imports, and may install what they need: so neither it nor its checks import more than NumPy
at their top.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from utils.core import environment
from utils.core.environment import KitError, cpu_count, on_kaggle, working_dir
from utils.core.parameters import Parameters
from utils.kaggle.preflight_data import check_cache, check_images, check_tables, check_true_boxes
from utils.kaggle.preflight_job import GIGABYTE, Check, Finding, Job
from utils.kaggle.preflight_machine import check_device, check_disk, check_hub, check_memory, existing, free_memory, gpus
from utils.kaggle.preflight_packages import check_packages, check_python
from utils.kaggle.preflight_runs import check_preprocessing, check_runs, check_threshold, check_weights, check_weights_file
from utils.kaggle.preflight_training import (
    check_boxes,
    check_configuration,
    check_extra_sets,
    check_folds,
    check_network,
    check_run_folder,
    check_services,
    check_shared_memory,
    check_shares,
    check_start,
)
from utils.kaggle.preflight_values import check_output, check_values

# Packages early: later checks import them.
MACHINE = (check_python, check_packages, check_values, check_disk, check_output, check_memory)
DATA = (check_tables, check_images, check_cache)
TRAINING = (
    check_configuration,
    check_shares,
    check_shared_memory,
    check_network,
    check_weights_file,
    check_start,
    check_hub,
    check_services,
    check_run_folder,
    check_boxes,
    check_extra_sets,
    check_folds,
)
CHECKS: dict[str, tuple[Check, ...]] = {
    "explore": (*MACHINE, *DATA),
    "preprocess": (*MACHINE, *DATA),
    "train": (*MACHINE, check_device, *DATA, *TRAINING),
    "tune_threshold": (*MACHINE, check_runs),
    "report": (*MACHINE, check_device, check_tables, check_true_boxes, check_runs, check_weights, check_threshold),
    "submit": (*MACHINE, check_device, *DATA, check_runs, check_weights, check_preprocessing, check_threshold),
}


class PreflightError(KitError):
    """Everything that would make the notebook fail later, numbered, each with its remedy."""


def preflight(notebook: str, parameters: Parameters) -> None:
    """Check what will break later; print what was found, and warnings with their remedies.

    Parameters
    ----------
    notebook : str
        A key of `CHECKS`.
    parameters : Parameters
        Of the notebook, from `utils.core.parameters.read_parameters`.

    Raises
    ------
    PreflightError
        Listing all fatal problems, if there are any.
    """
    job = Job.of(notebook, parameters)
    # Each once: several checks may meet the same problem.
    findings = list(dict.fromkeys(finding for check in CHECKS[notebook] for finding in _findings(check, job)))
    for line in _description(job):  # after the checks, which may have installed what it names
        print(line)
    for finding in findings:
        if not finding.fatal:
            print(f"Warning: {finding}")
    fatal = [finding for finding in findings if finding.fatal]
    if fatal:
        listed = [f"{number}. {finding}" for number, finding in enumerate(fatal, start=1)]
        raise PreflightError("\n".join([f"{notebook}.ipynb would fail later. Problems: {len(fatal)}.", *listed]))


def _findings(check: Check, job: Job) -> list[Finding]:
    found = []
    try:
        for finding in check(job):
            found.append(finding)  # what it found before it broke counts
    except KitError as error:  # as the notebook would end
        found.append(Finding(str(error), ""))
    except Exception as error:  # a check must not be what breaks the notebook
        problem = f"{check.__name__} could not be made ({type(error).__name__}: {error})."
        found.append(Finding(problem, "none, unless the notebook fails too: then begin here.", fatal=False))
    return found


def _description(job: Job) -> Iterator[str]:
    yield f"{job.notebook}.ipynb, " + ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    folder, memory = working_dir(), free_memory()
    free = "" if memory is None else f"{memory / GIGABYTE:.1f} GB of memory and "
    disk = shutil.disk_usage(existing(folder)).free / GIGABYTE
    device = gpus() if check_device in CHECKS[job.notebook] else "no GPU needed"
    yield f"{cpu_count()} CPU cores, {device}; free: {free}{disk:.1f} GB of disk in {folder}"
    if on_kaggle():
        inputs = [path for depth in ("*", "competitions/*", "datasets/*/*") for path in environment.KAGGLE_INPUT.glob(depth)]
        yield f"Mounted: {', '.join(str(path) for path in sorted(inputs)) or 'nothing'}"
