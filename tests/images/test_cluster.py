"""Facts about preprocessing on a Dask cluster: a real one of two worker processes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from utils.core.errors import KitError
from utils.core.parallel import map_items
from utils.images import cache
from utils.images.cache import build_cache
from utils.images.settings import CacheSettings
from utils.tables.competition import image_paths

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


@pytest.fixture
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        yield cluster


def crash_at_five(item: int) -> int:
    if item == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    return item


def worker_processes(cluster) -> list[int]:
    return [nanny.pid for nanny in cluster.workers.values()]


def test_cache_made_on_a_cluster_with_a_worker_killed_is_that_of_this_machine(
    cluster, competition, images, cache_dir, settings, tmp_path, monkeypatch
):
    killed = []

    def kill_one_in_the_middle(*arguments):
        for outcome in map_items(*arguments):
            if len(killed) == len(images) // 3:
                os.kill(worker_processes(cluster)[0], signal.SIGKILL)
            killed.append(outcome.item)
            yield outcome

    monkeypatch.setattr(cache, "map_items", kill_one_in_the_middle)
    manifest = build_cache(images, competition, "train", tmp_path, settings, cluster=cluster.scheduler_address)
    assert (manifest.error == "").all()
    for image_id in images.image_id:
        name = f"train/{image_id}.png"
        assert (tmp_path / name).read_bytes() == (cache_dir / name).read_bytes()


def test_bad_file_costs_its_row_only(cluster, competition, images, tmp_path):
    rows = images.head(4)
    data = tmp_path / "data"
    for source in image_paths(rows, competition, "train")[1:]:
        target = data / source.relative_to(competition)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    manifest = build_cache(rows, data, "train", tmp_path / "cache", CacheSettings(64, 48), cluster=cluster.scheduler_address)
    assert (manifest.error != "").tolist() == [True, False, False, False]
    assert "does not exist" in manifest.error[0]


def test_item_that_crashes_its_process_costs_neither_the_worker_nor_another_item(cluster):
    before = worker_processes(cluster)
    outcomes = {
        outcome.item: outcome
        for outcome in map_items(crash_at_five, list(range(12)), 0, "testing", "items", cluster.scheduler_address)
    }
    assert outcomes[5].error == "the process that worked on it died (SIGSEGV)"
    assert {item: outcome.value for item, outcome in outcomes.items() if item != 5} == {i: i for i in range(12) if i != 5}
    assert worker_processes(cluster) == before


def test_wrong_address_is_named_with_its_remedy():
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}),
        pytest.raises(KitError, match="No Dask scheduler answers at 'tcp://127.0.0.1:9'.*dask scheduler"),
    ):
        list(map_items(crash_at_five, [1], 0, "testing", "items", "tcp://127.0.0.1:9"))


def test_scheduler_without_workers_is_said_so():
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as empty,
        pytest.raises(KitError, match="has no workers: start some with 'dask worker"),
    ):
        list(map_items(crash_at_five, [1], 0, "testing", "items", empty.scheduler_address))


def test_scheduler_that_does_not_find_the_kit_is_said_so(tmp_path):
    """It would take the work and never answer."""
    place = tmp_path / "scheduler.json"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "from dask.__main__ import main; main()", "scheduler", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen(
        [*command, "--scheduler-file", str(place)], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        while not place.is_file() or not place.read_text().endswith("}"):
            assert scheduler.poll() is None
            time.sleep(0.05)
        with pytest.raises(KitError, match="must find the kit: .*PYTHONPATH=."):
            list(map_items(crash_at_five, [1], 0, "testing", "items", json.loads(place.read_text())["address"]))
    finally:
        scheduler.kill()
        scheduler.wait()
