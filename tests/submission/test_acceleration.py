"""Facts about making a network faster."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import TINY, make_config
from utils.networks.models import build_model
from utils.submission import acceleration
from utils.submission.acceleration import (
    EXPORT_S,
    ONNX_PACKAGES,
    PREPARE_SHARE,
    REFERENCE,
    Candidate,
    HalfEncoder,
    OnnxEncoder,
    accelerate,
    offered,
    with_encoders,
)
from utils.tables.vocabulary import Vocabulary
from utils.training.inference import forward

CPU = torch.device("cpu")
VOCABULARY = Vocabulary(58.0, 10.0, ("CC", "MLO"), ("21", "49"), ("1", "2"))
MODELS = {
    "image": {"architecture": "cnn"},
    "boxes": {"architecture": "test_resnet", "model": {"box_head": True}, "box_weight": 1.0},
    "breast": {"architecture": "test_efficientnet", "model": {"level": "breast"}},
    "hybrid": {"architecture": "rnn"},
    "metadata": {"architecture": "cnn", "model": {"metadata": True}},
}
every_model = pytest.mark.parametrize("kind", MODELS)


def make_model(kind="image"):
    """A network whose batch norms have statistics as after training, and whose logits spread as those do."""
    config = make_config(TINY, **MODELS[kind])
    torch.manual_seed(0)
    model = build_model(config.model, VOCABULARY).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    batch = make_batch(config)
    with torch.no_grad():
        spread = forward(model, batch, CPU).logit.std()
        model.head.cancer.weight.mul_(2 / spread)
        model.head.cancer.bias.sub_(forward(model, batch, CPU).logit.mean())
    return config, model.to(memory_format=torch.channels_last)


def make_batch(config, items=4, seed=0):
    lengths = torch.tensor([1, 3, 2, 2] if config.model.item == "breast" else [1] * 4)[:items]
    count, rng = int(lengths.sum()), np.random.default_rng(seed)
    levels = rng.uniform(0.2, 1, (count, 1, 1, 1))  # pictures that differ from each other
    pictures = rng.integers(0, 256, (count, 1, TINY.image_height, TINY.image_width)) * levels
    return {
        "images": torch.tensor(pictures.astype(np.uint8)),
        "metadata": torch.tensor([[0.1, 0, 0, 1, 2, 1]], dtype=torch.float32).repeat(count, 1),
        "lengths": lengths,
    }


def outputs_of(model, batch):
    with torch.inference_mode():
        return forward(model, batch, CPU)


def as_candidate(change, prepare_s=0.0):
    """A candidate whose features are what ``change`` makes of the encoder's."""

    class Changed(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, images):
            features, maps = self.encoder(images)
            return change(features), maps

    return Candidate(lambda encoder, images: Changed(encoder), prepare_s)


def fail(*_):
    raise RuntimeError("no such kernel\nand a long trace")


@pytest.fixture
def always_faster(monkeypatch):
    monkeypatch.setattr(acceleration, "_race", lambda *_: 2.0)


@pytest.mark.parametrize("kind", ["image", "boxes", "breast"])
def test_half_precision_changes_features_by_its_rounding_alone(kind):
    config, model = make_model(kind)
    images = make_batch(config)["images"]
    half = HalfEncoder(model.encoder, images, torch.bfloat16)
    with torch.inference_mode():
        found, expected = half(images)[0], model.encoder(images)[0]
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("kind", ["boxes", "hybrid"])
def test_onnx_gives_what_the_network_gives_for_other_numbers_and_sizes_of_pictures(kind):
    for package in ONNX_PACKAGES:
        pytest.importorskip(package)
    config, model = make_model(kind)
    exported = with_encoders(model, partial(OnnxEncoder, images=make_batch(config)["images"]))
    other_size = make_batch(config, items=2)
    other_size["images"] = other_size["images"].repeat(1, 1, 1, 2)
    for batch in (make_batch(config), make_batch(config, items=1, seed=1), other_size):
        for found, expected in zip(outputs_of(exported, batch), outputs_of(model, batch), strict=True):
            if expected is not None:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every_model
def test_what_is_chosen_agrees_and_the_network_is_left_as_it_was(kind):
    config, model = make_model(kind)
    batch = make_batch(config)
    before, state = outputs_of(model, batch), copy.deepcopy(model.state_dict())
    candidates = {"bfloat16": Candidate(partial(HalfEncoder, dtype=torch.bfloat16))} | offered(config, CPU)
    accelerated = accelerate(model, batch, CPU, candidates, work_seconds=math.inf)
    torch.testing.assert_close(outputs_of(accelerated, batch).logit, before.logit, rtol=1e-3, atol=1e-3)
    assert torch.equal(outputs_of(model, batch).logit, before.logit)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert accelerated.speed_ups.keys() | accelerated.refused.keys() == candidates.keys()


def test_the_fastest_of_those_that_agree_is_taken(monkeypatch):
    config, model = make_model()
    speeds = iter([1.5, 3.0, 1.2])
    monkeypatch.setattr(acceleration, "_race", lambda *_: next(speeds))
    same = as_candidate(lambda features: features + 1e-6)
    wrong = as_candidate(lambda features: features * 1.5)
    candidates = {"slow": same, "wrong": wrong, "fast": same, "slower": same}
    accelerated = accelerate(model, make_batch(config), CPU, candidates)
    assert (accelerated.name, accelerated.speed_up) == ("fast", 3.0)
    assert accelerated.speed_ups == {"slow": 1.5, "fast": 3.0, "slower": 1.2}
    assert 0 < accelerated.difference < 1e-3
    assert str(accelerated).startswith("fast, 3.00 times as fast as float32")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda features: features * 1.5, "a logit differs by"),
        (lambda features: features * torch.nan, "a logit differs by nan"),
        (lambda features: features * torch.inf, "a logit differs by"),
        (fail, "RuntimeError: no such kernel"),
        (lambda features: features[:1], "its logit has shape (1,)"),
    ],
)
def test_what_computes_wrongly_or_fails_is_refused_by_name(always_faster, change, why):
    config, model = make_model()
    batch = make_batch(config)
    accelerated = accelerate(model, batch, CPU, {"broken": as_candidate(change)})
    assert accelerated.name == REFERENCE and accelerated.model is model and not accelerated.speed_ups
    assert why in accelerated.refused["broken"] and "\n" not in accelerated.refused["broken"]
    assert torch.equal(outputs_of(accelerated, batch).logit, outputs_of(model, batch).logit)


def test_a_small_shift_of_small_probabilities_is_refused_too(always_faster):
    config, model = make_model()
    with torch.no_grad():
        model.head.cancer.bias.sub_(12)
    changed = {"shifted": as_candidate(lambda features: features * 1.2)}
    accelerated = accelerate(model, make_batch(config), CPU, changed)
    assert accelerated.refused["shifted"].startswith("a logit differs")


def test_a_box_that_moves_is_refused(always_faster):
    config, model = make_model("boxes")

    class Moved(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, images):
            features, maps = self.encoder(images)
            return features, maps.flip(3) * 5

    moved = {"moved": Candidate(lambda encoder, images: Moved(encoder))}
    accelerated = accelerate(model, make_batch(config), CPU, moved)
    assert "corner of a box" in accelerated.refused["moved"]


def test_no_gain_leaves_the_network_itself(monkeypatch):
    config, model = make_model()
    monkeypatch.setattr(acceleration, "_race", lambda *_: 1.02)
    same = {"same": as_candidate(lambda features: features)}
    accelerated = accelerate(model, make_batch(config), CPU, same)
    assert accelerated.name == REFERENCE and accelerated.speed_ups == {"same": 1.02}


def test_long_preparation_waits_for_enough_work(always_faster):
    config, model = make_model()
    exported = {"exported": as_candidate(lambda features: features, prepare_s=120.0)}
    choose = partial(accelerate, model, make_batch(config), CPU, exported)
    assert "120 s to prepare" in choose(work_seconds=60.0).refused["exported"]
    assert choose(work_seconds=120.0 / PREPARE_SHARE).name == "exported"


def test_a_cpu_is_offered_onnx_where_it_is_installed(monkeypatch):
    config = make_config(TINY)
    monkeypatch.setattr(acceleration.importlib.util, "find_spec", lambda name: object())
    assert set(offered(config, CPU)) == {"onnx"} and offered(config, CPU)["onnx"].prepare_s == EXPORT_S
    monkeypatch.setattr(acceleration.importlib.util, "find_spec", lambda name: None)
    assert not offered(config, CPU)


def test_float32_in_the_configuration_keeps_half_precision_out(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert "bfloat16" not in offered(make_config(TINY, precision="float32"), CPU)
    assert "bfloat16" in offered(make_config(TINY, precision="auto"), CPU)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert "bfloat16" not in offered(make_config(TINY, precision="auto"), CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert {"float16"} == set(offered(make_config(TINY, precision="auto"), torch.device("cuda")))


def test_too_little_memory_for_the_network_is_the_callers_and_for_a_candidate_refuses_it(always_faster, monkeypatch):
    config, model = make_model()
    batch = make_batch(config)

    def exhaust(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    accelerated = accelerate(model, batch, CPU, {"large": as_candidate(exhaust)})
    assert accelerated.refused["large"] == "out of memory"
    monkeypatch.setattr(model.encoder, "forward", exhaust)
    with pytest.raises(torch.OutOfMemoryError):
        accelerate(model, batch, CPU, {})


def later(change):
    """A candidate that agrees for its first two calls."""
    calls = []
    return as_candidate(lambda features: change(features) if calls.append(0) or len(calls) > 1 else features)


def test_a_logit_that_is_no_number_later_is_computed_again_by_the_network(always_faster):
    config, model = make_model()
    batch = make_batch(config)
    accelerated = accelerate(model, batch, CPU, {"overflows": later(lambda f: f * torch.nan)})
    assert accelerated.name == "overflows"
    assert torch.equal(outputs_of(accelerated, batch).logit, outputs_of(model, batch).logit)


def test_what_fails_later_is_left_for_the_network_and_said(always_faster, capsys):
    config, model = make_model()
    batch = make_batch(config)
    accelerated = accelerate(model, batch, CPU, {"breaks": later(fail)})
    assert accelerated.name == "breaks"
    assert torch.equal(outputs_of(accelerated, batch).logit, outputs_of(model, batch).logit)
    assert accelerated.name == REFERENCE and "no such kernel" in accelerated.refused["breaks"]
    assert "breaks failed (RuntimeError: no such kernel)" in capsys.readouterr().out


def test_too_little_memory_later_is_the_callers(always_faster):
    def exhaust(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    config, model = make_model()
    batch = make_batch(config)
    accelerated = accelerate(model, batch, CPU, {"large": later(exhaust)})
    with pytest.raises(torch.OutOfMemoryError):
        outputs_of(accelerated, batch)
    assert accelerated.name == "large"


def test_a_surrounding_autocast_does_not_change_what_was_checked():
    config, model = make_model()
    batch = make_batch(config)
    accelerated = accelerate(model, batch, CPU, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, plain = outputs_of(accelerated, batch).logit, outputs_of(model, batch).logit
    expected = outputs_of(model, batch).logit
    assert torch.equal(inside, expected) and not torch.equal(plain, expected)
