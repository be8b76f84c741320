"""A copy of Kaggle's world on this machine: its folders, its limits, no network, and a Python that lacks what Kaggle's lacks.

Linux namespaces make it, without containers and, where the system allows user namespaces, without being root. It keeps a
notebook from what Kaggle would keep it from; it is no wall against programs that mean harm.
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

from utils.core.environment import KAGGLE_WORKING, PROJECT, KitError, read_json

INIT = Path(__file__).with_name("init.py")
TIMED_OUT = 124  # exit status of `utils.rehearsal.init`
NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--kill-child")
ALONE = ("--user", "--map-root-user")  # what an ordinary user needs besides
WORKING_BYTES = 20 * 2**30  # Kaggle's limit for /kaggle/working, 20 GB
KEPT = ("LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # of the environment
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KAGGLE_VARIABLES = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_IS_COMPETITION_RERUN": "1"}  # as in a scored run
# What a Python says of itself: its version, its own folders, and where its packages are.
DESCRIBE = """
import json, sys
packages = [path for path in sys.path if path.endswith("-packages")]
version = "%d.%d" % sys.version_info[:2]
print(json.dumps({"version": version, "packages": packages, "prefixes": [sys.prefix, sys.base_prefix]}))
"""
# Entries of site-packages that belong to some packages and to no other.
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
    """A world that can't be made on this machine; the message says what is missing."""


@dataclass(frozen=True)
class KagglePython:
    """A throw-away Python.

    Parameters
    ----------
    folder : Path
        Of the virtual environment, to which the world may write.
    version : str
        As in "3.12".
    shown : tuple of str
        Folders that it needs to see.
    """

    folder: Path
    version: str
    shown: tuple[str, ...]

    @property
    def executable(self) -> Path:
        return self.folder / "bin" / "python"


@dataclass(frozen=True)
class World:
    """What a copy of Kaggle's world is made of.

    Parameters
    ----------
    input : Path
        Seen as ``/kaggle/input``, read-only.
    results : Path
        Gets submission.csv, probabilities.csv, submissions/ and world.json; absent or empty.
    python : KagglePython, optional
        First in PATH, and writable.
    isolated : bool
        False runs commands here, in the folder ``working`` of the results, with this machine's folders and network in reach.
    working_bytes : int
        Size of ``/kaggle/working``, which lies in memory here, as does ``/tmp``.
    """

    input: Path
    results: Path
    python: KagglePython | None = None
    isolated: bool = True
    working_bytes: int = WORKING_BYTES

    @property
    def working(self) -> Path:
        """The working folder, where the world is not isolated."""
        return self.results / "working"


# Python
# ------


def python_version(python: Path) -> str:
    """Version of an interpreter, as in "3.12"."""
    return _ask(python, DESCRIBE)["version"]


def make_kaggle_python(python: Path, folder: Path, lacking: Collection[str]) -> KagglePython:
    """Make a virtual environment of links to the packages of another, without some of them.

    Nothing is copied, and packages that are installed into it leave the other one as it is.

    Parameters
    ----------
    python : Path
        The interpreter whose packages are shown.
    folder : Path
        Of the new environment; absent.
    lacking : collection of str
        Names of packages, as in requirements.txt, that the new one shall not have.

    Returns
    -------
    KagglePython

    Raises
    ------
    WorldError
        If ``python`` does not run, or can't make a virtual environment.
    """
    about = _ask(python, DESCRIBE)
    left_out = set(_ask(python, LIST_ENTRIES, *(name.lower().replace("_", "-") for name in lacking)))
    _run_python(python, "-m", "venv", "--without-pip", str(folder))
    site = folder / "lib" / f"python{about['version']}" / "site-packages"
    for packages in about["packages"]:
        for entry in Path(packages).iterdir():
            if entry.name not in left_out | {"__pycache__"} and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    if not (site / "pip").exists():  # of an environment that was made without; Kaggle's has it
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
    """Find the command that starts a program in namespaces of its own.

    Returns
    -------
    list of str
        Begin of a command line.

    Raises
    ------
    WorldError
        If this machine has or allows none; the message says why.
    """
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


def run_in_world(world: World, command: Sequence[str], timeout: float | None = None) -> dict:
    """Run a command in a copy of Kaggle's world, and save what it leaves in ``/kaggle/working``.

    Everything of this machine is seen there, but read-only; ``/kaggle/input``, ``/kaggle/working`` and ``/tmp`` are Kaggle's,
    and the folder ``utils`` of this project is hidden.

    Parameters
    ----------
    world : World
    command : sequence of str
        Started in the working folder.
    timeout : float, optional
        Seconds, after which the command is killed; what it has left by then is saved.

    Returns
    -------
    dict
        exit_status (`TIMED_OUT` if it was killed); seconds; peaks (bytes: memory; working and tmp where isolated, else 0);
        proofs (by thing that must not work: the error that it ended with, empty if it worked; none without isolation).

    Raises
    ------
    WorldError
        If namespaces are not allowed, or the world can't be built.
    """
    start = isolation() if world.isolated else []
    (world.results if world.isolated else world.working).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="world-") as scratch, socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        socket.create_connection(address).close()  # from here it must work, from the world it must not
        wanted = _wanted(world, command, Path(scratch)) | {"host_port": address[1], "timeout": timeout}
        order = Path(scratch) / "wanted.json"
        order.write_text(json.dumps(wanted), encoding="utf-8")
        subprocess.run([*start, sys.executable, "-P", str(INIT), str(order)])  # -P: its folder holds the kit's modules
    report = world.results / "world.json"
    if not report.is_file():
        raise WorldError("The world could not be built: what is printed above says why.")
    return read_json(report)


def _wanted(world: World, command: Sequence[str], scratch: Path) -> dict:
    """What `utils.rehearsal.init` reads."""
    python = world.python
    root = scratch / "root"
    root.mkdir()
    shown = [sys.prefix, sys.base_prefix, *(python.shown if python else ())]
    return {
        "root": str(root) if world.isolated else "",
        "cwd": str(KAGGLE_WORKING if world.isolated else world.working),
        "command": list(command),
        "environment": _environment(python) | {"HOME": "/tmp/home" if world.isolated else str(world.results / "home")},
        "results": str(world.results),
        "input": str(world.input),
        "working_bytes": world.working_bytes,
        "shown": [*shown, *(str(Path(place).resolve()) for place in shown)],  # a link is of no use without what it leads to
        "writable": [str(world.results), *([str(python.folder)] if python else [])],
        "hidden": [str(PROJECT / "utils")],
    }


def _environment(python: KagglePython | None) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = f"{python.folder / 'bin'}:{SYSTEM_PATH}" if python else SYSTEM_PATH
    return kept | KAGGLE_VARIABLES | {"PATH": path}
