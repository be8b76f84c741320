"""Facts about image encoders and their weights."""

import re
import traceback
from argparse import Namespace
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from utils.networks.encoders import CNN_CHANNELS, PlainCnn, build_encoder, find_shapes
from utils.networks.weights import is_of_kit, read_weights
from utils.runs.config import ModelConfig, ModelError

CONVOLUTIONAL = ["test_resnet", "test_convnext", "test_efficientnet"]


def make_encoder(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    side = 160 if name == "test_vit" else 64
    return build_encoder(ModelConfig(name, side, side, **options))


def make_pictures(count: int, side: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# What it computes


def test_plain_cnn_halves_the_picture_five_times():
    assert PlainCnn(0.0).blocks(torch.zeros(1, 1, 96, 64)).shape == (1, 256, 3, 2)


@pytest.mark.parametrize("name", ["cnn", *CONVOLUTIONAL])
def test_features_and_the_maps_that_they_come_from(name):
    encoder = make_encoder(name).eval()
    with torch.inference_mode():
        features, maps = encoder(make_pictures(2))
        wanted = encoder.backbone.forward_head(maps, pre_logits=True)
    assert features.shape == (2, encoder.num_features) and maps.shape[:2] == (2, encoder.num_features)
    assert torch.equal(features, wanted)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_mambaout"])
def test_features_are_as_many_as_the_encoder_says(name):
    encoder = make_encoder(name).eval()
    with torch.inference_mode():
        assert encoder(make_pictures(1))[0].shape == (1, encoder.num_features)


def test_encoder_normalises_as_its_weights_expect():
    encoder = make_encoder("tf_efficientnet_lite0")
    assert (encoder.mean, encoder.std) == (0.5, 0.5)
    encoder = make_encoder("resnet18")
    assert encoder.mean == pytest.approx(np.mean([0.485, 0.456, 0.406]))
    seen = []
    encoder.backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    encoder(make_pictures(2))
    assert torch.allclose(seen[0], (make_pictures(2) / 255 - encoder.mean) / encoder.std)


def test_mixed_pictures_are_on_the_same_scale():
    encoder = make_encoder("cnn").eval()
    with torch.inference_mode():
        assert torch.equal(encoder(make_pictures(2))[0], encoder(make_pictures(2).float())[0])


def test_cnn_pools_by_mean_and_maximum():
    cnn, maps, seen = PlainCnn(0.0), torch.rand(2, CNN_CHANNELS[-1], 3, 2), []
    cnn.fully_connected.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numpy()))
    with torch.inference_mode():
        cnn.forward_head(maps)
    wanted = np.concatenate([maps.numpy().mean(axis=(2, 3)), maps.numpy().max(axis=(2, 3))], axis=1)
    np.testing.assert_allclose(seen[0], wanted, rtol=1e-5)


# Pooling


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_pooling_of_stages_gives_mean_and_maximum_of_the_last_three(name):
    encoder = make_encoder(name, pooling="stages").eval()
    with torch.inference_mode():
        features, maps = encoder(make_pictures(2))
        x = (make_pictures(2) / 255 - encoder.mean) / encoder.std
        stages = [stage.numpy() for stage in encoder.backbone.forward_intermediates(x, intermediates_only=True)[-3:]]
        assert torch.allclose(maps, encoder.backbone.forward_features(x), atol=1e-5)
    assert [stage.shape[2] for stage in stages] == [8, 4, 2]
    pooled = [stage.mean(axis=(2, 3)) for stage in stages] + [stage.max(axis=(2, 3)) for stage in stages]
    np.testing.assert_allclose(features.numpy(), np.concatenate(pooled, axis=1), rtol=1e-3, atol=1e-5)
    assert features.shape[1] == encoder.num_features


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout"])
def test_pooling_of_stages_is_refused_for_networks_without_such_maps(name):
    with pytest.raises(ModelError, match=f"{name} has no pooling 'stages': leave pooling empty"):
        make_encoder(name, pooling="stages")


def test_cnn_keeps_its_own_pooling():
    with pytest.raises(ModelError, match="leave pooling empty"):
        make_encoder("cnn", pooling="stages")


def test_unknown_pooling_is_refused():
    with pytest.raises(ModelError, match="no pooling 'median'.*with stages"):
        make_encoder("test_resnet", pooling="median")


def test_drop_path_reaches_the_residual_branches():
    encoder = make_encoder("test_convnext", drop_path=0.3)
    assert max(getattr(module, "drop_prob", None) or 0 for module in encoder.modules()) == pytest.approx(0.3)


def test_drop_path_is_refused_for_networks_without_branches():
    with pytest.raises(ModelError, match="densenet121 has no residual branches"):
        make_encoder("densenet121", drop_path=0.3)


# Activation checkpointing


def gradients_and_calls(encoder: nn.Module, side: int) -> tuple[list[torch.Tensor], int]:
    """Gradients of one step, and how many layers were run for them."""
    calls = []
    for module in encoder.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    encoder.train()(make_pictures(3, side))[0].square().sum().backward()
    return [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None], len(calls)


@pytest.mark.parametrize("name", ["cnn", *CONVOLUTIONAL, "test_vit"])
def test_activation_checkpointing_gives_the_same_gradients(name):
    encoder = make_encoder(name, dropout=0.2, drop_path=0.1)
    for parameter in encoder.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1)  # some begin at zero, and so would all gradients behind them
    saving = deepcopy(encoder)
    saving.backbone.set_grad_checkpointing(True)
    side = 160 if name == "test_vit" else 64
    (wanted, calls), (found, more_calls) = gradients_and_calls(encoder, side), gradients_and_calls(saving, side)
    assert more_calls > calls, "nothing was computed twice"
    assert len(found) == len(wanted)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_checkpointing_does_not_touch_evaluation():
    encoder = make_encoder("cnn").eval()
    with torch.inference_mode():
        before = encoder(make_pictures(2))[0]
        encoder.backbone.set_grad_checkpointing()
        assert torch.equal(encoder(make_pictures(2))[0], before)


# Names and sizes


def test_unknown_network_is_refused_with_a_hint():
    with pytest.raises(ModelError, match="'resnet51' is neither.*The nearest name is resnet51q"):
        make_encoder("resnet51")


@pytest.mark.parametrize(
    ("architecture", "size", "nearest"),
    [
        ("maxvit_nano_rw_256", (250, 160), "256, image_width=160"),
        ("cnn", (16, 64), "32, image_width=64"),
        ("nest_tiny", (256, 64), "256, image_width=256"),  # squares alone
    ],
)
def test_size_that_a_network_does_not_take_is_refused_up_front(architecture, size, nearest):
    with pytest.raises(ModelError, match=f"does not take images of {size[0]} x {size[1]}. image_height={nearest}"):
        find_shapes(architecture, *size)


@pytest.mark.parametrize("error", [AttributeError, KeyError, TypeError, NotImplementedError])
def test_network_that_refuses_a_size_in_its_own_way_is_refused_with_a_size_that_works(monkeypatch, error):
    network = type(make_grey())
    forward_features = network.forward_features

    def refuse_low_pictures(self, x):
        if x.shape[2] < 128:
            raise error("no such thing")
        return forward_features(self, x)

    monkeypatch.setattr(network, "forward_features", refuse_low_pictures)
    with pytest.raises(ModelError, match="test_resnet does not take .* image_height=128, image_width=64 would do"):
        find_shapes("test_resnet", 96, 64)
    monkeypatch.setattr(network, "forward_features", lambda self, x: x.no_such_thing)
    with pytest.raises(ModelError, match="nor of any other size that was tried. Choose another architecture"):
        find_shapes("test_resnet", 96, 64)


def test_network_that_computes_while_it_is_built_is_looked_at_with_numbers(monkeypatch):
    network = type(make_grey())
    construct = network.__init__

    def computing(self, *args, **options):
        construct(self, *args, **options)
        next(self.parameters()).sum().item()

    monkeypatch.setattr(network, "__init__", computing)
    assert find_shapes("test_resnet", 64, 64)[0] == make_encoder("test_resnet").num_features


def test_maps_of_several_scales_are_given_by_the_last():
    encoder = make_encoder("test_resnet").eval()
    backbone = encoder.backbone
    forward_features, forward_head = backbone.forward_features, backbone.forward_head
    backbone.forward_features = lambda x: [x, forward_features(x)]
    backbone.forward_head = lambda maps, pre_logits: forward_head(maps[-1], pre_logits=pre_logits)
    with torch.inference_mode():
        assert encoder(make_pictures(1))[1].ndim == 4


@pytest.mark.parametrize("architecture", ["resnet50", "efficientnet_b0"])
def test_any_size_suits_a_convolutional_network(architecture):
    find_shapes(architecture, 97, 65)


# Weights


@pytest.fixture
def rgb_weights(tmp_path):
    """Weights as published: three input channels and a head."""
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=10)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return model, path


def make_grey():
    return timm.create_model("test_resnet", in_chans=1, num_classes=0)


def load(path, name="test_resnet", size=(64, 64), **options) -> nn.Module:
    torch.manual_seed(2)
    return build_encoder(ModelConfig(name, *size, weights_path=str(path), **options)).backbone


def check_same(found: nn.Module, wanted: nn.Module, **tolerance):
    found, wanted = found.state_dict(), wanted.state_dict()
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], **tolerance)


def as_timm_loads(path, name, **options) -> nn.Module:
    torch.manual_seed(3)
    overlay = {"file": str(path), "custom_load": False}
    return timm.create_model(name, pretrained=True, in_chans=1, num_classes=0, pretrained_cfg_overlay=overlay, **options)


def test_loaded_weights_see_a_grey_picture_as_the_rgb_network_does(rgb_weights):
    rgb, path = rgb_weights
    grey = load(path)
    picture = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        wanted = rgb.eval().forward_head(rgb.forward_features(picture.repeat(1, 3, 1, 1)), pre_logits=True)
        assert torch.allclose(grey.eval()(picture), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("test_resnet", {}, (64, 64)),
        ("test_vit", {}, (160, 160)),
        ("test_vit", {"img_size": (192, 96)}, (192, 96)),  # a table of positions
        ("test_efficientnet", {}, (64, 96)),
    ],
)
def test_weights_are_those_that_timm_loads_as_pretrained(tmp_path, name, options, size):
    torch.manual_seed(1)
    safetensors.torch.save_file(timm.create_model(name).state_dict(), tmp_path / "weights.safetensors")
    wanted = as_timm_loads(tmp_path / "weights.safetensors", name, **options)
    check_same(load(tmp_path / "weights.safetensors", name, size), wanted)


def test_tables_of_relative_positions_are_resized(tmp_path):
    torch.manual_seed(1)
    name, path = "coatnet_pico_rw_224", tmp_path / "weights.pth"
    torch.save(timm.create_model(name, img_size=(64, 64)).state_dict(), path)
    check_same(load(path, name, (128, 64)), as_timm_loads(path, name, img_size=(128, 64)))


def test_old_names_are_those_that_timm_renames(tmp_path):
    torch.manual_seed(1)
    old = [(r"stem\.", "downsample_layers.0."), (r"stages\.(\d)\.downsample", r"downsample_layers.\1"), ("blocks.", "")]
    old += [("conv_dw", "dwconv"), (r"mlp\.fc", "pwconv"), (r"head\.norm", "norm"), (r"head\.fc", "head")]
    state = timm.create_model("test_convnext").state_dict()
    for new_name, old_name in old:
        state = {re.sub(new_name, old_name, key): value for key, value in state.items()}
    torch.save({"model": dict(sorted(state.items()))}, tmp_path / "weights.pth")
    check_same(load(tmp_path / "weights.pth", "test_convnext"), as_timm_loads(tmp_path / "weights.pth", "test_convnext"))


def below(prefix: str, state: dict) -> dict:
    return {f"{prefix}{key}": value for key, value in state.items()}


def zeros(state: dict) -> dict:
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {
            "state_dict": s,
            "epoch": 3,
            "score": np.float32(0.45),
            "args": Namespace(out=Path("runs"), lr=np.float64(1e-3)),
        },
        lambda s: {"model": below("module.", s), "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": zeros(s).popitem()[1]},
        lambda s: {"anything": {"network": below("_orig_mod.module.", s)}},
        lambda s: {"state_dict": {"criterion.pos_weight": torch.ones(1), **below("model.backbone.", s)}},
        lambda s: {"head.weight": torch.zeros(1, 8), "head.bias": torch.zeros(1), **below("encoder.", s)},
        lambda s: {"n_averaged": torch.tensor(5), **below("module.", s)},
        lambda s: {"state_dict": zeros(s), "state_dict_ema": s},
        lambda s: {"state_dict": zeros(s), "model_ema": below("module.", s)},
        lambda s: {"ema": s},
        lambda s: {"student": below("module.backbone.", zeros(s)), "teacher": below("backbone.", s)},
        lambda s: s | {"head_dist.bn.weight": torch.ones(1)},  # a second head
        lambda s: s | {"fc.weight": torch.zeros(1, s["fc.weight"].shape[1]), "fc.bias": torch.zeros(1)},
        lambda s: {key: value for key, value in s.items() if not key.startswith("fc.") and value.ndim},
    ],
)
def test_weights_are_found_however_a_checkpoint_wraps_them(rgb_weights, tmp_path, wrap):
    rgb, path = rgb_weights
    torch.save(wrap(rgb.state_dict()), tmp_path / "weights.pth")
    check_same(load(tmp_path / "weights.pth"), load(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken(rgb_weights, tmp_path, dtype):
    rgb, path = rgb_weights
    torch.save(
        {key: value.to(dtype) if value.ndim else value for key, value in rgb.state_dict().items()}, tmp_path / "weights.pth"
    )
    found = load(tmp_path / "weights.pth")
    check_same(found, load(path), atol=0.01, rtol=0.01)
    assert all(value.dtype == torch.float32 for value in found.parameters())


def test_network_with_weights_does_not_carry_the_file_along(rgb_weights):
    assert "state_dict" not in load(rgb_weights[1]).pretrained_cfg


def test_the_same_network_twice_is_refused(rgb_weights, tmp_path):
    state = rgb_weights[0].state_dict()
    torch.save(below("encoder_q.", state) | below("encoder_k.", zeros(state)), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="holds the network 2 times, below 'encoder_q.', 'encoder_k.'. Save one of them alone"):
        load(tmp_path / "weights.pth")


def test_other_names_in_alphabetical_order_do_not_match_by_position(rgb_weights, tmp_path):
    """Weight and bias of a normalisation layer have one shape, and alphabetical files have the bias first."""
    state = rgb_weights[0].state_dict()
    layers = {layer: f"layer{number:03}" for number, layer in enumerate(dict.fromkeys(key.rpartition(".")[0] for key in state))}
    renamed = {f"{layers[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}
    torch.save(renamed, tmp_path / "weights.pth")
    check_same(load(tmp_path / "weights.pth"), load(rgb_weights[1]))
    torch.save(dict(sorted(renamed.items())), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="does not fit"):
        load(tmp_path / "weights.pth")


def test_deeper_network_with_other_names_does_not_match_by_position(rgb_weights, tmp_path):
    values = [value for value in rgb_weights[0].state_dict().values() if value.ndim]
    torch.save({f"part{i}": value for i, value in enumerate([*values, *values[:6]])}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="does not fit"):
        load(tmp_path / "weights.pth")


@pytest.mark.parametrize("spoil", [lambda value: value.to(torch.int8), lambda value: value * torch.nan])
def test_quantised_or_broken_weights_are_refused(rgb_weights, tmp_path, spoil):
    state = rgb_weights[0].state_dict()
    name = next(iter(state))
    torch.save(state | {name: spoil(state[name])}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=f"1 not finite floating-point numbers .*: {name}"):
        load(tmp_path / "weights.pth")


def test_other_names_in_the_same_order_match_by_position(rgb_weights, tmp_path, capsys):
    rgb, path = rgb_weights
    torch.save({f"part{i}": value for i, value in enumerate(rgb.state_dict().values())}, tmp_path / "weights.pth")
    check_same(load(tmp_path / "weights.pth"), load(path))
    assert "matched by position" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "1 missing in the file: layer1.0.conv1.weight"),
        (lambda s: s.pop("conv1.0.weight"), "1 missing in the file: conv1.0.weight"),
        (lambda s: s.update(strange=torch.zeros(1)), "1 not in the network: strange"),
        (lambda s: s.update({"bn1.weight": torch.zeros(3)}), r"1 of another shape: bn1.weight 3 instead of \d+"),
        (lambda s: [s.pop(key) for key in list(s) if key.startswith("layer")], "missing in the file: layer1.0.conv1.weight"),
    ],
)
def test_weights_that_do_not_fit_are_listed(rgb_weights, tmp_path, spoil, message):
    state = rgb_weights[0].state_dict()
    spoil(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=f"weights.pth does not fit test_resnet, which has .*{message}.*Name the architecture"):
        load(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "cnn"])
def test_weights_of_another_network_are_refused(tmp_path, name):
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=f"does not fit {name}, which has .* missing in the file: .* not in the network: "):
        load(tmp_path / "weights.pth", name, (160, 160))


class Malicious:
    def __reduce__(self):
        return (print, ("pickled code ran",))


def test_pickled_code_is_never_run(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    for content in ({"weight": Malicious()}, {"a": torch.ones(1), "b": Namespace(c=Malicious())}):
        torch.save(content, path)
        with pytest.raises(ModelError, match=r"pickled Python objects \((builtins.)?print\), .* save the weights alone"):
            load(path)
    torch.save({"weight": Malicious()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="holds pickled Python objects or is damaged.*save the weights alone"):
        load(path)
    assert "pickled code ran" not in capsys.readouterr().out


def test_torchs_advice_to_load_unsafely_is_not_passed_on(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save({"weight": Malicious()}, path)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path, weights_only=True)
    with pytest.raises(ModelError) as own:
        read_weights(path)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: path)
    monkeypatch.setattr("timm.models._hub._get_safe_alternatives", lambda _: [])
    with pytest.raises(ModelError, match="timm's weights of test_resnet are damaged or hold more than weights") as timms:
        make_encoder("test_resnet", pretrained=True)
    for caught in (own, timms):  # the error that caused it is not shown either
        assert "weights_only" not in "".join(traceback.format_exception(caught.value))


def cut_zip(path):
    torch.save({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])


def cut_safetensors(path):
    safetensors.torch.save_file({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist. Correct the path"),
        (lambda path: path.mkdir(), "is a folder, but no run of this kit .* Name the file in it"),
        (lambda path: path.touch(), "it is empty. Copy or download it again"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "it is text, .* Download the file itself"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "Git LFS pointer"),
        (cut_zip, "it is damaged or cut short. Copy or download it again"),
        (cut_safetensors, "it is damaged or cut short. Copy or download it again"),
        (lambda path: np.savez(path.open("wb"), a=np.ones(2)), "it is a zip file of something else"),
        (lambda path: torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path), "it is a TorchScript program"),
        (lambda path: torch.save(nn.Linear(1, 1), path), r"pickled Python objects \(torch.nn.modules.linear.Linear"),
        (lambda path: torch.save([torch.ones(1)], path), "holds a list, not a state dict"),
        (lambda path: torch.save(torch.ones(1), path), "holds a Tensor, not a state dict"),
        (lambda path: torch.save({}, path), "holds no weights"),
        (lambda path: torch.save({"state_dict": {}, "epoch": 1}, path), "holds no weights"),
        (lambda path: safetensors.torch.save_file({}, path), "holds no weights"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_files_that_hold_no_weights_are_refused_with_a_remedy(tmp_path, write, message):
    path = tmp_path / "weights.bin"
    write(path)
    with pytest.raises(ModelError, match=f"^weights_path {path} .*{message}"):
        read_weights(path)


def test_weights_of_an_own_run_are_taken_from_its_encoder(tmp_path):
    trained = make_encoder("test_resnet")
    state = {f"encoder.{key}": value for key, value in trained.state_dict().items()} | {"head.cancer.bias": torch.zeros(1)}
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors", {"vocabulary": "{}"})
    torch.manual_seed(1)
    encoder = build_encoder(ModelConfig("test_resnet", 64, 64, weights_path=str(tmp_path / "weights.safetensors")))
    assert is_of_kit(tmp_path / "weights.safetensors")
    found, wanted = encoder.state_dict(), trained.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


# Freezing


def test_frozen_stages_keep_their_weights_and_statistics(tmp_path):
    encoder = make_encoder("test_resnet")
    encoder.freeze(2, norms=False)
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1.0)
    encoder.train()(make_pictures(4))[0].pow(2).mean().backward()
    optimizer.step()
    changed = {key for key, value in encoder.backbone.state_dict().items() if not torch.equal(value, before[key])}
    stages = {key.partition(".")[0] for key in changed}
    assert "layer4" in stages and "layer2" in stages and not stages & {"conv1", "bn1", "layer1"}


def test_frozen_norms_keep_statistics_everywhere_and_learn_their_scales():
    encoder = make_encoder("test_resnet")
    encoder.freeze(0, norms=True)
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    encoder.train()(make_pictures(4))[0].pow(2).mean().backward()
    assert all(torch.equal(value, before[key]) for key, value in encoder.backbone.state_dict().items())
    assert encoder.backbone.bn1.weight.grad.any()


def test_frozen_stages_stay_frozen_in_a_copy_and_after_evaluation():
    encoder = deepcopy(make_encoder("test_resnet"))
    encoder.freeze(1, norms=True)
    copied = deepcopy(encoder)
    copied.eval()
    copied.train()
    assert copied.backbone.layer4.training and not copied.backbone.bn1.training
    assert copied._at_rest[0] in set(copied.modules()) and copied._at_rest[0] not in set(encoder.modules())


@pytest.mark.parametrize("name", ["cnn", *CONVOLUTIONAL, "test_vit"])
def test_every_network_can_be_frozen_stage_by_stage(name):
    encoder = make_encoder(name)
    trained = [sum(p.numel() for p in encoder.parameters() if p.requires_grad)]
    for stages in range(1, 5):
        encoder.freeze(stages, norms=False)
        trained.append(sum(p.numel() for p in encoder.parameters() if p.requires_grad))
    assert all(more > less for more, less in zip(trained, trained[1:], strict=False))


def test_more_stages_than_a_network_has_can_not_be_frozen():
    with pytest.raises(ModelError, match="freeze_stages is 40, but the network has 5 stages"):
        make_encoder("test_resnet").freeze(40, norms=False)
