"""Facts about networks that are tried before a training: those that it could not train are refused."""

import pytest
import safetensors.torch
import torch

from tests.helpers import TINY
from utils.core.errors import KitError
from utils.images.settings import CacheSettings
from utils.networks.encoders import PlainCnn
from utils.runs.config import TrainConfig
from utils.runs.execution import Execution
from utils.training.trial import try_networks


def attempt(**values):
    sizes = {name: values.pop(name, getattr(TINY, name)) for name in ("image_height", "image_width")}
    config = TrainConfig.from_parameters({"architecture": "cnn"} | values, CacheSettings(**sizes))
    try_networks(config, Execution.from_parameters(values))


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"architecture": "resnet18x"}, "neither cnn, rnn nor a network of timm's. The nearest name is resnet18"),
        ({"architecture": "convnext-small"}, "The nearest name is convnext_small"),
        ({"architecture": "rnn", "encoders": ("cnn", "resnet_50")}, "'resnet_50' .* The nearest name is resnet50"),
        ({"pooling": "stages"}, "pooling"),
        ({"architecture": "test_vit", "box_weight": 1.0, "image_height": 160, "image_width": 160}, "convolutional"),
        ({"architecture": "test_vit", "patch_epochs": 1, "image_height": 160, "image_width": 160}, "patch_epochs"),
        ({"image_height": 16}, "cnn does not take images of 16 x 48"),
        ({"patch_epochs": 1, "patch_size": 16}, "cnn does not take images of 16 x 16"),
        ({"architecture": "test_vit", "image_height": 50}, "test_vit does not take images of 50 x 48"),
        ({"architecture": "regnetz_005", "pretrained": True}, "no pretrained weights of regnetz_005"),
        ({"pretrained": True}, "no pretrained weights of cnn"),
    ],
)
def test_network_that_can_not_be_built_is_refused(values, reason):
    with pytest.raises(KitError, match=reason):
        attempt(**values)


@pytest.mark.parametrize(
    "values", [{"batch_size": 1}, {"batch_size": 4, "micro_batch_size": 3}, {"batch_size": 4, "micro_batch_size": 1}]
)
def test_network_that_normalises_over_a_step_is_not_given_single_images(values):
    small = {"image_height": 32, "image_width": 32}
    with pytest.raises(KitError, match="resnet18 can't learn from one image of 32 x 32 at a time.*micro_batch_size"):
        attempt(architecture="resnet18", **small, **values)
    attempt(architecture="cnn", **small, **values)
    attempt(architecture="resnet18", **small, batch_size=4, micro_batch_size=2)


@pytest.mark.parametrize(
    "values",
    [
        {"architecture": "test_resnet"},
        {"architecture": "rnn", "encoders": ("cnn", "test_resnet")},
        {},
        {"architecture": "test_resnet", "pooling": "stages", "box_weight": 1.0, "patch_epochs": 1},
    ],
)
def test_network_that_can_be_trained_is_no_problem(values):
    attempt(**values)


def test_weights_must_be_those_of_the_network(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = PlainCnn(0.0).state_dict()
    safetensors.torch.save_file(state, path)
    attempt(weights_path=str(path))
    safetensors.torch.save_file({name: value for name, value in state.items() if "fully" not in name}, path)
    with pytest.raises(KitError, match="does not fit.*fully_connected"):
        attempt(weights_path=str(path))
    with pytest.raises(KitError, match="does not exist"):
        attempt(weights_path=str(tmp_path / "none.pth"))


def test_weights_that_would_run_code_are_refused_without_running_it(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    torch.save({"a": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(KitError, match="can't be read as plain weights"):
        attempt(weights_path=str(tmp_path / "weights.pth"))
    assert not (tmp_path / "sprung").exists()
