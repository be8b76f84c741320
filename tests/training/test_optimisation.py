"""Facts about groups of parameters, the schedule, and the number format."""

import math

import pytest
import torch
from torch import nn

from utils.images.settings import CacheSettings
from utils.networks.models import build_model
from utils.runs.config import ModelConfig, TrainConfig
from utils.tables.vocabulary import Vocabulary
from utils.training.optimisation import is_out_of_memory, make_optimizer, pick_precision, warmup_cosine

VOCABULARY = Vocabulary(58.0, 10.0, ("CC", "MLO"), ("21", "49"), ("1", "2"))
TIMM = ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"]


def make_config(architecture: str = "cnn", **changes) -> TrainConfig:
    side = 160 if architecture == "test_vit" else 64
    model = ModelConfig(architecture, side, side, encoders=("cnn", "test_resnet"), pooling=changes.pop("pooling", ""))
    return TrainConfig(model, CacheSettings(side, side), **changes)


def make_both(architecture: str, **changes) -> tuple[nn.Module, torch.optim.Optimizer]:
    config = make_config(architecture, **changes)
    model = build_model(config.model, VOCABULARY, auxiliary_sizes=(2, 3))
    return model, make_optimizer(model, config)


def setting_of(name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """A setting of each parameter, by its name."""
    by_id = {id(parameter): group[name] for group in optimizer.param_groups for parameter in group["params"]}
    return {key: by_id[id(parameter)] for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("architecture", [*TIMM, "cnn", "rnn"])
def test_every_parameter_is_in_one_group(architecture):
    model, optimizer = make_both(architecture)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet", "cnn", "rnn"])
def test_biases_and_norms_alone_do_not_decay(architecture):
    model, optimizer = make_both(architecture, weight_decay=0.05)
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    norms = {id(parameter) for module in model.modules() if isinstance(module, kinds) for parameter in module.parameters()}
    decay = setting_of("weight_decay", model, optimizer)
    for name, parameter in model.named_parameters():
        is_scale = name.endswith("gamma")  # ConvNeXt's, of a whole branch
        spared = "bias" in name or id(parameter) in norms or is_scale
        assert decay[name] == (0 if spared else 0.05), name


def test_rate_warms_up_in_a_line_and_falls_as_a_cosine():
    factor = warmup_cosine(make_config(epochs=4, warmup_share=0.1), steps_per_epoch=25)
    factors = [factor(step) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 90) for step in range(91)])
    assert factors[100] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"epochs": 1, "warmup_share": 0.0}, {"epochs": 3, "warmup_share": 1.0}])
def test_shortest_runs_have_a_rate_for_every_step(changes):
    factor = warmup_cosine(make_config(**changes), steps_per_epoch=1)
    assert all(0 < factor(step) <= 1 for step in range(changes["epochs"]))


def test_cpu_computes_in_full_precision_unless_told():
    cpu = torch.device("cpu")
    assert pick_precision(make_config(), cpu) == torch.float32
    assert pick_precision(make_config(precision="bfloat16"), cpu) == torch.bfloat16


def test_lack_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as lack:
        torch.empty(2**55)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert is_out_of_memory(lack.value) and not is_out_of_memory(other.value)
