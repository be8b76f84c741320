"""Preflight of parameters that stand for themselves: their ranges, the names to choose from, and the file that is written."""

from __future__ import annotations

from collections.abc import Iterator

from utils.core.environment import resolve
from utils.kaggle.preflight_job import OUTPUTS, Finding, Job

RANGES = {  # least and most
    "num_workers": (0, 1024),
    "seed": (0, 2**32 - 1),  # NumPy's
    "time_budget_hours": (0, 1000),
    "box_images": (0, 10**6),
}


def check_values(job: Job) -> Iterator[Finding]:
    """Numbers are in their ranges, and names among those to choose from; those of a training are part of its configuration."""
    values = job.parameters.values if job.notebook != "train" else {}
    for name in (name for name in RANGES if name in values):
        least, most = RANGES[name]
        if not least <= values[name] <= most:
            yield Finding(f"{name} is {values[name]}.", f"give a number from {least} to {most}.")
    for name, choices in (_choices() if job.notebook == "tune_threshold" else {}).items():
        if name in values and values[name] not in choices:
            yield Finding(f"{name} is {values[name]!r}.", f"choose from {', '.join(choices)}.")
    if "image_height" in values:
        from utils.images.inputs import picture_settings

        size = values["image_height"], values["image_width"]
        picture_settings(*size, values["exact"], job.is_phantom, job.smoke_test)


def _choices() -> dict[str, tuple[str, ...]]:
    from utils.decision.thresholds import CHOICES
    from utils.runs.oof import AGGREGATIONS

    return {"aggregation": AGGREGATIONS, "choice": tuple(CHOICES)}


def check_output(job: Job) -> Iterator[Finding]:
    """The file that is written at the end is not a folder."""
    if job.output_path and resolve(job.output_path).is_dir():
        yield Finding(f"{OUTPUTS[job.notebook]} {job.output_path} is a folder.", "give the name of a file.")
