"""Preprocessing side by side: how many images a second the kit and other paths make, and how much memory they take.

``python -m benchmarks.preprocessing [--quick] [--out outputs/bench]`` from the project's root writes results.json,
preprocessing.md and preprocessing.png into the folder. All paths read the very same files, which lie in the page cache, with
as many processes, in rounds of rotated order, so that a noisy machine is as noisy for each of them.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from benchmarks.files import KINDS, bits_per_pixel, first_files, make_files
from benchmarks.report import write_report
from benchmarks.stages import measure_stages
from utils.kaggle.machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ((512, 512), (1024, 512))  # height, width
PATHS = ("kit", "usual", "pydicom", "medip")
ANY_TARGET = ("medip",)  # does not resize: one run serves all targets
WORKERS = 2
ROUNDS = 3
# Files of each kind: more than the fastest path gets through while it is measured; slow ones see the first of the same files.
FILES = {
    "jpeg2000-2776x2082": 480,
    "jpeg-lossless-2776x2082": 240,
    "jpeg2000-5355x4915": 360,
    "jpeg-lossless-5355x4915": 80,
}
QUICK_FILES = 40
SETTLE_S = 1.0  # after the first picture, not measured: by then all processes work
WINDOW_S, QUICK_WINDOW_S = 3.0, 0.5  # measured, or longer if that makes fewer than `DISTINCT` pictures
DISTINCT = 4  # pictures of a kind
MEDIP = "medip[cli,jpeg]==0.2.0"
SAMPLE_S = 0.05
LIMIT_S = 300
PACKAGES = ("numpy", "opencv-python-headless", "pydicom", "imagecodecs", "dicomsdl", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg")


def main() -> None:
    """Measure all paths and write the report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, one target, few files: shows that everything works")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--files", type=Path, help="where the input files are or shall be; OUT/files by default")
    given = parser.parse_args()
    out = given.out.resolve()
    files = (given.files or out / "files").resolve()
    counts = {kind: min(FILES[kind], QUICK_FILES) if given.quick else FILES[kind] for kind in KINDS}
    targets, rounds, window = (TARGETS[:1], 1, QUICK_WINDOW_S) if given.quick else (TARGETS, ROUNDS, WINDOW_S)
    print("Making the input files (once, about a minute) …", flush=True)
    make_files(files, counts)
    runs = measure(files, out, counts, targets, rounds, window, install_medip(out))
    results = {
        "machine": describe_machine(),
        "bits_per_pixel": {kind: bits_per_pixel(files / kind) for kind in KINDS},
        "runs": runs,
        "stages": measure_stages(files, targets),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_report(results, out)
    print((out / "preprocessing.md").read_text(encoding="utf-8"))


def measure(files: Path, out: Path, counts: dict, targets: tuple, rounds: int, window: float, medip: Path | None) -> list[dict]:
    """Run every path on every kind and target, in interleaved rounds; return one row a run."""
    runs = []
    for number, kind in itertools.product(range(rounds), KINDS):
        warm_up(files / kind, counts[kind])
        order = PATHS[number % len(PATHS) :] + PATHS[: number % len(PATHS)]
        for target, path in itertools.product(targets, order):
            if path in ANY_TARGET and target != targets[0]:
                continue
            row = {"round": number, "kind": kind, "target": list(target), "path": path}
            command = path_command(path, files / kind, out / "pictures", target, counts[kind], medip)
            runs.append(row | (run(command, out / "pictures", window) if command else {"error": "not installed"}))
            print(_line(runs[-1]), flush=True)
    return runs


def install_medip(out: Path) -> Path | None:
    """Make medip's own environment, or find it made; return its Python, or None where that failed."""
    folder = out / ".venv-medip"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    works = [str(python), "-c", "import medip"]
    if python.exists() and subprocess.run(works, capture_output=True).returncode == 0:
        return python
    print(f"Installing {MEDIP} …", flush=True)
    steps = ([sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "--quiet", MEDIP], works)
    for step in steps:
        done = subprocess.run(step, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            print(f"medip is left out: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            return None
    return python


def path_command(path: str, files: Path, out: Path, target: tuple[int, int], count: int, medip: Path | None) -> list[str]:
    """Return the command line of one run; empty where the path is not installed."""
    common = ["--files", str(files), "--out", str(out), "--workers", str(WORKERS), "--count", str(count)]
    if path == "medip":
        return [str(medip), str(ROOT / "benchmarks/medip_path.py"), *common] if medip else []
    size = ["--height", str(target[0]), "--width", str(target[1])]
    return [sys.executable, "-m", "benchmarks.paths", path, *common, *size]


def run(command: list[str], pictures: Path, window: float) -> dict:
    """Run one path, measure it from outside, and end it when it has been seen for ``window`` seconds.

    Returns
    -------
    dict
        ``images_per_s``; ``pictures``, how many that was measured on; ``peak_mib``, the proportional set size of the process
        and all its children, sampled; and ``wall_s``; or ``error``.
    """
    shutil.rmtree(pictures, ignore_errors=True)
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as messages:  # a pipe that nobody reads would fill up and stop the path
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=messages)
        written, peak = watch(process, pictures, window)
        messages.seek(0)
        said = messages.read().strip().splitlines() or [""]
    wall = time.monotonic() - start
    shutil.rmtree(pictures, ignore_errors=True)
    speed, measured = throughput(list(written.values()))
    if (
        process.returncode not in (0, -signal.SIGTERM)
        or not speed
        or len({int(name) % DISTINCT for name in written}) < DISTINCT
    ):
        reason = next((line for line in reversed(said) if "rror" in line or "failed" in line), said[-1])
        return {"error": f"{len(written)} pictures, exit code {process.returncode}: {reason}"}
    return {"images_per_s": speed, "pictures": measured, "peak_mib": peak / 2**20, "wall_s": wall}


def watch(process: subprocess.Popen, pictures: Path, window: float) -> tuple[dict[str, int], int]:
    """Follow a process until it ends or has been measured long enough, and then end it with its children.

    Returns
    -------
    written : dict
        Name and modification time in ns of each picture.
    peak : int
        The most memory that the whole tree had, in bytes.
    """
    parent = psutil.Process(process.pid)
    highest_rss = highest_pss = 0
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None:
        tree = _tree(parent)
        # The kernel takes milliseconds to sum up a proportional set size: ask only where the resident size has grown.
        rss = _sum(tree, lambda one: one.memory_info().rss)
        if rss > 1.01 * highest_rss:
            highest_rss = rss
            highest_pss = max(highest_pss, _sum(tree, lambda one: one.memory_full_info().pss))
        speed, measured = throughput(list(_written(pictures).values()))
        if (speed and measured / speed >= window) or time.monotonic() > deadline:
            _end(tree)
            process.wait()
        time.sleep(SAMPLE_S)
    return _written(pictures), highest_pss


def throughput(written: list[int]) -> tuple[float, int]:
    """Images a second from modification times in ns, and on how many pictures it stands; 0 and 0 if there are too few.

    What is written in the first `SETTLE_S` does not count, so start-up costs no path; the rest counts in whole sets of the
    distinct pictures, since some are larger than others.
    """
    written = sorted(written)
    skipped = max(sum(moment < written[0] + SETTLE_S * 1e9 for moment in written), WORKERS)
    measured = (len(written) - skipped) // DISTINCT * DISTINCT
    if measured < DISTINCT:
        return 0.0, 0
    return measured / (written[skipped + measured - 1] - written[skipped - 1]) * 1e9, measured


def warm_up(kind: Path, count: int) -> None:
    """Read the files once, so that they come from the page cache for every path."""
    for path in first_files(kind, count):
        path.read_bytes()


def describe_machine() -> dict:
    """Say what the figures were measured on."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"cpus": os.cpu_count(), "cpu": cpu_name(), "workers": WORKERS, "python": platform.python_version()} | versions


def _written(pictures: Path) -> dict[str, int]:
    found = {}
    for path in pictures.rglob("[!.]*.png"):  # what is unfinished has a name with a dot before it, or goes on for a moment
        with contextlib.suppress(FileNotFoundError):
            found[path.stem] = path.stat().st_mtime_ns
    return found


def _tree(parent: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [parent, *parent.children(recursive=True)]
    return []


def _sum(tree: list[psutil.Process], size: Callable[[psutil.Process], int]) -> int:
    total = 0
    for one in tree:
        with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
            total += size(one)
    return total


def _end(tree: list[psutil.Process]) -> None:
    """Terminate a process and its children, and kill what has not ended after two seconds."""
    for act in ("terminate", "kill"):
        for one in tree:
            with contextlib.suppress(psutil.Error):
                getattr(one, act)()
        deadline = time.monotonic() + 2
        while any(map(_lives, tree)) and time.monotonic() < deadline:
            time.sleep(0.02)
        tree = [one for one in tree if _lives(one)]


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _line(row: dict) -> str:
    place = f"round {row['round'] + 1}  {row['kind']:24} {row['target'][0]}x{row['target'][1]:<5} {row['path']:8}"
    if "error" in row:
        return f"{place} failed: {row['error']}"
    return f"{place} {row['images_per_s']:7.2f} images/s {row['peak_mib']:6.0f} MiB {row['wall_s']:5.1f} s"


if __name__ == "__main__":
    main()
