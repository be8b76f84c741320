"""A copy of Kaggle's world: its folders, its limits, no network, and a Python without the packages that Kaggle's lacks.

It uses Linux namespaces: no containers and, if the system allows user namespaces, no root. It restricts a notebook as
Kaggle does, but it is not a security boundary against malicious programs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import KitError
from utils.core.files import read_json, write_json
from utils.core.folders import KAGGLE_WORKING, PROJECT

INIT = Path(__file__).with_name("init.py")
TIMED_OUT = 124  # exit status of `utils.rehearsal.init`
NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--kill-child")
ALONE = ("--user", "--map-root-user")  # what an ordinary user also needs
WORKING_BYTES = 20 * 2**30  # Kaggle's limit for /kaggle/working, 20 GB
KEPT = ("LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # environment variables that the world inherits
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KAGGLE_VARIABLES = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_IS_COMPETITION_RERUN": "1"}  # as in a scored run
# A program that prints a Python's version, prefixes and package folders.
DESCRIBE = """
import json, sys
packages = [path for path in sys.path if path.endswith("-packages")]
version = "%d.%d" % sys.version_info[:2]
print(json.dumps({"version": version, "packages": packages, "prefixes": [sys.prefix, sys.base_prefix]}))
"""
# A program that prints the entries of site-packages that only the named packages own.
LIST_ENTRIES = """
import json, re, sys
from importlib.metadata import distributions
owned, kept = set(), set()
for package in distributions():
    name = re.sub(r"[-_.]+", "-", package.metadata["Name"] or "").lower()
    entries = {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}
    (owned if name in sys.argv[1:] else kept).update(entries)
print(json.dumps(sorted(owned - kept)))
"""


class WorldError(KitError):
    """The world can't be made on this machine; the message says what is missing."""


@dataclass(frozen=True)
class KagglePython:
    """A throw-away virtual environment."""

    folder: Path  # writable in the world
    version: str  # as in "3.12"
    shown: tuple[str, ...]  # folders that it needs to read

    @property
    def executable(self) -> Path:
        return self.folder / "bin" / "python"


@dataclass(frozen=True)
class World:
    """The settings of a copy of Kaggle's world.

    If not ``isolated``, commands run in the folder ``working``, with this machine's folders and network in reach.
    """

    input: Path  # read-only as /kaggle/input
    results: Path  # receives submission.csv, probabilities.csv, submissions/ and world.json; absent or empty before
    python: KagglePython | None = None  # first in PATH, and writable
    isolated: bool = True
    working_bytes: int = WORKING_BYTES  # size of /kaggle/working, which is in memory here, as is /tmp

    @property
    def working(self) -> Path:
        """The working folder if the world is not isolated."""
        return self.results / "working"


@dataclass(frozen=True)
class Seen:
    """What `utils.rehearsal.init` saw of a command, from world.json."""

    exit_status: int  # `TIMED_OUT` if it was killed
    seconds: float
    peaks: dict[str, int]  # bytes: memory, working and tmp; the last two are 0 without isolation
    proofs: dict[str, str]  # the error of each forbidden action, empty if it worked; none without isolation


# Python
# ------


def python_version(python: Path) -> str:
    """Return the version of an interpreter, as in "3.12"."""
    return _ask(python, DESCRIBE)["version"]


def make_kaggle_python(python: Path, folder: Path, lacking: Collection[str]) -> KagglePython:
    """Make a virtual environment of links to all packages of ``python`` but ``lacking``; raise WorldError on failure.

    It copies nothing, and packages installed into it do not change the original.
    """
    about = _ask(python, DESCRIBE)
    left_out = set(_ask(python, LIST_ENTRIES, *(name.lower().replace("_", "-") for name in lacking)))
    _run_python(python, "-m", "venv", "--without-pip", str(folder))
    site = folder / "lib" / f"python{about['version']}" / "site-packages"
    for packages in about["packages"]:
        for entry in Path(packages).iterdir():
            if entry.name not in left_out | {"__pycache__"} and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    if not (site / "pip").exists():  # the original has no pip; Kaggle's does
        _run_python(folder / "bin" / "python", "-m", "ensurepip")
    return KagglePython(folder, about["version"], (*about["prefixes"], *about["packages"]))


def _ask(python: Path, program: str, *arguments: str):
    return json.loads(_run_python(python, "-c", program, *arguments))


def _run_python(python: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [str(python), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd="/",
            env=_clean_environment(),
        )
    except OSError as error:
        raise WorldError(f"{python} does not run ({error.strerror}): give the path of a Python with --python.") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise WorldError(f"{python} failed ({said[-1]}): give another Python with --python.")
    return done.stdout


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


# World
# -----


def isolation(namespaces: Sequence[str] = NAMESPACES) -> list[str]:
    """Return the command prefix that starts a program in its own namespaces; raise WorldError if none are allowed."""
    tool = shutil.which("unshare")
    if not tool:
        raise WorldError("There is no unshare here (Linux, package util-linux): folders and network can't be isolated.")
    reasons = []
    for flags in ((), ALONE) if os.geteuid() == 0 else (ALONE,):
        command = [tool, *flags, *namespaces]
        done = subprocess.run([*command, "true"], capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode == 0:
            return command
        reasons += done.stderr.strip().splitlines()[:1]
    raise WorldError(
        "This system allows no namespaces, so neither the folders nor the network can be isolated"
        f" ({'; '.join(reasons)}). Run as root, or let users make user namespaces (sysctl kernel.unprivileged_userns_clone=1,"
        " or kernel.apparmor_restrict_unprivileged_userns=0), or give --unisolated."
    )


def run_in_world(world: World, command: Sequence[str], timeout: float | None = None) -> Seen:
    """Run a command in a copy of Kaggle's world, save its results, and return what was seen.

    The world shows this machine's folders read-only, hides this project's ``utils``, and has its own ``/kaggle/input``,
    ``/kaggle/working`` and ``/tmp``. The command is killed after ``timeout`` seconds. Raise WorldError if setup fails.
    """
    start = isolation() if world.isolated else []
    (world.results if world.isolated else world.working).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="world-") as scratch, socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        socket.create_connection(address).close()  # works from here, must fail from the world
        order = Path(scratch) / "wanted.json"
        write_json(order, _wanted(world, command, timeout, Path(scratch), host_port=address[1]))
        subprocess.run([*start, sys.executable, "-P", str(INIT), str(order)])  # -P: keep the kit's modules off sys.path
    report = world.results / "world.json"
    if not report.is_file():
        raise WorldError("The world could not be built: see the error above.")
    return Seen(**read_json(report))


def _wanted(world: World, command: Sequence[str], timeout: float | None, scratch: Path, host_port: int) -> dict:
    """Return the order that `utils.rehearsal.init` reads."""
    python = world.python
    root = scratch / "root"
    root.mkdir()
    shown = [sys.prefix, sys.base_prefix, *(python.shown if python else ())]
    return {
        "root": str(root) if world.isolated else "",
        "cwd": str(KAGGLE_WORKING if world.isolated else world.working),
        "command": list(command),
        "timeout": timeout,
        "environment": _environment(python) | {"HOME": "/tmp/home" if world.isolated else str(world.results / "home")},
        "results": str(world.results),
        "input": str(world.input),
        "working_bytes": world.working_bytes,
        "host_port": host_port,
        "shown": [*shown, *(str(Path(place).resolve()) for place in shown)],  # a link needs its target
        "writable": [str(world.results), *([str(python.folder)] if python else [])],
        "hidden": [str(PROJECT / "utils")],
    }


def _environment(python: KagglePython | None) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = f"{python.folder / 'bin'}:{SYSTEM_PATH}" if python else SYSTEM_PATH
    return kept | KAGGLE_VARIABLES | {"PATH": path}
