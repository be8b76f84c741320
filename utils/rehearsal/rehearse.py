"""Rehearse a submission: run submit.ipynb on a phantom hidden test in a copy of Kaggle's world.

``python -m utils.rehearsal`` prints a report and exits with an error if anything would fail on Kaggle.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nbformat
import pandas as pd
import torch

from utils.core.errors import KitError
from utils.core.files import read_json, write_atomic, write_json
from utils.core.folders import KAGGLE_INPUT, resolve
from utils.rehearsal.projection import (
    CORES,
    HIDDEN_IMAGES,
    HIDDEN_PATIENTS,
    LIMIT_HOURS,
    Hardware,
    decode_seconds,
    describe_hardware,
    project,
    project_preprocessing,
    with_decode,
)
from utils.rehearsal.stage import FACTS, OUT, Options, Stage, picture_sizes, set_up
from utils.rehearsal.world import TIMED_OUT, Seen, World, isolation, run_in_world
from utils.submission.draft import SubmissionError, validate_submission
from utils.tables.competition import read_sample_submission

SAVED = ("submit.ipynb", "submission.csv", "rehearsal.json")
PHANTOM_FILES, REAL_FILES = "the phantom's files", "files of the real sizes"
GIGABYTE, MEGABYTE = 10**9, 10**6


@dataclass(frozen=True)
class Report:
    """A rehearsal's result, and the content of rehearsal.json."""

    problems: list[str]  # empty if all went well
    finished: bool
    hours: dict[str, float]  # projected, by stage and in total, and Kaggle's limit
    once_seconds: float
    seconds_per_image: dict[str, float]  # by stage, on the phantom's files
    seconds: float
    decode_hours: dict[str, float]  # by the kind of files; ``hours`` has the longer
    preprocessing_hours: float | None  # two processes, files of the real sizes
    picture_sizes: list[str]
    peaks: dict[str, int]  # bytes
    unpredicted: list[str]  # prediction_ids that got the prior
    unreadable: list[str]  # those that should get it
    proofs: dict[str, str]
    isolated: bool
    hardware: Hardware
    python: str
    images: int
    patients: int


def rehearse(options: Options) -> Report:
    """Run submit.ipynb as Kaggle would, and return and save the report of `describe`.

    Raise KitError if it can't begin (no namespaces, no wheels, unfinished runs); a former report then stays.
    """
    if options.isolated:
        isolation()  # before minutes of preparation
    options.out.mkdir(parents=True, exist_ok=True)
    # Not in /tmp, which may be small, and which the world replaces.
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".world-") as scratch:
        stage = set_up(options, Path(scratch))
        for name in SAVED:
            (options.out / name).unlink(missing_ok=True)
        before = list_files(stage.input)
        world = World(stage.input, stage.results, stage.python, options.isolated)
        seen = run_in_world(world, papermill_command(stage), 3600 * (options.time_budget_hours or LIMIT_HOURS))
        full_sized = None
        if options.full_sized and _read_provenance(stage.results):
            print("Measuring preprocessing alone, on files of the real sizes ...", flush=True)
            full_sized = project_preprocessing(stage.folder / "full-sized")
        report = describe(options, stage, seen, full_sized)
        if list_files(stage.input) != before:
            report = replace(report, problems=[*report.problems, "The input was changed."])
        _save(stage, options.out)
    write_json(options.out / "rehearsal.json", asdict(report))
    return report


def papermill_command(stage: Stage) -> list[str]:
    """Return the command that executes the notebook with the world's Python."""
    notebooks = [str(stage.results / name) for name in ("asked.ipynb", "submit.ipynb")]
    papermill = [str(stage.python.executable), "-m", "papermill", "--kernel", "python3"]
    quiet = ["--no-progress-bar", "--log-output", "--log-level", "WARNING"]  # the executed notebook contains all output
    return [*papermill, *quiet, *stage.parameters, *notebooks]


def list_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of everything in a folder, by relative path."""
    paths = {str(path.relative_to(folder)): path.stat() for path in sorted(folder.rglob("*"))}
    return {name: (found.st_size, found.st_mtime_ns) for name, found in paths.items()}


# Report
# ------


def describe(options: Options, stage: Stage, seen: Seen, full_sized: float | None = None) -> Report:
    """Compare the results with what they should be.

    ``full_sized`` is from `project_preprocessing`, in seconds.
    """
    provenance = _read_provenance(stage.results)
    images = stage.hidden.images
    hardware = describe_hardware()
    sizes = picture_sizes(stage.runs)
    stages = provenance.get("stages") or {"total": {"seconds": seen.seconds}}
    small = project(stages, images, overlaps=torch.cuda.is_available())
    real = decode_seconds(full_sized, len(sizes), hardware.cores) if full_sized else 0.0
    projection = with_decode(small, real)
    hours = _hours(projection.by_stage | {"total": projection.total})
    problems = [*_world_problems(options, stage, seen), *_submission_problems(stage, provenance)]
    if provenance and hours["total"] > LIMIT_HOURS:  # only a finished notebook has provenance
        problems.append(f"On hardware like this it would take {hours['total']:.1f} hours, more than Kaggle's {LIMIT_HOURS:g}.")
    return Report(
        problems=problems,
        finished=bool(provenance),
        hours=hours | {"limit": LIMIT_HOURS},
        once_seconds=projection.once,
        seconds_per_image={name: spent / small.images for name, spent in small.by_stage.items()},
        seconds=seen.seconds,
        decode_hours=_hours({PHANTOM_FILES: small.by_stage.get("decode"), REAL_FILES: real}),
        preprocessing_hours=full_sized / 3600 if full_sized else None,
        picture_sizes=sizes,
        peaks=seen.peaks,
        unpredicted=provenance.get("unpredicted", []),
        unreadable=list(stage.hidden.unreadable),
        proofs=seen.proofs,
        isolated=options.isolated,
        hardware=hardware,
        python=stage.python.version,
        images=images,
        patients=options.patients,
    )


def _hours(seconds: dict[str, float | None]) -> dict[str, float]:
    """Convert seconds to hours, and drop what was not measured."""
    return {name: spent / 3600 for name, spent in seconds.items() if spent}


def _read_provenance(results: Path) -> dict:
    paths = sorted((results / "submissions").glob("*.json"))
    return read_json(paths[-1]) if paths else {}


def _world_problems(options: Options, stage: Stage, seen: Seen) -> Iterator[str]:
    if seen.exit_status == TIMED_OUT:
        yield "submit.ipynb exceeded its time and was stopped: submission.csv is its last draft."
    elif seen.exit_status:
        yield f"submit.ipynb failed: see the last cells of {options.out / 'submit.ipynb'}."
    for what, error in seen.proofs.items():
        if not error:
            yield f"The world is not isolated: {what} was reachable."
    facts = _read_facts(stage.results / "submit.ipynb")
    home = stage.results / "working" if not options.isolated else KAGGLE_INPUT
    if facts and not Path(facts["utils"]).is_relative_to(home):
        yield f"The code came from {facts['utils']}, not from the attached dataset."
    if facts and facts["python"] != str(stage.python.executable):
        yield f"The kernel was {facts['python']}, not the world's Python."


def _read_facts(notebook: Path) -> dict:
    """Read the facts that the last cell printed; empty if the notebook did not reach it (see exit_status)."""
    if not notebook.is_file():
        return {}
    outputs = nbformat.read(notebook, as_version=4).cells[-1].get("outputs", [])
    lines = [line for output in outputs for line in output.get("text", "").splitlines()]
    return next((json.loads(line.removeprefix(FACTS)) for line in lines if line.startswith(FACTS)), {})


def _submission_problems(stage: Stage, provenance: dict) -> Iterator[str]:
    path = stage.results / "submission.csv"
    if not path.is_file():
        yield "There is no submission.csv."
        return
    try:
        submission = pd.read_csv(path, dtype={"prediction_id": str})
        validate_submission(submission, read_sample_submission(stage.hidden.folder))
    except (SubmissionError, ValueError) as error:
        yield str(error)
    unpredicted, unreadable = set(provenance.get("unpredicted", [])), set(stage.hidden.unreadable)
    if not provenance:
        yield "There is no provenance: submission.csv is a draft, because the notebook did not finish."
    elif unpredicted != unreadable:
        lost, invented = sorted(unpredicted - unreadable), sorted(unreadable - unpredicted)
        yield f"Readable breasts got the prior: {lost or 'none'}; unreadable ones got a prediction: {invented or 'none'}."


def _save(stage: Stage, out: Path) -> None:
    for name in SAVED:
        if (stage.results / name).is_file():
            with write_atomic(out / name) as temporary:
                shutil.copyfile(stage.results / name, temporary)


def text_of(report: Report) -> str:
    """Return the report as text for a terminal."""
    peaks, hardware = report.peaks, report.hardware
    lines = [
        f"Measured on {report.images} images of {report.patients} patients with {hardware.cores} cores of"
        f" {hardware.cpu} (load {hardware.load}), GPU: {hardware.gpus}, Python {report.python}.",
        *(_projection_lines(report) if report.finished else ["The notebook did not finish, so nothing is projected."]),
    ]
    lines.append(f"Peak memory {peaks['memory'] / GIGABYTE:.2f} GB (all processes){_disk_text(report)}.")
    lines.append(_prior_text(report.unpredicted, report.unreadable))
    lines += [f"Isolated from: {what} ({error})" for what, error in report.proofs.items() if error]
    if not report.isolated:
        lines.append("NOT ISOLATED: network, this machine's folders and all its packages were reachable; no wheel was tried.")
    verdict = [f"PROBLEM: {problem}" for problem in report.problems]
    return "\n".join([*lines, *(verdict or ["The rehearsal succeeded."])])


def _projection_lines(report: Report) -> list[str]:
    hours, each, decode = report.hours, report.seconds_per_image, report.decode_hours
    measured = {name: spent * HIDDEN_IMAGES / 3600 for name, spent in each.items()}
    columns = {"seconds an image": each, f"hours for {HIDDEN_IMAGES:,} images": measured}
    lines = [
        "Measured on the phantom's small files; with few of them, process start-up counts too much:",
        pd.DataFrame(columns).round(3).to_string(),
    ]
    if report.preprocessing_hours is not None:
        sizes = " and ".join(report.picture_sizes)
        lines += [
            f"Measured on files of the real sizes: {CORES} processes decode {HIDDEN_IMAGES:,} to 1024 x 512 in"
            f" {report.preprocessing_hours:.2f} hours.",
            f"That is {decode[REAL_FILES]:.2f} hours on this machine's {report.hardware.cores} cores, assuming the same time"
            f" at the image size {sizes} of these runs.",
        ]
    longer = f" with the decoding time of {max(decode, key=decode.get)}, the longer one," if len(decode) > 1 else ""
    return [
        *lines,
        f"Projected for {HIDDEN_PATIENTS:,} patients,{longer} including {report.once_seconds:.0f} seconds of start-up:"
        f" {hours['total']:.2f} hours; Kaggle's limit is {hours['limit']:g}.",
    ]


def _prior_text(unpredicted: list[str], unreadable: list[str]) -> str:
    names = " ".join(unpredicted)
    if set(unpredicted) == set(unreadable):
        return f"{len(unpredicted)} breasts got the prior as expected, because they were made unreadable ({names})."
    return f"{len(unpredicted)} breasts got the prior: {names}"


def _disk_text(report: Report) -> str:
    if not report.isolated:
        return ""
    working, tmp = (report.peaks[name] / MEGABYTE for name in ("working", "tmp"))
    return f"; peak disk {working:.1f} MB in /kaggle/working, {tmp:.1f} MB in /tmp"


def _saved_text(out: Path) -> str:
    saved = [name for name in SAVED if (out / name).is_file()]
    return f"In {out}: {', '.join(saved)} (the notebook as it ran, its CSV, this report)."


def _options() -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m utils.rehearsal", description="Rehearse submit.ipynb in a copy of Kaggle's world."
    )
    parser.add_argument("--patients", type=int, default=12, help="of the phantom hidden test, at least 3")
    parser.add_argument("--height", type=int, default=256, help="nominal rows of its images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--runs", type=_paths, default=(), help="run folders, separated by commas; else yours, the demo's, or a small one"
    )
    parser.add_argument("--threshold", type=Path, help="threshold.json of the runs; tuned if there is none")
    parser.add_argument(
        "--python", type=_absolute, default=Path(sys.executable), help="an interpreter that has Kaggle's packages"
    )
    parser.add_argument("--out", type=resolve, default=OUT)
    parser.add_argument("--time-budget-hours", type=float, default=0.0)
    parser.add_argument("--unisolated", dest="isolated", action="store_false", help="for systems that do not allow namespaces")
    parser.add_argument("--no-full-size", dest="full_sized", action="store_false", help="do not measure preprocessing alone")
    return Options(**vars(parser.parse_args()))


def _paths(names: str) -> tuple[Path, ...]:
    return tuple(Path(name) for name in names.split(",") if name)


def _absolute(path: str) -> Path:
    return Path.cwd() / path  # not resolved: a virtual environment's Python is a link out of it


def main() -> int:
    """Rehearse from the command line; return 0, 1 if anything would fail on Kaggle, or 2 if it can't begin."""
    try:
        options = _options()
        report = rehearse(options)
    except KitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"\n{text_of(report)}\n{_saved_text(options.out)}")
    return int(bool(report.problems))
