import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from utils.dataset import Vocabulary
from utils.models import ModelConfig, ModelError, PlainCnn, build_model, check_image_size, load_weights

VOCABULARY = Vocabulary(58.0, 10.0, ("CC", "MLO"), ("21", "49"), ("1", "2"))


def make_config(architecture, **changes):
    return ModelConfig(**{"architecture": architecture, "image_height": 64, "image_width": 64} | changes)


def make_batch(lengths, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (sum(lengths), 1, side, side), generator=generator, dtype=torch.uint8)
    metadata = torch.tensor([[0.1, 0, 0, 1, 2, 1]]).repeat(sum(lengths), 1)
    return pictures, metadata, torch.tensor(lengths)


@pytest.mark.parametrize("architecture", ["cnn", "resnet50", "efficientnet_b0", "tf_efficientnet_lite0", "rnn"])
def test_gives_one_logit_per_item(architecture):
    model = build_model(make_config(architecture, encoders=("cnn", "resnet18")), VOCABULARY).eval()
    lengths = [1, 3, 2] if architecture == "rnn" else [1, 1, 1]
    with torch.inference_mode():
        logits = model(*make_batch(lengths))
    assert logits.shape == (3,) and torch.isfinite(logits).all()


def test_maxvit_runs_at_the_size_that_it_was_made_for():
    model = build_model(make_config("maxvit_nano_rw_256", image_height=256, image_width=256), VOCABULARY).eval()
    with torch.inference_mode():
        assert model(*make_batch([1], side=256)).shape == (1,)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_recurrent_breast_does_not_depend_on_its_neighbours(cell):
    torch.manual_seed(0)
    model = build_model(make_config("rnn", encoders=("cnn",), recurrent_cell=cell), VOCABULARY).eval()
    pictures, metadata, _ = make_batch([2, 1, 4])
    with torch.inference_mode():
        together = model(pictures, metadata, torch.tensor([2, 1, 4]))
        alone = [
            model(p, m, torch.tensor([len(p)]))
            for p, m in zip(pictures.split([2, 1, 4]), metadata.split([2, 1, 4]), strict=True)
        ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_recurrent_model_reads_pictures_metadata_and_order():
    torch.manual_seed(0)
    model = build_model(make_config("rnn", encoders=("cnn",)), VOCABULARY).eval()
    pictures, metadata, lengths = make_batch([2])
    older = metadata.clone()
    older[:, 0] += 2
    with torch.inference_mode():
        results = [model(pictures, metadata, lengths), model(255 - pictures, metadata, lengths)]
        results += [model(pictures, older, lengths), model(pictures.flip(0), metadata, lengths)]
    assert len({round(float(result), 6) for result in results}) == 4


def test_image_model_ignores_metadata():
    model = build_model(make_config("cnn"), VOCABULARY).eval()
    pictures, metadata, lengths = make_batch([1, 1])
    with torch.inference_mode():
        assert torch.equal(model(pictures, metadata, lengths), model(pictures, metadata * 0, lengths))


def test_recurrent_model_learns_from_every_part():
    model = build_model(make_config("rnn", encoders=("cnn", "resnet18")), VOCABULARY)
    model(*make_batch([2, 1])).sum().backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    parts = ["encoders.0.backbone.blocks.0.0", "encoders.1.backbone.conv1", "metadata.tables.0", "recurrent", "head"]
    assert all(any(name.startswith(part) for name in learns) for part in parts)


def test_unknown_names_are_refused_with_a_hint():
    with pytest.raises(ModelError, match="resnet51.*did you mean"):
        build_model(make_config("resnet51"), VOCABULARY)
    with pytest.raises(ModelError, match="recurrent_cell is 'gnu'; choose from gru, lstm, rnn"):
        build_model(make_config("rnn", encoders=("cnn",), recurrent_cell="gnu"), VOCABULARY)


@pytest.mark.parametrize(
    ("architecture", "size", "nearest"),
    [("maxvit_nano_rw_256", (250, 160), "256, image_width=160"), ("cnn", (16, 64), "32, image_width=64")],
)
def test_size_that_a_network_does_not_take_is_refused_up_front(architecture, size, nearest):
    with pytest.raises(ModelError, match=f"does not take images of {size[0]} x {size[1]}. image_height={nearest}"):
        check_image_size(architecture, *size)


@pytest.mark.parametrize("architecture", ["resnet50", "efficientnet_b0"])
def test_any_size_suits_a_convolutional_network(architecture):
    check_image_size(architecture, 97, 65)


@pytest.fixture
def rgb_weights(tmp_path):
    """Weights as published: three input channels and a head of 1000 classes."""
    torch.manual_seed(1)
    model = timm.create_model("resnet18", num_classes=10)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return model, path


def make_grey():
    return timm.create_model("resnet18", in_chans=1, num_classes=0)


def test_loaded_weights_see_a_grey_picture_as_the_rgb_network_does(rgb_weights):
    rgb, path = rgb_weights
    grey = make_grey()
    assert sorted(load_weights(grey, path)) == ["fc.bias", "fc.weight"]
    picture = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        wanted = rgb.eval().forward_head(rgb.forward_features(picture.repeat(1, 3, 1, 1)), pre_logits=True)
        assert torch.allclose(grey.eval()(picture), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}]
)
def test_common_checkpoint_wrappings_load(rgb_weights, tmp_path, wrap):
    rgb, _ = rgb_weights
    torch.save(wrap(rgb.state_dict()), tmp_path / "weights.pth")
    grey = make_grey()
    load_weights(grey, tmp_path / "weights.pth")
    assert torch.equal(grey.layer1[0].conv1.weight, rgb.layer1[0].conv1.weight)


def test_other_names_in_the_same_order_match_by_position(rgb_weights, tmp_path, capsys):
    rgb, _ = rgb_weights
    torch.save({f"part{i}": value for i, value in enumerate(rgb.state_dict().values())}, tmp_path / "weights.pth")
    grey = make_grey()
    load_weights(grey, tmp_path / "weights.pth")
    assert torch.equal(grey.layer4[1].conv2.weight, rgb.layer4[1].conv2.weight)
    assert "matched by position" in capsys.readouterr().out


def test_own_image_run_loads_as_an_encoder_with_a_warning(tmp_path, capsys):
    torch.manual_seed(2)
    trained = build_model(make_config("resnet18"), VOCABULARY)
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "weights.safetensors", {"vocabulary": "{}"})
    config = make_config("rnn", encoders=("cnn", "resnet18"), weights_path=str(tmp_path / "weights.safetensors"))
    hybrid = build_model(config, VOCABULARY)
    assert "not out of fold" in capsys.readouterr().out
    assert torch.equal(hybrid.encoders[1].backbone.conv1.weight, trained.encoder.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "1 missing in the file: layer1.0.conv1.weight"),
        (lambda s: s.update(strange=torch.zeros(1)), "1 not in the network: strange"),
        (lambda s: s.update({"bn1.weight": torch.zeros(3)}), "1 of another shape: bn1.weight"),
    ],
)
def test_weights_that_do_not_fit_are_listed(rgb_weights, tmp_path, spoil, message):
    state = rgb_weights[0].state_dict()
    spoil(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=message):
        load_weights(make_grey(), tmp_path / "weights.pth")


class Malicious:
    def __reduce__(self):
        return (print, ("pickled code ran",))


def test_pickled_code_is_never_run(tmp_path, capsys):
    torch.save({"weight": Malicious()}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="can't be read as plain weights"):
        load_weights(make_grey(), tmp_path / "weights.pth")
    assert "pickled code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["absent.pth", "broken.safetensors", "broken.pth"])
def test_unreadable_weights_are_named(tmp_path, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(ModelError, match=name):
        load_weights(make_grey(), tmp_path / name)


def test_plain_cnn_halves_the_picture_five_times():
    assert PlainCnn(0.0).blocks(torch.zeros(1, 1, 96, 64)).shape == (1, 256, 3, 2)


def test_encoder_normalises_as_its_weights_expect():
    encoder = build_model(make_config("tf_efficientnet_lite0"), VOCABULARY).encoder
    assert (encoder.mean, encoder.std) == (0.5, 0.5)
    assert build_model(make_config("resnet18"), VOCABULARY).encoder.mean == pytest.approx(np.mean([0.485, 0.456, 0.406]))
