"""Facts about who may write into a run folder."""

import errno
import multiprocessing
import os
import shutil
import signal

import pandas as pd
import pytest
import torch
from filelock import FileLock

from tests.helpers import make_config
from utils.images.training_data import TrainingData
from utils.runs import lock as run_lock
from utils.runs.errors import TrainingError
from utils.runs.run import Run
from utils.tables.folds import assign_folds
from utils.training import folds as training
from utils.training.fitting import Fitting
from utils.training.folds import FoldTask, train_run
from utils.training.ranks import Ranks


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE_FOR_FOLD", 0)
    monkeypatch.setattr(run_lock, "PATIENCE_FOR_RUN", 0)


def hold(lock, path, ready):
    with lock(path):
        ready.set()
        signal.pause()


@pytest.mark.parametrize(("lock", "says"), [(run_lock.training, "is training .*fold3.*run_dir"), (run_lock.changing, "fold3")])
def test_other_process_keeps_out_until_it_is_killed(tmp_path, impatient, lock, says):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(lock, tmp_path / "fold3", ready))
    other.start()
    assert ready.wait(10)
    os.kill(other.pid, signal.SIGSTOP)  # as where a machine swaps
    with pytest.raises(TrainingError, match=says), lock(tmp_path / "fold3"):
        pass
    other.kill()
    other.join()
    with lock(tmp_path / "fold3"):
        pass


def test_fold_is_trained_by_one_and_other_folds_by_others(images, cache_dir, settings, tmp_path, impatient):
    with run_lock.training(tmp_path / "run" / "fold0"):
        for folds in [(0,), (), (0, 1)]:
            with pytest.raises(TrainingError, match="Another process is training .*fold0"):
                train_run(make_config(settings, folds=folds, epochs=1), TrainingData(images, cache_dir), tmp_path / "run")
        assert not Run(tmp_path / "run").folds_with("history.csv")
        train_run(make_config(settings, folds=(1,), epochs=1), TrainingData(images, cache_dir), tmp_path / "run")
    oof = train_run(make_config(settings, folds=(0,), epochs=1), TrainingData(images, cache_dir), tmp_path / "run")
    assert sorted(oof.image_id) == sorted(images.image_id)


def test_fold_that_another_process_finished_in_the_meantime_is_left_alone(images, settings, tmp_path, monkeypatch, capsys):
    (tmp_path / "fold1").mkdir()
    (tmp_path / "fold1" / "oof.csv").write_text("its")
    monkeypatch.setattr(training, "Fitting", None)
    data = TrainingData(assign_folds(images, 2, 0), tmp_path)
    FoldTask(make_config(settings), data, 1, tmp_path / "fold1", training.Execution())()
    assert (
        tmp_path / "fold1" / "oof.csv"
    ).read_text() == "its" and "another process has finished it" in capsys.readouterr().out


def test_training_whose_run_folder_is_deleted_ends_and_leaves_the_new_one_alone(
    images, cache_dir, settings, tmp_path, monkeypatch
):
    train_epoch, run_dir = Fitting.train_epoch, tmp_path / "run"
    config = make_config(settings, folds=(0,), epochs=2)

    def delete(self, epoch, bar):
        if epoch == 1:
            monkeypatch.setattr(Fitting, "train_epoch", train_epoch)
            shutil.rmtree(run_dir)
            train_run(config, TrainingData(images, cache_dir), run_dir)
            kept.append((run_dir / "fold0" / "weights.safetensors").read_bytes())
        return train_epoch(self, epoch, bar)

    kept = []
    monkeypatch.setattr(Fitting, "train_epoch", delete)
    with pytest.raises(TrainingError, match="run was deleted or replaced during its training"):
        train_run(config, TrainingData(images, cache_dir), run_dir)
    assert [(run_dir / "fold0" / "weights.safetensors").read_bytes()] == kept
    assert len(pd.read_csv(run_dir / "fold0" / "history.csv")) == 2


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock"), PermissionError(13)]
)
def test_disk_that_takes_no_locks_is_named_with_the_remedy(tmp_path, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with (
        pytest.raises(TrainingError, match=r"run/.run.lock can't be locked .*Choose a run_dir"),
        run_lock.changing(tmp_path / "run"),
    ):
        pass


def test_who_takes_a_fold_deletes_what_a_kill_left_half_written(tmp_path):
    half, kept = tmp_path / "fold0/.weights-0123abcd-part.safetensors", tmp_path / "fold0/.notes.txt"
    half.parent.mkdir()
    for path in (half, kept):
        path.write_text("")
    with training._alone(Ranks(torch.device("cpu")), tmp_path / "fold0"):
        assert kept.exists() and not half.exists()
