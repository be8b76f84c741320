"""Preflight of the machine: memory, disks and the network."""

import contextlib
import os
import platform
import re
import shutil
import socket
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from utils.core.devices import cpu_count
from utils.core.folders import on_kaggle, working_dir
from utils.kaggle.findings import GIGABYTE, Finding

LEAST_DISK = GIGABYTE // 10  # tables, figures, logs
# Measured bytes of a process with pandas, OpenCV, torch and timm, and of one that decodes RSNA's largest frame in full.
OWN_MEMORY, WORKER_MEMORY = 1.0e9, 0.5e9
HUB = "https://huggingface.co"
HUB_SECONDS = 2.0


@dataclass(frozen=True)
class GroupFiles:
    """Where a version of Linux's control groups keeps a group's memory."""

    mount: str
    limit: str
    usage: str
    reclaimable: str  # key of the reclaimable cache in memory.stat


# By the controller's name in /proc/self/cgroup: version 2, which gives none, and version 1.
GROUPS = {
    "": GroupFiles("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": GroupFiles("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def describe_machine(device: str = "") -> str:
    """Describe this machine in one line; ``device`` is the text about its GPUs."""
    folder, memory = working_dir(), free_memory()
    free = "" if memory is None else f"{memory / GIGABYTE:.1f} GB of memory and "
    disk = shutil.disk_usage(_existing(folder)).free / GIGABYTE
    return f"{cpu_count()} CPU cores{device and ', '}{device}; free: {free}{disk:.1f} GB of disk in {folder}"


def cpu_name() -> str:
    """Return the processor's name, or its architecture if the system does not give one."""
    names = re.findall(r"^model name\s*: (.+)", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return next(iter(names), platform.processor() or platform.machine())


def check_disks(written: Mapping[Path, float], is_kept: bool = True) -> Iterator[Finding]:
    """Check that each folder is writable and its disk has space for about the bytes given in ``written``.

    ``is_kept=False`` makes lack of space a warning only, since the files are deleted as soon as they are used.
    """
    disks = defaultdict(list)
    for folder in written:
        try:
            with tempfile.TemporaryFile(dir=_existing(folder)):
                disks[_existing(folder).stat().st_dev].append(folder)
        except OSError as error:
            yield Finding(
                f"{folder} can't be written ({error.strerror}).", "name a writable folder, or correct its permissions."
            )
    for folders in disks.values():
        needed = sum(written[folder] for folder in folders) + LEAST_DISK
        free = shutil.disk_usage(_existing(folders[0])).free
        if free < needed:
            problem = f"{folders[0]} has {free / GIGABYTE:.2f} GB free, and about {needed / GIGABYTE:.2f} GB will be written."
            is_fatal = is_kept and free < max(needed / 2, LEAST_DISK)  # needed is an estimate
            yield Finding(problem, "free some space there, name another folder, or use smaller images.", is_fatal)


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_memory(num_workers: int) -> Iterator[Finding]:
    """Check that enough memory is free for this process and its ``num_workers`` decoders."""
    needed, free = OWN_MEMORY + num_workers * WORKER_MEMORY, free_memory()
    if free is not None and free < needed:
        problem = (
            f"{free / GIGABYTE:.1f} GB of memory is free, but this process and {num_workers} decoding processes may need"
            f" {needed / GIGABYTE:.1f} GB."
        )
        yield Finding(problem, "end other programs, or reduce num_workers.", is_fatal=False)


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that the machine and this process's control groups leave free; None if unknown.

    ``root`` contains ``proc`` and ``sys``.
    """
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if not available:
        return None
    lines = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines()]
    groups = [free for _, name, path in lines if name in GROUPS for free in _free_in_groups(root, GROUPS[name], path)]
    return min([int(available[1]) * 1024, *groups])


def _free_in_groups(root: Path, files: GroupFiles, path: str) -> Iterator[int]:
    """Yield the bytes that a group and each of its parents leave free; a container sees its own group as the root."""
    mount = root / files.mount
    own = mount / path.lstrip("/")
    for group in (folder for folder in (own, *own.parents) if folder.is_relative_to(mount)):
        limit = _text(group / files.limit).strip()
        used = _text(group / files.usage).strip()
        if limit.isdigit() and used.isdigit():  # "max" means no limit
            reclaimable = re.search(rf"^{files.reclaimable} (\d+)", _text(group / "memory.stat"), re.MULTILINE)
            yield int(limit) - int(used) + (int(reclaimable[1]) if reclaimable else 0)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""


def check_hub() -> Iterator[Finding]:
    """Check that the hub of pretrained weights answers: else timm retries for a minute, after all preprocessing."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", HUB)).hostname
    if not getproxies().get("https") and not _answers(host):
        from huggingface_hub.constants import HF_HUB_CACHE  # late: the import takes seconds

        is_downloaded = any(Path(HF_HUB_CACHE).glob("models--timm--*"))  # perhaps these weights
        remedy = "switch the internet on in the notebook's settings" if on_kaggle() else "check the network"
        problem = f"pretrained needs {host}, which does not answer."
        yield Finding(
            problem, f"{remedy}, give a local file as weights_path, or set pretrained to False.", is_fatal=not is_downloaded
        )


def _answers(host: str) -> bool:
    """Return whether a host accepts connections; in a thread, since a name look-up ignores the time limit."""
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, 443), HUB_SECONDS):
            answered.set()

    threading.Thread(target=connect, daemon=True).start()
    return answered.wait(HUB_SECONDS)
