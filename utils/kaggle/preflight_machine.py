"""Preflight of the machine: disks, memory, GPUs, and the network where it is needed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from utils.core.environment import cpu_count, on_kaggle, try_gpu
from utils.kaggle.preflight_job import GIGABYTE, READ, Finding, Job

LEAST_DISK = GIGABYTE // 10  # tables, figures, logs
# Bytes, measured: pandas, OpenCV and the tables, or torch and timm; and a process that decodes RSNA's largest frame in full.
READING_MEMORY, LEARNING_MEMORY, WORKER_MEMORY = 0.3e9, 1.0e9, 0.5e9
GPU_DRIVER = Path("/dev/nvidiactl")
CHOOSE_T4 = "choose the accelerator 'GPU T4 x2' in the notebook's settings"
HUB = "https://huggingface.co"
HUB_SECONDS = 2.0
# Version 2 and 1 of control groups: where they are mounted, limit, usage, and what of the usage is only cached.
GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def check_disk(job: Job) -> Iterator[Finding]:
    """Every folder that the notebook writes into takes files, and its disk has room for them."""
    disks = defaultdict(list)
    for folder in job.written:
        try:
            with tempfile.TemporaryFile(dir=existing(folder)):
                disks[existing(folder).stat().st_dev].append(folder)
        except OSError as error:
            yield Finding(f"{folder} can't be written ({error.strerror}).", "name a folder that can, or mend its permissions.")
    for folders in disks.values():
        needed = sum(job.written[folder] for folder in folders) + LEAST_DISK
        free = shutil.disk_usage(existing(folders[0])).free
        if free < needed:
            problem = f"{folders[0]} has {free / GIGABYTE:.2f} GB free, and about {needed / GIGABYTE:.2f} GB will be written."
            # The need is an estimate; and submit deletes pictures behind it.
            fatal = free < max(needed / 2, LEAST_DISK) and job.notebook != "submit"
            yield Finding(problem, "make room there, name another folder, or take smaller pictures.", fatal)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_memory(job: Job) -> Iterator[Finding]:
    """Enough memory is free for this process and for those that decode beside it."""
    workers = (job.num_workers or cpu_count()) if job.notebook in READ else 0
    own = READING_MEMORY if job.notebook in ("explore", "preprocess") else LEARNING_MEMORY
    needed, free = own + workers * WORKER_MEMORY, free_memory()
    if free is not None and free < needed:
        beside = f", with {workers} processes that decode" if workers else ""
        problem = f"{free / GIGABYTE:.1f} GB of memory are free, and {needed / GIGABYTE:.1f} GB may be needed{beside}."
        yield Finding(problem, f"end other programs{', or give fewer num_workers' if workers else ''}.", fatal=False)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may still take: of the machine, and of its control groups, version 1 or 2.

    Parameters
    ----------
    root : Path
        Under which ``proc`` and ``sys`` lie.

    Returns
    -------
    int or None
        None where the system does not say.
    """
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if not available:
        return None
    lines = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines()]
    groups = [free for _, kind, path in lines if kind in GROUPS for free in _free_in_groups(root, kind, path)]
    return min([int(available[1]) * 1024, *groups])


def _free_in_groups(root: Path, kind: str, path: str) -> Iterator[int]:
    mount, limit, usage, cached = root / GROUPS[kind][0], *GROUPS[kind][1:]
    own = mount / path.lstrip("/")
    for group in (folder for folder in (own, *own.parents) if folder.is_relative_to(mount)):  # a container sees its own as root
        most, used = _text(group / limit).strip(), _text(group / usage).strip()
        if most.isdigit() and used.isdigit():  # not "max"
            reclaimable = re.search(rf"^{cached} (\d+)", _text(group / "memory.stat"), re.MULTILINE)
            yield int(most) - int(used) + (int(reclaimable[1]) if reclaimable else 0)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""


def check_device(job: Job) -> Iterator[Finding]:
    """The GPUs compute: ``torch.cuda.is_available()`` says True on those that the installed torch no longer supports too."""
    import torch

    if not torch.cuda.is_available():
        yield from _without_gpu(job, torch)
        return
    kinds = {torch.cuda.get_device_capability(number): number for number in range(torch.cuda.device_count())}
    for (major, minor), number in kinds.items():  # one of each kind, since to try one takes some of its memory
        try:
            try_gpu(f"cuda:{number}")
        except RuntimeError as error:
            name, built = torch.cuda.get_device_name(number), ", ".join(torch.cuda.get_arch_list())
            problem = f"{name} (sm_{major}{minor}) does not work with torch {torch.__version__}, which is built for {built}:"
            hide = "end what else uses it, install a torch that is built for it, or hide it: CUDA_VISIBLE_DEVICES=''"
            wasted = job.notebook == "train" and not job.smoke_test  # the others end on the CPU, if slowly
            reason = str(error).splitlines()[0]
            yield Finding(f"{problem} {reason}.", f"{CHOOSE_T4 if on_kaggle() else hide}.", fatal=wasted)


def _without_gpu(job: Job, torch) -> Iterator[Finding]:
    if GPU_DRIVER.exists():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        problem = f"There is an NVIDIA GPU, but torch {torch.__version__}, {built}, can't use it."
        yield Finding(problem, "install a torch for the CUDA version that nvidia-smi shows.", fatal=False)
    elif on_kaggle() and job.notebook == "train" and not (job.smoke_test or job.is_phantom):
        # README, "Speed": on two cores resnet50 learns from 0.8 pictures of 512 x 512 a second.
        problem = "There is no GPU: on a CPU, four folds of resnet50 on the competition's pictures take weeks."
        yield Finding(problem, f"{CHOOSE_T4}.", fatal=False)


def gpus() -> str:
    """Say which GPUs torch sees."""
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [torch.cuda.get_device_properties(number) for number in range(count)]
        has_mps = torch.backends.mps.is_available()
    except Exception as error:  # broken in many ways, as check_packages or check_device say
        return f"torch does not say which GPUs there are ({type(error).__name__}: {error})"
    named = " and ".join(f"{one.name} with {one.total_memory / GIGABYTE:.1f} GB" for one in found)
    if not named:
        return f"{'this Mac has a GPU (MPS), which the kit does not use' if has_mps else 'no GPU'}: the CPU computes"
    return f"{named}{', all used' if count > 1 else ''}"


def check_hub(job: Job) -> Iterator[Finding]:
    """The network that pretrained needs is there: without it timm tries for a minute, after all of the preprocessing."""
    if not job.pretrained or job.weights_path or getproxies().get("https"):
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", HUB)).hostname
    if not _answers(host):
        from huggingface_hub.constants import HF_HUB_CACHE

        downloaded = any(Path(HF_HUB_CACHE).glob("models--timm--*"))  # perhaps these very weights
        remedy = "switch the internet on in the notebook's settings" if on_kaggle() else "see to the network"
        problem = f"pretrained asks {host}, which does not answer."
        yield Finding(problem, f"{remedy}, or give a local file, weights_path, instead.", fatal=not downloaded)


def _answers(host: str) -> bool:
    """Whether a host takes connections; in a thread, since looking up a name heeds no time limit."""
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, 443), HUB_SECONDS):
            answered.set()

    threading.Thread(target=connect, daemon=True).start()
    return answered.wait(HUB_SECONDS)
