"""Facts about what a machine has: disks, memory, and the hub of weights."""

import errno
import socket
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from utils.kaggle import machine
from utils.kaggle.machine import HUB_SECONDS, check_disks, check_hub, check_memory, free_memory

Disk = namedtuple("Disk", "total used free")


def fatal(findings) -> list[bool]:
    return [finding.is_fatal for finding in findings]


@pytest.mark.parametrize("share, found", [(1.5, []), (0.9, [False]), (0.4, [True])])
def test_disk_must_have_room_for_what_is_written(share, found, tmp_path, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: Disk(0, 0, share * 1e9 + machine.LEAST_DISK))
    written = {tmp_path / "cache": 0.6e9, tmp_path / "run": 0.4e9}
    assert fatal(check_disks(written)) == found
    assert fatal(check_disks(written, is_kept=False)) == [False] * len(found)  # what is deleted again needs less


def test_folder_that_takes_no_files_is_fatal(tmp_path, monkeypatch):
    def refuse(dir):  # noqa: A002 - as tempfile names it
        if Path(dir) == tmp_path / "read-only":
            raise OSError(errno.EROFS, "Read-only file system")
        return original(dir=dir)

    original = machine.tempfile.TemporaryFile
    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    (tmp_path / "read-only").mkdir()
    (finding,) = check_disks({tmp_path / "read-only" / "runs" / "a": 0.0, tmp_path: 0.0})
    assert finding.is_fatal and "read-only/runs/a can't be written (Read-only file system)" in finding.problem


def write_machine(root: Path, groups: str, **files: str) -> Path:
    texts = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    8000 kB\n", "proc/self/cgroup": groups} | files
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE_FREE = 8000 * 1024
V2 = {"memory.max": "3000000\n", "memory.current": "2500000\n", "memory.stat": "anon 1\ninactive_file 400000\n"}
V1 = {"limit_in_bytes": "3000000\n", "usage_in_bytes": "2500000\n", "stat": "inactive_file 7\ntotal_inactive_file 400000\n"}


@pytest.mark.parametrize("inside", ["", "job/", "job/step/"])
@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_the_control_groups_leave(tmp_path, version, inside):
    if version == 2:
        files = {f"sys/fs/cgroup/{inside}{name}": text for name, text in V2.items()}
        groups = "0::/job/step\n"
    else:
        files = {f"sys/fs/cgroup/memory/{inside}memory.{name}": text for name, text in V1.items()}
        groups = "5:freezer:/\n4:memory:/job/step\n0::/\n"
    assert free_memory(write_machine(tmp_path, groups, **files)) == 900_000


def test_free_memory_without_a_limit_is_the_machines(tmp_path):
    files = {f"sys/fs/cgroup/{name}": text for name, text in (V2 | {"memory.max": "max\n"}).items()}
    assert free_memory(write_machine(tmp_path, "0::/\n", **files)) == MACHINE_FREE
    assert free_memory(tmp_path / "a Mac") is None


@pytest.mark.parametrize("num_workers, found", [(4, []), (40, [False])])
def test_memory_that_may_not_suffice_is_a_warning(num_workers, found, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 4 * 10**9)
    assert fatal(check_memory(num_workers)) == found


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A network of which a test says what connecting does; gives the list of addresses that were asked."""
    from huggingface_hub import constants

    asked = []
    monkeypatch.setattr(machine, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(machine, "HUB_SECONDS", 0.2)

    def use(connect):
        monkeypatch.setattr(socket, "create_connection", lambda *arguments: asked.append(arguments[0]) or connect())
        return asked

    return use


def refuse_connection():
    raise OSError("Network is unreachable")


def test_hub_that_does_not_answer_is_fatal(hub):
    asked = hub(refuse_connection)
    (finding,) = check_hub()
    assert asked == [("huggingface.co", 443)]
    assert finding.is_fatal and "weights_path" in finding.remedy


def test_hub_that_answers_is_no_problem_nor_is_one_behind_a_proxy(hub, monkeypatch):
    hub(lambda: open("/dev/null"))  # noqa: SIM115 - closed by the check
    assert not list(check_hub())
    hub(refuse_connection)
    monkeypatch.setattr(machine, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert not list(check_hub())


def test_weights_that_were_downloaded_before_make_a_silent_hub_a_warning(hub, tmp_path):
    hub(refuse_connection)
    (tmp_path / "hub" / "models--timm--resnet50.a1_in1k").mkdir(parents=True)
    assert fatal(check_hub()) == [False]


def test_look_up_of_a_name_that_hangs_is_not_waited_for(hub):
    end = threading.Event()

    def hang():
        end.wait(20)
        refuse_connection()

    hub(hang)
    start = time.monotonic()
    assert fatal(check_hub()) == [True]
    assert time.monotonic() - start < HUB_SECONDS
    end.set()
