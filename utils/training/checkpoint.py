"""checkpoint.pt of an unfinished fold: what a full disk does to it, and what is checked before training resumes from it."""

import contextlib
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from utils.core.formats import FormatError, check, is_flag, is_number, is_whole, naming, shown
from utils.runs.config import TrainConfig, without_retired
from utils.runs.errors import TrainingError
from utils.runs.folder import differing_settings
from utils.tables.vocabulary import Vocabulary
from utils.training.fold_weights import check_tensors, read_vocabulary

KEYS = {"config", "history", "micro_batch_size", "checkpoints", "model", "ema", "optimizer", "schedule", "scaler"}
METRICS = ("valid_loss", "valid_auc")  # they choose the kept epoch


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn an error of writing a file into a TrainingError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError, safetensors its own
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        free = shutil.disk_usage(folder).free / 1e9 if folder.is_dir() else 0
        raise TrainingError(
            f"{folder} can't be written ({error}). {free:.2f} GB are free there. Free disk space, then run again with the same"
            " run_dir: training resumes after the last saved epoch."
        ) from error


def read_checkpoint(path: Path, config: TrainConfig, fold: int, parts: Mapping, device: torch.device) -> dict:
    """Read a checkpoint, and check that it belongs to this training; raise TrainingError with the remedy if not.

    ``parts`` are the newly made objects that it restores (model, ema, optimizer, schedule, scaler).
    """
    remedy = f"Delete it and run again with the same run_dir: fold {fold} starts from its first epoch."
    with naming(path, TrainingError, remedy):
        state = _load(path, device)
        if not isinstance(state, dict) or state.keys() != KEYS:
            raise FormatError("it is not a checkpoint of this version of the kit.")
        _check_config(state["config"], config)
        _check_history(state["history"], fold, config.epochs)
        size = state["micro_batch_size"]
        check(is_whole(size) and size >= 1, "micro_batch_size", size, "a whole number of 1 or more")
        check(is_flag(state["checkpoints"]), "checkpoints", state["checkpoints"], "true or false")
        for name in ("model", "ema", "schedule"):
            _check_form(state[name], parts[name].state_dict(), name)
        if state["scaler"] and parts["scaler"].is_enabled():  # it is empty if it was not needed
            _check_form(state["scaler"], parts["scaler"].state_dict(), "scaler")
        _check_optimizer(state["optimizer"], parts["optimizer"])
    return state


def check_kept(fold_dir: Path, fold: int, vocabulary: Vocabulary, wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise TrainingError if the fold's weights are missing, broken, or of another training.

    ``wanted`` is the state dict that was kept.
    """
    path = fold_dir / "weights.safetensors"
    remedy = f"Delete the folder {fold_dir}: fold {fold} starts from its first epoch."
    if read_vocabulary(path, remedy) != vocabulary:
        raise TrainingError(f"{path} was trained on other images than this fold. {remedy}")
    check_tensors(path, wanted, remedy)


def _load(path: Path, device: torch.device) -> object:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many types on a broken or unsafe file
        # "from None" since torch's text advises unsafe loading.
        raise FormatError(f"it is cut, or holds more than plain values ({type(error).__name__}).") from None


def _check_config(found: object, config: TrainConfig) -> None:
    check(isinstance(found, dict), "config", found, "an object")
    differing = differing_settings(without_retired(found), config)
    if differing:
        raise FormatError(f"it is of a run with other settings ({', '.join(differing)}).")


def _check_history(history: object, fold: int, epochs: int) -> None:
    is_list = isinstance(history, list) and all(isinstance(row, dict) for row in history)
    most = max(1, epochs)  # 0 epochs have a row too
    check(is_list and 1 <= len(history) <= most, "history", history, f"a list of 1 to {most} epochs")
    for number, row in enumerate(history):
        check(row.get("fold") == fold, "history: fold", row.get("fold"), f"{fold}, as the folder's")
        check(row.get("epoch") == number, "history: epoch", row.get("epoch"), str(number))
        for name in METRICS:
            value = row.get(name)
            is_nan = isinstance(value, float) and math.isnan(value)  # if only one class is held out
            check(is_number(value) or is_nan, f"history: {name}", value, "a number")


def _check_optimizer(found: object, optimizer: torch.optim.Optimizer) -> None:
    wanted = optimizer.state_dict()
    check(isinstance(found, dict) and found.keys() == wanted.keys(), "optimizer", found, "an optimizer's state")
    _check_form(found["param_groups"], wanted["param_groups"], "optimizer: param_groups")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    check(isinstance(found["state"], dict), "optimizer: state", found["state"], "an object")
    for number, moments in found["state"].items():
        known = is_whole(number) and 0 <= number < len(parameters) and isinstance(moments, dict)
        check(known, "optimizer: state", number, "of a parameter of the network")
        for name, value in moments.items():
            shapes = (torch.Size([]), parameters[number].shape)
            fits = isinstance(value, torch.Tensor) and value.shape in shapes
            check(fits, f"optimizer: {name}", shown(getattr(value, "shape", value)), f"of shape {tuple(shapes[1])}")


def _check_form(found: object, wanted: object, name: str) -> None:
    """Raise FormatError if a state's names, kinds, lengths or shapes differ from those of a newly made one."""
    if isinstance(wanted, torch.Tensor):
        if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise FormatError(f"{name} is {_form(found)}, but must be {_form(wanted)}.")
    elif isinstance(wanted, Mapping):
        check(isinstance(found, Mapping), name, found, "an object")
        differing = sorted(str(key) for key in found.keys() ^ wanted.keys())
        if differing:
            raise FormatError(f"{name} has other entries than this run's network ({shown(', '.join(differing))}).")
        for key, value in wanted.items():
            _check_form(found[key], value, f"{name}: {key}")
    elif isinstance(wanted, list | tuple):
        check(isinstance(found, list | tuple) and len(found) == len(wanted), name, found, f"{len(wanted)} values")
        for number, value in enumerate(wanted):
            _check_form(found[number], value, f"{name}: {number}")
    elif is_number(wanted):
        check(is_number(found), name, found, "a finite number")
    else:
        check(found is None or isinstance(found, type(wanted) | bool), name, found, f"of the type of {wanted!r}")


def _form(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else shown(value)
