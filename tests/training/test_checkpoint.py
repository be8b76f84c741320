"""Facts about checkpoint.pt: from which one a training resumes, and which are refused."""

import copy
import math
import pickle
import traceback

import pytest
import torch

from tests.helpers import TINY, make_config
from utils.runs.config import TrainingError
from utils.training.checkpoint import read_checkpoint

CONFIG = make_config(TINY)
CPU = torch.device("cpu")


def make_parts():
    model, ema = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return {"model": model, "ema": ema, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}


def make_state():
    parts = make_parts()
    parts["model"](torch.ones(4, 3)).sum().backward()
    parts["optimizer"].step()
    parts["schedule"].step()
    history = [{"fold": 0, "epoch": epoch, "valid_loss": 0.5, "valid_auc": math.nan} for epoch in range(2)]
    state = {name: part.state_dict() for name, part in parts.items()}
    return state | {"config": CONFIG.to_json(), "history": history, "micro_batch_size": 4, "checkpoints": False}


def read(path):
    return read_checkpoint(path, CONFIG, 0, make_parts(), CPU)


def test_a_checkpoint_is_read_as_written(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(make_state(), path)
    state = read(path)
    for name, part in make_parts().items():
        part.load_state_dict(state[name])
    assert len(state["history"]) == 2 and state["micro_batch_size"] == 4


def test_a_checkpoint_of_an_older_version_may_name_the_pooling_of_views_that_is_left(tmp_path):
    path, state = tmp_path / "checkpoint.pt", make_state()
    state["config"]["model"]["view_pooling"] = "attention"
    torch.save(state, path)
    assert len(read(path)["history"]) == 2


def at(*names, value):
    def change(state):
        for name in names[:-1]:
            state = state[name]
        if value is None:
            del state[names[-1]]
        else:
            state[names[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("config", value=None), "not a checkpoint of this version"),
        (at("more", value=1), "not a checkpoint of this version"),
        (at("config", value=[]), "config is"),
        (at("config", "seed", value=7), r"of a run with other settings \(seed\)"),
        (at("config", "seed", value=None), r"other settings \(seed\)"),
        (at("config", "model", "view_pooling", value="concat"), r"other settings \(model\)"),
        (at("history", value=[]), "history is"),
        (at("history", value=[1, 2]), "history is"),
        (at("history", 0, "fold", value=1), "history: fold is 1, but must be 0"),
        (at("history", 1, "epoch", value=5), "history: epoch is 5, but must be 1"),
        (at("history", 1, "valid_auc", value="0.5"), "history: valid_auc is '0.5'"),
        (at("history", 1, "valid_loss", value=None), "history: valid_loss is None"),
        (at("micro_batch_size", value=0), "micro_batch_size is 0"),
        (at("micro_batch_size", value="4"), "micro_batch_size is '4'"),
        (at("checkpoints", value=1), "checkpoints is 1"),
        (at("model", value=[]), "model is"),
        (at("model", "weight", value=None), "model has other entries .*weight"),
        (at("model", "head", value=torch.ones(1)), "model has other entries .*head"),
        (at("model", "weight", value=torch.ones(3, 3)), r"model: weight is torch.float32 of shape \(3, 3\)"),
        (at("model", "weight", value=torch.ones(2, 3).half()), "model: weight is torch.float16"),
        (at("model", "weight", value=[[1.0]]), "model: weight is"),
        (at("ema", "bias", value=torch.ones(5)), "ema: bias is"),
        (at("optimizer", value={}), "optimizer is"),
        (at("optimizer", "param_groups", value=[]), "optimizer: param_groups is"),
        (at("optimizer", "param_groups", 0, "lr", value="x"), "optimizer: param_groups: 0: lr is 'x'"),
        (at("optimizer", "param_groups", 0, "lr", value=math.nan), "lr is nan"),
        (at("optimizer", "param_groups", 0, "params", value=[0]), "params is"),
        (at("optimizer", "state", 9, value={}), "optimizer: state is 9"),
        (at("optimizer", "state", 0, "exp_avg", value=torch.ones(7)), "optimizer: exp_avg is"),
        (at("optimizer", "state", 0, "exp_avg", value="x"), "optimizer: exp_avg is"),
        (at("schedule", value={}), "schedule has other entries"),
        (at("schedule", "last_epoch", value="two"), "schedule: last_epoch is 'two'"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_with_the_remedy(tmp_path, change, message):
    path, state = tmp_path / "checkpoint.pt", copy.deepcopy(make_state())
    change(state)
    torch.save(state, path)
    with pytest.raises(TrainingError, match=rf"^{path}: .*({message}).*Delete it and run again .*fold 0 starts"):
        read(path)


class Trap:
    def __reduce__(self):
        return print, ("sprung",)


def test_a_file_that_is_no_checkpoint_is_refused_without_torchs_advice(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    torch.save(make_state(), path)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:200], b"", b"not a checkpoint", pickle.dumps(Trap()), whole[500:]):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match=rf"^{path}: it is cut, or holds more than plain values") as caught:
            read(path)
        assert "weights_only" not in "".join(traceback.format_exception(caught.value))  # nor in the error that caused it
    for value in (None, 3, [1], torch.ones(2), {"state_dict": {}}):
        torch.save(value, path)
        with pytest.raises(TrainingError, match="not a checkpoint of this version of the kit"):
            read(path)
    assert "sprung" not in capsys.readouterr().out
