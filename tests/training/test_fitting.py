"""Facts about one fold's training: memory, accuracy of its sums, divergence, and what it shows."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from tests.helpers import make_config
from utils.images.training_data import TrainingData
from utils.runs.config import TrainingError
from utils.runs.execution import Execution
from utils.tables.vocabulary import Vocabulary
from utils.training import inference, learner, monitoring
from utils.training.dataset import make_dataset
from utils.training.fitting import Fitting
from utils.training.fold_data import FoldData
from utils.training.fold_weights import kept_state
from utils.training.folds import train_run
from utils.training.ranks import Ranks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make(images, cache_dir, settings, tmp_path):
    """Make one fold's training, ready to run; its network has no batch normalisation, and no draws but those of the order."""

    def make(architecture="test_convnext", execution=Execution(), **changes):  # noqa: B008
        model = {"dropout": 0.0} | changes.pop("model", {})
        config = make_config(settings, architecture, model=model, **{"epochs": 1, "ema_decay": 0.0} | changes)
        vocabulary = Vocabulary.from_images(images)
        sets = [make_dataset(config, images, cache_dir, "train", vocabulary) for _ in range(2)]
        data = FoldData(0, *sets, vocabulary)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return Fitting(config, data, folder, Ranks(torch.device("cpu")), execution)

    return make


def weights_after(fold):
    fold.run()
    return torch.cat([value.flatten().float() for value in kept_state(fold.learner.averaged).values()])


@pytest.mark.parametrize("changes", [{}, {"model": {"level": "breast"}}, {"auxiliary_weight": 0.5, "label_smoothing": 0.1}])
def test_parts_of_a_batch_add_up_to_the_step_of_the_whole(make, changes):
    whole, parts = weights_after(make(**changes)), weights_after(make(micro_batch_size=3, **changes))
    assert torch.allclose(whole, parts, atol=2e-4)
    assert not torch.allclose(whole, weights_after(make(seed=1, **changes)), atol=2e-2)


def short_of_memory(monkeypatch, most):
    """Let the network's passes fail as a GPU's do, above so many items at once."""
    forward = learner.forward

    def limited(model, batch, *rest):
        if len(batch["label"]) > most(model):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(model, batch, *rest)

    monkeypatch.setattr(learner, "forward", limited)


def test_short_memory_halves_the_part_and_keeps_the_step(make, monkeypatch, capsys):
    whole = weights_after(make())
    short_of_memory(monkeypatch, lambda model: 2)
    fold = make()
    halved = weights_after(fold)
    assert fold.learner.micro_batch_size == 2 and torch.allclose(whole, halved, atol=2e-4)
    printed = capsys.readouterr().out
    assert printed.count("Memory ran out") == 1  # once, not for each halving or step
    assert "2 items at a time from now on; a step stays 8 items" in printed


def test_memory_too_short_for_one_item_computes_activations_twice_then_gives_up(make, monkeypatch, capsys):
    short_of_memory(monkeypatch, lambda model: getattr(model, "checkpoints_activations", False))
    fold = make()
    fold.run()
    assert fold.learner.micro_batch_size == 1 and "activations computed twice" in capsys.readouterr().out
    short_of_memory(monkeypatch, lambda model: 0)
    with pytest.raises(TrainingError, match="Even one image is too much: choose smaller images"):
        make().run()


def test_resumed_run_remembers_how_much_fits(make, monkeypatch):
    short_of_memory(monkeypatch, lambda model: 4)
    fold = make()
    fold.run()
    state = torch.load(fold.checkpoint_path, weights_only=True)
    assert state["micro_batch_size"] == 4 and not state["checkpoints"]


def test_resumed_run_remembers_that_it_computes_activations_twice(make, monkeypatch):
    short_of_memory(monkeypatch, lambda model: getattr(model, "checkpoints_activations", False))
    fold = make()
    fold.run()
    again = make()
    again.checkpoint_path, again.fold_dir = fold.checkpoint_path, fold.fold_dir
    again._resume()
    assert again.learner.model.checkpoints_activations and again.learner.micro_batch_size == 1


def test_training_resumes_only_next_to_its_own_weights(make):
    fold = make("cnn")
    fold.run()

    def resume():
        again = make("cnn")
        again.checkpoint_path, again.fold_dir = fold.checkpoint_path, fold.fold_dir
        again._resume()
        return len(again.history)

    assert resume() == 1
    path = fold.fold_dir / "weights.safetensors"
    whole = path.read_bytes()
    other = replace(fold.data.vocabulary, machine_id=("1",))
    for write, message in {
        path.unlink: "can't be read",
        lambda: path.write_bytes(whole[:-9]): "it is cut or not a safetensors file",
        lambda: safetensors.torch.save_file({}, path, {"vocabulary": json.dumps(asdict(other))}): "on other images",
    }.items():
        write()
        with pytest.raises(TrainingError, match=rf"^{path}.*{message}.* Delete the folder {fold.fold_dir}: fold 0 starts"):
            resume()
    path.write_bytes(whole)
    fold.checkpoint_path.write_bytes(fold.checkpoint_path.read_bytes()[:-99])
    with pytest.raises(TrainingError, match=rf"{fold.checkpoint_path}: it is cut.* Delete it and run again"):
        resume()


def test_validation_takes_as_many_items_at_once_as_fit(make, monkeypatch):
    fold = make()
    fold.learner.micro_batch_size = 2
    whole = fold.predict(fold.learner.model).logits
    sizes, forward = [], inference.forward
    monkeypatch.setattr(
        inference, "forward", lambda m, batch, *rest: sizes.append(len(batch["label"])) or forward(m, batch, *rest)
    )
    assert np.allclose(whole, fold.predict(fold.learner.model).logits) and set(sizes) <= {1, 2}


def test_logits_that_are_no_numbers_are_said_so(make):
    fold = make()
    torch.nn.init.constant_(fold.learner.model.head.cancer.bias, float("nan"))
    with pytest.raises(TrainingError, match="no finite logit. Set precision to float32"):
        fold.predict(fold.learner.model)


def test_memory_that_really_runs_out_is_survived(tmp_path):
    """A process with a limit on its memory: torch's own error, not one that the test raises."""
    code = """
import resource, sys
from pathlib import Path
sys.path.insert(0, ".")
import numpy as np, torch
from tqdm import tqdm
from tests.helpers import make_config
from utils.images.cache import CacheSettings
from utils.runs.execution import Execution
from utils.tables.vocabulary import Vocabulary
from utils.training.fitting import Fitting
from utils.training.fold_data import FoldData
from utils.training.ranks import Ranks
class Items(torch.utils.data.Dataset):
    labels, epoch = np.array([0, 1] * 16), 0
    def __len__(self):
        return 32
    def __getitem__(self, index):
        pictures = {"images": torch.zeros(1, 1, 256, 256).byte(), "metadata": torch.zeros(1, 6)}
        pictures["rows"] = torch.zeros(1, dtype=int)
        targets = {"label": float(index % 2), "auxiliary": torch.zeros(1, dtype=int), "box": torch.zeros(4)}
        return pictures | targets | {"index": index}
config, cpu = make_config(CacheSettings(256, 256), epochs=1, batch_size=32), Ranks(torch.device("cpu"))
data = FoldData(0, Items(), Items(), Vocabulary(0, 1, (), (), ()))
fold = Fitting(config, data, Path(sys.argv[1]), cpu, Execution())
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 6 * 10**8, -1))
fold.train_epoch(0, tqdm(disable=True))
print("survived with", fold.learner.micro_batch_size)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    # What is freed goes back at once: else the allocator keeps it from oneDNN, which takes its memory elsewhere.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Memory ran out" in result.stdout
    assert int(result.stdout.split("survived with")[1]) < 32


def test_diverging_run_stops_at_its_step_and_names_the_last_good_checkpoint(make, monkeypatch):
    fold = make(epochs=2)
    loss, calls = fold.learner._loss, []

    def breaks_down(batch):
        calls.append(1)
        return loss(batch) * (float("nan") if len(calls) > len(fold.loader) + 2 else 1)

    monkeypatch.setattr(fold.learner, "_loss", breaks_down)
    step = len(fold.loader) + 2
    with pytest.raises(
        TrainingError, match=rf"became nan in epoch 1, at step {step}. .*checkpoint.pt holds the last good epoch"
    ):
        fold.run()
    state = torch.load(fold.checkpoint_path, weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_learning_rate_that_breaks_the_network_is_said_so(make):
    with pytest.raises(TrainingError, match="became (nan|inf) in epoch 0.*No epoch had ended before: lower learning_rate"):
        make(learning_rate=1e30, epochs=1, batch_size=4, warmup_share=0.0).run()


def test_mixing_changes_what_is_learned(make):
    assert not torch.allclose(weights_after(make()), weights_after(make(mixup=0.4)), atol=1e-5)


def test_history_tells_speed_and_waiting(make):
    fold = make(epochs=2)
    fold.run()
    history = pd.read_csv(fold.fold_dir / "history.csv")
    assert (history.items_per_second > 0).all() and history.data_wait.between(0, 1).all()
    assert history.valid_pf1.between(0, 1).all()


def test_tensorboard_files_hold_the_history(make):
    fold = make(execution=Execution(tensorboard=True))
    fold.run()
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(fold.fold_dir / "tensorboard"))
    events.Reload()
    assert events.Scalars("train_loss")[0].value == pytest.approx(fold.history[0]["train_loss"], rel=1e-5)


def test_compiled_network_learns_the_same_and_keeps_its_names(make):
    plain = weights_after(make())
    with torch.compiler.set_stance("force_eager"):  # the code of compiling, without the minutes of a compiler
        fold = make(execution=Execution(compile=True))
        assert fold.learner.model.encoder._compiled_call_impl is not None
        assert torch.equal(plain, weights_after(fold))
    assert not [key for key in kept_state(fold.learner.model) if "_orig_mod" in key]


def test_deterministic_mode_is_set_and_unset(make):
    make(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    make()
    assert not torch.are_deterministic_algorithms_enabled()


def test_cublas_is_set_up_before_a_training_that_is_not_deterministic_uses_it():
    """It would refuse a deterministic one in the same process later."""
    code = "import os, sys, utils; print(os.environ['CUBLAS_WORKSPACE_CONFIG'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.split() == [":4096:8", "False"]


def test_peak_memory_is_printed(make, capsys):
    make().run()
    assert "GiB of memory in use" in capsys.readouterr().out


@pytest.mark.parametrize(("platform", "counted"), [("linux", 3 * 2**20), ("darwin", 3 * 2**30)])
def test_peak_memory_is_right_in_the_unit_that_the_system_counts_in(monkeypatch, platform, counted):
    monkeypatch.setattr(monitoring.sys, "platform", platform)
    monkeypatch.setattr(monitoring.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=counted))
    assert "at most 3.00 GiB" in monitoring.peak_memory(torch.device("cpu"))


def test_system_that_does_not_tell_memory_is_no_obstacle(monkeypatch):
    monkeypatch.setattr(monitoring, "resource", None)
    assert "unknown" in monitoring.peak_memory(torch.device("cpu"))


def test_auxiliary_head_is_not_among_the_kept_weights(images, cache_dir, settings, tmp_path):
    config = make_config(settings, folds=(0,), epochs=1, auxiliary_weight=0.1)
    train_run(config, TrainingData(images, cache_dir), tmp_path / "run")
    from safetensors.torch import load_file

    names = load_file(tmp_path / "run" / "fold0" / "weights.safetensors")
    assert "head.cancer.weight" in names and not [name for name in names if "auxiliary" in name]


def test_flipped_pictures_get_the_same_prediction_with_test_time_flip(make):
    fold = make(test_time_flip=True)
    straight = fold.predict(fold.learner.model).logits
    load = fold.data.held_out_set._load
    fold.data.held_out_set._load = lambda row: np.ascontiguousarray(load(row)[:, ::-1])
    assert np.allclose(straight, fold.predict(fold.learner.model).logits, atol=1e-5)
    fold.config = replace(fold.config, test_time_flip=False)
    assert not np.allclose(straight, fold.predict(fold.learner.model).logits, atol=1e-5)
