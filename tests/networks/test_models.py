"""Facts about the networks."""

import pytest
import safetensors.torch
import torch

from utils.networks.models import BoxHead, GatedAttention, build_model
from utils.runs.config import ModelConfig, ModelError
from utils.tables.vocabulary import METADATA, Vocabulary

VOCABULARY = Vocabulary(58.0, 10.0, ("CC", "MLO"), ("21", "49"), ("1", "2"))
VIEW, CC, MLO = METADATA.index("view"), 1, 2
TINY = "test_resnet"
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_config(architecture: str = TINY, **changes) -> ModelConfig:
    return ModelConfig(**{"architecture": architecture, "image_height": 64, "image_width": 64} | changes)


def make_model(architecture: str = TINY, auxiliary_sizes: tuple[int, ...] = (), **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(make_config(architecture, **changes), VOCABULARY, auxiliary_sizes).eval()


def make_batch(lengths: list[int], side: int = 64) -> Batch:
    """A batch of items with so many pictures; views alternate."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (sum(lengths), 1, side, side), generator=generator, dtype=torch.uint8)
    metadata = torch.tensor([[0.1, 0, 0, CC, 2, 1]]).repeat(sum(lengths), 1)
    metadata[1::2, VIEW] = MLO
    return pictures, metadata, torch.tensor(lengths)


def items_of(batch: Batch) -> list[Batch]:
    """Each item of a batch as a batch of its own."""
    pictures, metadata, lengths = batch
    parts = (values.split(lengths.tolist()) for values in (pictures, metadata))
    return [(p, m, torch.tensor([len(p)])) for p, m in zip(*parts, strict=True)]


def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return model(*batch).logit


@pytest.mark.parametrize("architecture", ["cnn", "resnet50", "efficientnet_b0", "tf_efficientnet_lite0", "rnn"])
def test_gives_one_logit_per_item(architecture):
    model = make_model(architecture, encoders=("cnn", TINY))
    logits = logits_of(model, make_batch([1, 3, 2] if architecture == "rnn" else [1, 1, 1]))
    assert logits.shape == (3,) and torch.isfinite(logits).all()


def test_maxvit_runs_at_the_size_that_it_was_made_for():
    model = make_model("maxvit_nano_rw_256", image_height=256, image_width=256)
    assert logits_of(model, make_batch([1], side=256)).shape == (1,)


# Several views


def test_breast_does_not_depend_on_its_neighbours_nor_on_padding():
    model, batch = make_model(level="breast"), make_batch([2, 1, 5, 3])
    together = logits_of(model, batch)
    alone = torch.cat([logits_of(model, item) for item in items_of(batch)])
    assert together.shape == (4,) and len(set(together.tolist())) == 4
    assert torch.allclose(together, alone, atol=1e-5)


def test_order_of_the_images_of_a_breast_does_not_matter():
    model, order = make_model(level="breast"), [2, 1, 0, 3]
    pictures, metadata, lengths = make_batch([4])
    shuffled = (pictures[order], metadata[order], lengths)
    assert torch.allclose(logits_of(model, (pictures, metadata, lengths)), logits_of(model, shuffled), atol=1e-6)


def test_every_image_of_a_breast_counts():
    model = make_model(level="breast")
    pictures, *others = make_batch([3])
    logits = [logits_of(model, (pictures, *others)).item()]
    for number in range(3):
        changed = pictures.clone()
        changed[number] = 255 - changed[number]
        logits.append(logits_of(model, (changed, *others)).item())
    assert len({round(logit, 6) for logit in logits}) == 4


def test_multi_view_model_learns_from_every_part():
    model = make_model("cnn", level="breast").train()
    model(*make_batch([4, 2])).logit.square().sum().backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert not {name for name in idle if not name.endswith("score.bias")}  # which a softmax does not see


def test_attention_is_a_mean_of_what_the_mask_shows():
    torch.manual_seed(0)
    attention, features = GatedAttention(6), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    with torch.inference_mode():
        single, three = attention(features, mask)
        repeated = attention(features[:1, :1].repeat(1, 4, 1), torch.ones(1, 4, dtype=torch.bool))
    assert torch.allclose(single, features[0, 0])
    assert torch.allclose(repeated[0], features[0, 0], atol=1e-6)
    lowest, highest = features[1, :3].min(dim=0).values, features[1, :3].max(dim=0).values
    assert (three >= lowest).all() and (three <= highest).all() and not torch.allclose(three, features[1, :3].mean(dim=0))


# The hybrid


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_recurrent_breast_does_not_depend_on_its_neighbours(cell):
    model = make_model("rnn", encoders=("cnn",), recurrent_cell=cell)
    batch = make_batch([2, 1, 4])
    alone = torch.cat([logits_of(model, item) for item in items_of(batch)])
    assert torch.allclose(logits_of(model, batch), alone, atol=1e-5)


def test_recurrent_model_reads_pictures_metadata_and_order():
    model = make_model("rnn", encoders=("cnn",))
    pictures, metadata, lengths = make_batch([2])
    older = metadata.clone()
    older[:, 0] += 2
    variants = [(pictures, metadata), (255 - pictures, metadata), (pictures, older), (pictures.flip(0), metadata)]
    results = [logits_of(model, (*variant, lengths)) for variant in variants]
    assert len({round(float(result), 6) for result in results}) == 4


def test_recurrent_model_learns_from_every_part():
    model = make_model("rnn", encoders=("cnn", TINY)).train()
    model(*make_batch([2, 1])).logit.sum().backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    parts = ["encoders.0.backbone.blocks.0.0", "encoders.1.backbone.conv1", "metadata.tables.0", "recurrent", "head"]
    assert all(any(name.startswith(part) for name in learns) for part in parts)


def test_own_image_run_loads_as_an_encoder(tmp_path):
    trained = make_model(TINY)
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "weights.safetensors", {"vocabulary": "{}"})
    torch.manual_seed(1)
    config = make_config("rnn", encoders=("cnn", TINY), weights_path=str(tmp_path / "weights.safetensors"))
    hybrid = build_model(config, VOCABULARY)
    found, wanted = hybrid.encoders[1].state_dict(), trained.encoder.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


# Further heads


@pytest.mark.parametrize(("architecture", "level"), [("cnn", "image"), (TINY, "breast"), ("rnn", "image")])
def test_auxiliary_logits_are_computed_in_training_alone(architecture, level):
    model, batch = make_model(architecture, (2, 4), level=level, encoders=("cnn",)), make_batch([1, 1])
    with torch.inference_mode():
        assert model(*batch).auxiliary is None
        assert model.train()(*batch).auxiliary.shape == (2, 6)
        assert make_model(architecture, level=level, encoders=("cnn",)).train()(*batch).auxiliary is None


def test_auxiliary_head_does_not_change_the_logit():
    batch = make_batch([1, 1])
    with_head, without = make_model("cnn", (2, 3)), make_model("cnn")
    without.load_state_dict(with_head.state_dict(), strict=False)
    assert torch.equal(logits_of(with_head, batch), logits_of(without, batch))


@pytest.mark.parametrize("architecture", ["cnn", TINY, "test_convnext", "test_efficientnet"])
def test_box_head_gives_ordered_corners(architecture):
    batch = make_batch([1] * 8)
    with torch.inference_mode():
        boxes = make_model(architecture, box_head=True)(*batch).box
        assert make_model(architecture)(*batch).box is None
    assert boxes.shape == (8, 4) and torch.isfinite(boxes).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all() and (boxes[:, 2:] - boxes[:, :2] < 1).all()
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (centre > 0).all() and (centre < 1).all()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 1), (3, 4)])
def test_perfect_heat_map_gives_the_centre_of_its_cell(row, column):
    head, maps = BoxHead(2), torch.zeros(1, 2, 4, 5)
    maps[0, 0, row, column] = 1
    with torch.inference_mode():
        head.heat.weight.copy_(torch.tensor([100.0, 0.0])[None, :, None, None])
        box = head(maps)[0]
    assert ((box[:2] + box[2:]) / 2).tolist() == pytest.approx([(column + 0.5) / 5, (row + 0.5) / 4])


def test_size_of_a_box_follows_from_what_is_at_its_place():
    head, maps = BoxHead(2), torch.zeros(1, 2, 4, 5)
    maps[0, 0, 2, 1], maps[0, 1] = 1, 50.0
    maps[0, 1, 2, 1] = 3.0  # elsewhere the channel says something else
    with torch.inference_mode():
        head.heat.weight.copy_(torch.tensor([1e4, 0.0])[None, :, None, None])
        head.size.weight.copy_(torch.tensor([[0.0, 0.5], [0.0, -0.5]]))
        head.size.bias.zero_()
        box = head(maps)[0]
    assert (box[2:] - box[:2]).tolist() == pytest.approx(torch.sigmoid(torch.tensor([1.5, -1.5])).tolist(), rel=1e-4)


def test_box_needs_maps_of_height_and_width():
    for architecture in ("test_vit", "test_mambaout"):  # tokens, channels last
        with pytest.raises(ModelError, match=f"box_head needs a network whose last maps .* {architecture}"):
            make_model(architecture, image_height=160, image_width=160, box_head=True)


def test_box_head_reads_maps_of_other_channels_than_the_features():
    model = make_model("mobilenetv3_small_050", box_head=True)
    assert model.encoder.map_channels != model.encoder.num_features
    assert model(*make_batch([1, 1])).box.shape == (2, 4)


# What does not go together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "exam"}, "level is 'exam'; choose from image, breast"),
        ({"level": "breast", "box_head": True}, "box_head needs level image"),
        ({"architecture": "rnn", "box_head": True}, "box_head needs level image"),
        ({"architecture": "rnn", "recurrent_cell": "gnu"}, "recurrent_cell is 'gnu'; choose from gru, lstm, rnn"),
        ({"architecture": "resnet51"}, "resnet51.*nearest name is resnet51q"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        build_model(make_config(**{"encoders": ("cnn",)} | changes), VOCABULARY)


def test_item_of_the_hybrid_is_a_breast_whatever_its_level():
    assert make_config("rnn").item == "breast"
    assert [make_config(level=level).item for level in ("image", "breast")] == ["image", "breast"]
