"""The first process of a copy of Kaggle's world: lay out the folders, test the isolation, run one command and watch it.

`utils.rehearsal.world` starts this file by its path, in its own namespaces, with a JSON order. This file imports
nothing from the kit, since it hides the kit's folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

INPUT, WORKING = "/kaggle/input", "/kaggle/working"
RESULTS = ("submission.csv", "probabilities.csv", "submissions")  # kept from the working folder; the rest ends with the world
OWN_FOLDERS = ("kaggle", "proc", "tmp")  # top-level folders that the world makes itself
SAMPLE_S = 0.25
NOWHERE = ("192.0.2.1", 80)  # TEST-NET-1, which is never assigned (RFC 5737)
CONNECT_S = 2.0
TIMED_OUT = 124  # exit status, as of timeout(1)
# <sys/mount.h> and mount_setattr(2), which C libraries lack; its number is the same on all machines (Linux 5.12)
MS_RDONLY, MS_BIND, MS_REC = 1, 4096, 16384
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, SYS_MOUNT_SETATTR = -100, 0x8000, 1, 442
# <linux/sockios.h>, <linux/if.h>
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Build the world that the JSON order describes, run its command, and write world.json."""
    wanted = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = Path(wanted["results"])
    if wanted["root"]:
        build(wanted)
    os.chdir(wanted["cwd"])
    made(Path(wanted["environment"]["HOME"]))
    proofs = prove(wanted["host_port"]) if wanted["root"] else {}
    seen = {"proofs": proofs} | watch(wanted)
    copy_results(Path(wanted["cwd"]), results)
    (results / "world.json").write_text(json.dumps(seen, indent=2) + "\n", encoding="utf-8")
    return seen["exit_status"]


# Folders
# -------


def build(wanted: dict) -> None:
    """Show the host's folders read-only under a new root, add Kaggle's folders, and enter it."""
    root = Path(wanted["root"])
    mount("tmpfs", root, "tmpfs", data="mode=755")
    for entry in Path("/").iterdir():
        show(entry, root)
    for place in (INPUT, WORKING, "/proc", "/tmp"):
        made(inside(root, place))
    make_read_only(root)
    mount("proc", inside(root, "/proc"), "proc")
    fresh = {WORKING: f"size={wanted['working_bytes']}", "/tmp": "mode=1777", "/dev/shm": "mode=1777"}
    for place, data in fresh.items():
        mount("tmpfs", inside(root, place), "tmpfs", data=data)
    bind(Path(wanted["input"]), inside(root, INPUT))
    make_read_only(inside(root, INPUT))
    for place in wanted["shown"]:
        if not inside(root, place).exists():  # under /tmp, which is new
            bind(Path(place), made(inside(root, place)))
            make_read_only(inside(root, place))
    for place in wanted["writable"]:
        bind(Path(place), made(inside(root, place)))
    for place in wanted["hidden"]:
        if inside(root, place).exists():  # the new /tmp already hides what is under /tmp
            mount("tmpfs", inside(root, place), "tmpfs", MS_RDONLY)
    raise_loopback()
    os.chroot(root)


def show(entry: Path, root: Path) -> None:
    """Show one entry of the host's root, a folder or a link, in the new root."""
    target = root / entry.name
    if entry.is_symlink():
        target.symlink_to(entry.readlink())
    elif entry.is_dir() and entry.name not in OWN_FOLDERS:
        bind(entry, made(target))


def inside(root: Path, place: str) -> Path:
    """Return the path of a place in the new root, as seen from the old root."""
    return root / place.lstrip("/")


def made(folder: Path) -> Path:
    """Make a folder unless it exists, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    """Mount a file system; raise OSError if that fails."""
    check(libc.mount(source.encode(), str(target).encode(), kind.encode(), flags, data.encode()), f"mount {kind} on {target}")


def bind(source: Path, target: Path) -> None:
    """Show a folder, and all mounts under it, at a second place."""
    mount(str(source), target, "none", MS_BIND | MS_REC)


def make_read_only(target: Path) -> None:
    """Make a mount and all mounts under it read-only."""
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    arguments = (AT_FDCWD, str(target).encode(), AT_RECURSIVE, attributes, len(attributes))
    check(libc.syscall(SYS_MOUNT_SETATTR, *arguments), f"make {target} read-only")


def check(status: int, what: str) -> None:
    """Raise OSError with errno if a status is not 0."""
    if status:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: {what}")


def raise_loopback() -> None:
    """Bring the loopback interface up, since a notebook's kernel uses it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


# Proofs
# ------


def prove(host_port: int) -> dict[str, str]:
    """Try what must fail, and return each error's name; empty if the action worked."""
    return {
        "the host's own server": connect_error(("127.0.0.1", host_port)),
        "an address outside": connect_error(NOWHERE),
        "writing into the input": write_error(Path(INPUT)),
    }


def connect_error(address: tuple[str, int]) -> str:
    """Return the error of a connection that fails at once; empty on a time-out, which does not prove isolation."""
    try:
        socket.create_connection(address, timeout=CONNECT_S).close()
    except TimeoutError:
        return ""
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return ""


def write_error(folder: Path) -> str:
    """Return the error's name when making a file; empty if it works."""
    try:
        with open(folder / ".written", "x", encoding="utf-8"):
            pass
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    (folder / ".written").unlink()
    return ""


# The command
# -----------


def watch(wanted: dict) -> dict:
    """Run the command, sample memory and disk, and return exit status, seconds and peaks in bytes."""
    peaks = {"memory": 0, "working": 0, "tmp": 0}
    start = time.monotonic()
    process = subprocess.Popen(wanted["command"], env=wanted["environment"])
    ended = threading.Event()
    sampler = threading.Thread(target=sample_until, args=(ended, peaks, bool(wanted["root"])))
    sampler.start()
    try:
        status = process.wait(wanted["timeout"])
    except subprocess.TimeoutExpired:
        status = TIMED_OUT
        end(psutil.Process().children(recursive=True))
    ended.set()
    sampler.join()
    return {"exit_status": status, "seconds": time.monotonic() - start, "peaks": peaks}


def end(processes: list[psutil.Process]) -> None:
    """Kill processes, as Kaggle does at the time limit."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def sample_until(ended: threading.Event, peaks: dict[str, int], isolated: bool) -> None:
    """Update the peaks until ``ended`` is set."""
    places = {"working": WORKING, "tmp": "/tmp"} if isolated else {}  # the host's disks contain other data too
    while not ended.wait(SAMPLE_S):
        seen = {"memory": sum(memory(process) for process in psutil.Process().children(recursive=True))}
        seen |= {name: shutil.disk_usage(place).used for name, place in places.items()}
        peaks.update({name: max(peaks[name], value) for name, value in seen.items()})


def memory(process: psutil.Process) -> int:
    """Return a process's bytes, shared ones divided by their users; 0 if it has just ended."""
    with contextlib.suppress(psutil.Error):
        full = process.memory_full_info()
        return getattr(full, "pss", full.uss)
    return 0


def copy_results(working: Path, results: Path) -> None:
    """Copy the results out of the world."""
    for name in RESULTS:
        source = working / name
        if source.is_dir():
            shutil.copytree(source, results / name)
        elif source.is_file():
            shutil.copy(source, results / name)


if __name__ == "__main__":
    sys.exit(main())
