"""Facts about training in several processes: gloo here, as NCCL would on GPUs."""

import threading
import time

import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch

from tests.helpers import make_config
from utils.images.training_data import TrainingData
from utils.runs.config import TrainingError
from utils.runs.execution import Execution
from utils.training.folds import train_run

ON_TWO = Execution(num_processes=2)


def without_draws(settings, **changes):
    """A network whose result does not hang on how a batch is split: no batch normalisation, no dropout."""
    values = {"epochs": 2, "folds": (0,), "keep_epoch": "last", "augment_strength": 1.0}
    return make_config(settings, "test_convnext", model={"dropout": 0.0}, **values | changes)


def history_of(run_dir):
    return pd.read_csv(run_dir / "history.csv")


def test_two_processes_have_the_loss_curve_of_one(images, cache_dir, settings, tmp_path):
    config = without_draws(settings, auxiliary_weight=0.1)
    alone = train_run(config, TrainingData(images, cache_dir), tmp_path / "one")
    together = train_run(config, TrainingData(images, cache_dir), tmp_path / "two", ON_TWO)
    one, two = history_of(tmp_path / "one"), history_of(tmp_path / "two")
    assert two.train_loss.tolist() == pytest.approx(one.train_loss.tolist(), abs=2e-4)
    assert two.valid_loss.tolist() == pytest.approx(one.valid_loss.tolist(), abs=2e-4)
    assert together.image_id.tolist() == alone.image_id.tolist()
    assert together.logit.tolist() == pytest.approx(alone.logit.tolist(), abs=2e-3)


def test_dead_process_ends_the_run_within_a_minute(images, cache_dir, settings, tmp_path):
    killed_at = []

    def kill_second_process():
        while not (tmp_path / "run" / "fold0" / "checkpoint.pt").is_file():
            time.sleep(0.2)
        started = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
        max(started, key=lambda child: child.create_time()).kill()
        killed_at.append(time.monotonic())

    threading.Thread(target=kill_second_process, daemon=True).start()
    with pytest.raises(TrainingError, match=r"Process \d of 2 (died \(SIGKILL\)|failed).*"):
        train_run(without_draws(settings, epochs=60), TrainingData(images, cache_dir), tmp_path / "run", ON_TWO)
    assert time.monotonic() - killed_at[0] < 60
    assert len(torch.load(tmp_path / "run" / "fold0" / "checkpoint.pt", weights_only=True)["history"]) >= 1


def test_error_of_a_process_is_told_by_the_parent(images, cache_dir, settings, tmp_path):
    config = without_draws(settings, learning_rate=1e30, warmup_share=0.0)
    with pytest.raises(TrainingError, match="became (nan|inf) in epoch 0.*lower learning_rate"):
        train_run(config, TrainingData(images, cache_dir), tmp_path / "run", ON_TWO)


def test_folds_side_by_side_give_the_weights_of_one_after_the_other(images, cache_dir, settings, tmp_path):
    config = make_config(settings, epochs=2, keep_epoch="last")
    one = train_run(config, TrainingData(images, cache_dir), tmp_path / "one")
    two = train_run(config, TrainingData(images, cache_dir), tmp_path / "two", Execution(parallel_folds=2, num_workers=1))
    pd.testing.assert_frame_equal(one, two)
    for fold in (0, 1):
        a, b = (safetensors.torch.load_file(tmp_path / name / f"fold{fold}" / "weights.safetensors") for name in ("one", "two"))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_fold_that_fails_beside_others_is_told_and_costs_them_nothing(images, cache_dir, settings, tmp_path):
    config = make_config(settings, epochs=1)
    train_run(config, TrainingData(images, cache_dir), tmp_path / "run", Execution(parallel_folds=1))
    (tmp_path / "run" / "fold1" / "oof.csv").unlink()
    (tmp_path / "run" / "fold1" / "checkpoint.pt").write_text("not a checkpoint")
    with pytest.raises(TrainingError, match="1 of 2 groups of folds failed"):
        (tmp_path / "run" / "fold0" / "oof.csv").unlink()
        train_run(config, TrainingData(images, cache_dir), tmp_path / "run", Execution(parallel_folds=2))
    assert (tmp_path / "run" / "fold0" / "oof.csv").is_file()


def test_folds_on_a_dask_cluster_give_the_weights_of_this_machine(images, cache_dir, settings, tmp_path):
    distributed = pytest.importorskip("distributed")
    config = make_config(settings, epochs=1)
    here = train_run(config, TrainingData(images, cache_dir), tmp_path / "here")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster:
        execution = Execution(cluster=cluster.scheduler_address)
        there = train_run(config, TrainingData(images, cache_dir), tmp_path / "there", execution)
    pd.testing.assert_frame_equal(here, there)
