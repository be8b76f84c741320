from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.helpers import TINY, make_config
from utils.evaluation.explanation import (
    GRAD_CAM,
    HIRESCAM,
    KINDS,
    ExplanationError,
    check_network,
    choose_examples,
    explain,
    explain_run,
    name_method,
    to_source_map,
)
from utils.evaluation.figures import draw_overlay, read_original, show_explanations
from utils.evaluation.pointing import strongest_place
from utils.images.boxes import to_source
from utils.images.breast import find_breast
from utils.images.cached import read_manifest
from utils.images.inputs import open_inputs
from utils.images.settings import CacheSettings
from utils.images.training_data import TrainingData
from utils.networks.encoders import build_encoder
from utils.networks.models import build_model
from utils.phantom.competition import BOXES_FILE
from utils.runs.config import TrainingError
from utils.runs.run import Run
from utils.tables.boxes import CORNERS, read_boxes
from utils.tables.competition import image_paths
from utils.tables.vocabulary import Vocabulary
from utils.training.dataset import ImageDataset, make_dataset
from utils.training.fold_weights import load_fold
from utils.training.folds import train_run
from utils.training.inference import forward
from utils.training.loading import make_loader

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(images, cache_dir, tmp_path_factory):
    """A run of one epoch."""
    run_dir = tmp_path_factory.mktemp("runs") / "cnn"
    train_run(make_config(TINY, epochs=1), TrainingData(images, cache_dir), run_dir)
    return run_dir


def make_explained(images, cache_dir, architecture="cnn", count=4, finer=1, encoders=("cnn",), **options):
    """Maps of a network with random weights; the network and its data set."""
    config = make_config(TINY, architecture, **options)
    config = replace(config, model=replace(config.model, encoders=encoders))
    vocabulary = Vocabulary.from_images(images)
    torch.manual_seed(0)
    model = build_model(config.model, vocabulary)
    chosen = images[images.patient_id.isin(images.patient_id.unique()[:count])]
    dataset = make_dataset(config, chosen, cache_dir, "train", vocabulary)
    maps = explain(model, dataset, config, CPU, finer=finer)
    if not any(heat.any() for heat in maps.values()):  # of a random head everything may speak against cancer
        model.head.cancer.weight.data.neg_()
        maps = explain(model, dataset, config, CPU, finer=finer)
    return maps, model, dataset


def check_maps(maps, image_ids):
    assert set(maps) == set(image_ids)
    for heat in maps.values():
        assert heat.shape == (64, 48) and heat.dtype == np.float32
        assert heat.min() >= 0 and heat.max() in (0, pytest.approx(1))
    assert any(heat.any() for heat in maps.values())


# Networks


@pytest.mark.parametrize("finer", [0, 1])
@pytest.mark.parametrize("architecture", ["cnn", "resnet50", "efficientnet_b0", "test_convnext"])
def test_every_image_has_a_map(images, cache_dir, architecture, finer):
    maps, _, dataset = make_explained(images, cache_dir, architecture, count=1, finer=finer)
    check_maps(maps, dataset.images.image_id)


def test_network_of_breasts_has_a_map_of_each_image(images, cache_dir):
    maps, _, dataset = make_explained(images, cache_dir, model={"level": "breast"})
    check_maps(maps, dataset.images.image_id)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_rnn_has_a_map_of_each_image(images, cache_dir, cell):
    maps, model, dataset = make_explained(images, cache_dir, "rnn", model={"recurrent_cell": cell})
    check_maps(maps, dataset.images.image_id)
    assert not any(module.training for module in model.modules())


def test_maxvit_has_a_map(images):
    settings = CacheSettings(256, 256)
    config = make_config(settings, "maxvit_nano_rw_256")
    dataset = OnePicture(images.head(1), "", "train", Vocabulary.from_images(images))
    dataset.picture = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    model = build_model(config.model, Vocabulary.from_images(images))
    (heat,) = explain(model, dataset, config, CPU).values()
    model.head.cancer.weight.data.neg_()
    (against,) = explain(model, dataset, config, CPU).values()
    assert heat.shape == (256, 256) and max(heat.max(), against.max()) == pytest.approx(1)


def explain_one(images, architecture, side=160, **options):
    """Map of a picture with a network of random weights, and the network."""
    config = make_config(CacheSettings(side, side), architecture)
    vocabulary = Vocabulary.from_images(images)
    dataset = OnePicture(images.head(1), "", "train", vocabulary)
    dataset.picture = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    torch.manual_seed(0)
    model = build_model(config.model, vocabulary)
    model.encoder.backbone = options.pop("backbone", model.encoder.backbone)
    (heat,) = explain(model, dataset, config, CPU, **options).values()
    if not heat.any():
        model.head.cancer.weight.data.neg_()
        (heat,) = explain(model, dataset, config, CPU, **options).values()
    return heat, model, torch.tensor(dataset.picture)[None, None]


@pytest.mark.parametrize("finer", [0, 1])
def test_map_of_tokens_is_grad_cam_by_hand(images, finer):
    heat, model, picture = explain_one(images, "test_vit", finer=finer)
    kept = []
    model.encoder.backbone.blocks[-1].register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    logit = model.head.cancer(model.encoder(picture)[0]).sum()
    (gradient,) = torch.autograd.grad(logit, kept[-1])
    tokens, weights = kept[-1][0, 1:].detach(), gradient[0, 1:].mean(dim=0)  # without the class token
    cam = torch.stack([torch.stack([tokens[10 * y + x] @ weights for x in range(10)]) for y in range(10)])
    cam = nn.functional.interpolate(cam[None, None], (160, 160), mode="bilinear").relu()[0, 0]
    assert np.allclose(heat, cam / cam.max(), atol=1e-4)


@pytest.mark.parametrize("finer", [0, 1])
def test_map_of_channels_last_is_hirescam_after_the_last_normalisation_and_grad_cam_before(images, finer):
    heat, model, picture = explain_one(images, "swin_tiny_patch4_window7_224", 64, finer=finer)
    backbone, kept = model.encoder.backbone, []
    layer = backbone.norm if finer == 0 else backbone.layers[2]
    layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    (gradient,) = torch.autograd.grad(model.head.cancer(model.encoder(picture)[0]).sum(), kept)  # (1, h, w, C)
    weights = gradient.mean(dim=(1, 2), keepdim=True) if finer else gradient
    cam = (kept[0].detach() * weights).sum(dim=3)
    cam = nn.functional.interpolate(cam[None], (64, 64), mode="bilinear").relu()[0, 0]
    assert np.allclose(heat, cam / cam.max(), atol=1e-4)


class Tokens(nn.Module):
    """Brightness by cells of 8 x 8 as tokens, without saying which place each is of."""

    def __init__(self):
        super().__init__()
        self.cells = nn.AvgPool2d(8)
        self.feature_info = [{"module": "cells", "reduction": 8, "num_chs": 1}]

    def forward_features(self, x):
        return self.cells(x).flatten(2).transpose(1, 2)  # (N, 1, h, w) -> (N, h * w, 1)

    def forward_head(self, x, pre_logits=True):
        return x.mean(dim=1).expand(-1, 256)


class ClassToken(Tokens):
    """Tokens of which the first alone is pooled."""

    num_prefix_tokens = 1

    def forward_features(self, x):
        tokens = super().forward_features(x)
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)

    def forward_head(self, x, pre_logits=True):
        return x[:, 0].expand(-1, 256)


class Silent(Tokens):
    """A network whose layers say nothing of their maps."""

    feature_info = ()

    def __init__(self):
        nn.Module.__init__(self)
        self.cells = nn.AvgPool2d(8)


@pytest.mark.parametrize(("network", "finer"), [(Tokens, 0), (ClassToken, 0), (Silent, 0), (Silent, 1)])
def test_network_whose_tokens_have_no_known_place_is_refused_with_advice(images, network, finer):
    with pytest.raises(ExplanationError, match=f"{network.__name__} gives neither maps nor.*maxvit_nano_rw_256"):
        explain_one(images, "cnn", 64, backbone=network(), finer=finer)


def test_network_without_maps_is_refused_before_any_picture_is_read():
    check_network(make_config(TINY))
    check_network(make_config(CacheSettings(64, 64), "test_vit"))
    with pytest.raises(ExplanationError, match="LevitDistilled gives neither maps nor"):
        check_network(make_config(CacheSettings(64, 64), "levit_128s"))


def test_map_finer_than_any_stage_is_refused(images, cache_dir):
    with pytest.raises(ExplanationError, match="lower finer"):
        make_explained(images, cache_dir, finer=7)


# HiResCAM


@pytest.mark.parametrize("finer", [0, 1])
def test_map_is_what_the_logit_gains_from_each_cell(images, cache_dir, finer):
    maps, model, dataset = make_explained(images, cache_dir, count=1, finer=finer)
    batch = next(iter(make_loader(dataset, len(dataset))))
    x = (batch["images"].double() / 255 - 0.5) / 0.5
    model.double()  # for differences of logits
    backbone, blocks = model.encoder.backbone, model.encoder.backbone.blocks
    early, late = blocks[: len(blocks) - finer], blocks[len(blocks) - finer :]
    with torch.no_grad():
        found = early(x)
        cam = torch.zeros(len(x), 1, *found.shape[2:], dtype=x.dtype)
        for row, column in np.ndindex(*found.shape[2:]):
            scaled = [found.clone() for _ in range(2)]
            scaled[0][:, :, row, column] *= 1 - 1e-6
            scaled[1][:, :, row, column] *= 1 + 1e-6
            less, more = (model.head.cancer(backbone.forward_head(late(maps))) for maps in scaled)
            cam[:, 0, row, column] = (more - less).squeeze(1) / 2e-6
    cam = nn.functional.interpolate(cam, (64, 48), mode="bilinear").relu()[:, 0]
    for image_id, heat in zip(dataset.images.image_id, cam.numpy(), strict=True):
        assert np.allclose(maps[image_id], heat / max(heat.max(), 1e-30), atol=1e-3)


def test_map_of_average_pooling_and_a_linear_head_is_the_class_activation_map(images):
    heat, model, picture = explain_one(images, "test_resnet", finer=0)
    maps = model.encoder(picture)[1][0]  # (C, 5, 5)
    cam = torch.tensordot(model.head.cancer.weight[0], maps, dims=1)  # Zhou et al., CVPR 2016
    cam = nn.functional.interpolate(cam[None, None], (160, 160), mode="bilinear").relu()[0, 0].detach()
    assert np.allclose(heat, cam / cam.max(), atol=1e-4)


@pytest.mark.parametrize(
    "architecture", ["test_resnet", "test_efficientnet", "test_efficientnet_gn", "test_efficientnet_ln", "test_convnext"]
)
def test_hirescam_is_used_only_where_no_normalisation_undoes_the_scale_of_the_maps(architecture):
    config = make_config(TINY, architecture)
    torch.manual_seed(0)
    encoder = build_encoder(config.model).eval()
    picture = torch.randint(0, 256, (1, 1, 64, 48))
    with torch.no_grad():
        before, _ = encoder(picture)
        explained = encoder.backbone.get_submodule(encoder.backbone.feature_info[-2]["module"])
        explained.register_forward_hook(lambda module, inputs, output: output * 2)
        after, _ = encoder(picture)
    is_undone = (after - before).abs().max() < 1e-3 * before.abs().max()
    assert name_method(config) == (GRAD_CAM if is_undone else HIRESCAM)


def test_method_is_named_for_each_encoder_if_they_differ():
    def name_of(*encoders):
        config = make_config(TINY, "rnn")
        return name_method(replace(config, model=replace(config.model, encoders=encoders)))

    assert name_of("cnn", "test_resnet") == HIRESCAM
    assert name_of("cnn", "test_convnext") == f"{HIRESCAM} of cnn, {GRAD_CAM} of test_convnext"


def test_items_and_batches_do_not_change_maps(images, cache_dir):
    together, model, dataset = make_explained(images, cache_dir, "rnn", count=2)
    alone = explain(model, dataset, make_config(TINY, "rnn", batch_size=1), CPU)
    assert all(np.allclose(together[image_id], alone[image_id], atol=1e-4) for image_id in together)


def test_mirrored_picture_has_its_share_of_the_map(images, cache_dir):
    _, model, dataset = make_explained(images, cache_dir, count=1)
    config = make_config(TINY, test_time_flip=True)
    flipped = OnePicture(dataset.images.head(1), "", "train", Vocabulary.from_images(images))
    straight = OnePicture(dataset.images.head(1), "", "train", Vocabulary.from_images(images))
    straight.picture = dataset._load(0)
    flipped.picture = straight.picture[:, ::-1]
    (a,), (b,) = (explain(model, part, config, CPU).values() for part in (straight, flipped))
    assert np.allclose(a, b[:, ::-1], atol=1e-4)


def test_map_of_rnn_is_the_sum_of_its_encoders(images, cache_dir):
    maps, model, dataset = make_explained(
        images, cache_dir, "rnn", count=2, finer=0, batch_size=64, encoders=("cnn", "test_resnet")
    )
    kept = []
    for encoder in model.encoders:
        encoder.register_forward_hook(lambda module, inputs, output: kept.append(output[1]))
    batch = next(iter(make_loader(dataset, len(dataset))))
    gradients = torch.autograd.grad(forward(model, batch, CPU).logit.sum(), kept)
    total = 0
    for found, gradient in zip(kept, gradients, strict=True):
        cam = (gradient * found).sum(1, keepdim=True) * found[0, 0].numel()
        total = total + nn.functional.interpolate(cam, (64, 48), mode="bilinear")
    expected = total.relu()[:, 0].detach().numpy()
    rows = [row for index in range(len(dataset)) for row in dataset._rows(index)]
    for image_id, heat in zip(dataset.images.image_id.iloc[rows], expected, strict=True):
        assert np.allclose(maps[image_id], heat / max(heat.max(), 1e-30), atol=1e-3)


class OnePicture(ImageDataset):
    """A data set whose images all show the same picture."""

    def _load(self, row):
        return self.picture


class BrightSpot(nn.Module):
    """Maps that are the picture's brightness by cells of 8 x 8, and features that are their mean."""

    output_fmt = "NCHW"

    def forward_features(self, x):
        return nn.functional.avg_pool2d(x, 8).relu()

    def forward_head(self, x, pre_logits=True):
        return x.mean(dim=(2, 3))


def test_network_that_sees_a_bright_spot_alone_is_explained_by_it(images):
    config = make_config(TINY)
    vocabulary = Vocabulary.from_images(images)
    dataset = OnePicture(images.head(1), "", "train", vocabulary)
    dataset.picture = np.full((64, 48), 20, dtype=np.uint8)
    dataset.picture[40:48, 16:24] = 250
    model = build_model(config.model, vocabulary)
    model.encoder.backbone = BrightSpot()
    model.head.cancer = nn.Linear(1, 1)
    nn.init.ones_(model.head.cancer.weight)
    (heat,) = explain(model, dataset, config, CPU, finer=0).values()
    assert strongest_place(heat) == (pytest.approx(20 / 48), pytest.approx(44 / 64))
    nn.init.constant_(model.head.cancer.weight, -1)  # now what is bright speaks against cancer
    (heat,) = explain(model, dataset, config, CPU, finer=0).values()
    assert not heat.any() and strongest_place(heat) is None


# Out of fold


def test_run_is_explained_by_the_network_that_never_saw_the_patient(run, images, cache_dir):
    maps = explain_run(run, images, cache_dir)
    assert set(maps) == set(images.image_id)
    config = Run(run).config
    folds = pd.read_csv(run / "folds.csv", dtype={"patient_id": str}).set_index("patient_id").fold
    held_out = images[images.patient_id.map(folds) == 1]
    for fold, same in {0: False, 1: True}.items():
        model, vocabulary = load_fold(config, run / f"fold{fold}")
        expected = explain(model, make_dataset(config, held_out, cache_dir, "train", vocabulary), config, CPU)
        assert all(np.allclose(maps[key], expected[key], atol=1e-4) for key in expected) == same


def test_only_the_images_asked_for_are_given(run, images, cache_dir):
    wanted = images.image_id.iloc[[0, -1]].tolist()
    assert set(explain_run(run, images, cache_dir, wanted)) == set(wanted)


@pytest.mark.parametrize("max_views", [None, 1])
def test_breast_is_explained_with_all_its_images_as_among_all_breasts_of_its_fold(images, cache_dir, tmp_path, max_views):
    config = make_config(TINY, "rnn", epochs=1, max_views=max_views)
    train_run(config, TrainingData(images, cache_dir), tmp_path / "rnn")
    held_out = images[Run(tmp_path / "rnn").fold_of(images.patient_id) == 1]
    model, vocabulary = load_fold(config, tmp_path / "rnn" / "fold1")
    expected = explain(model, make_dataset(config, held_out, cache_dir, "train", vocabulary), config, CPU)
    assert (set(expected) == set(held_out.image_id)) == (max_views is None)
    wanted = [*held_out.image_id[:1], *held_out.image_id[-3:]]
    found = explain_run(tmp_path / "rnn", images, cache_dir, wanted)
    assert found.keys() == expected.keys() & set(wanted) and found
    assert all(np.allclose(found[name], expected[name], atol=1e-4) for name in found)


def test_what_is_explained_is_what_was_predicted(run, images, cache_dir):
    config = Run(run).config
    oof = pd.read_csv(run / "oof.csv", dtype={"image_id": str})
    oof = oof[oof.fold == 0]
    model, vocabulary = load_fold(config, run / "fold0")
    model.eval()
    held_out = images[images.image_id.isin(oof.image_id)]
    batch = next(iter(make_loader(make_dataset(config, held_out, cache_dir, "train", vocabulary), len(held_out))))
    with torch.no_grad():
        logits = forward(model, batch, CPU).logit.numpy()
    assert np.allclose(logits, oof.set_index("image_id").logit.loc[held_out.image_id], atol=1e-4)


def test_what_cannot_be_explained_says_why(run, images, cache_dir, tmp_path):
    with pytest.raises(ExplanationError, match="not in the training table"):
        explain_run(run, images, cache_dir, ["nobody"])
    with pytest.raises(ExplanationError, match="patients that the run did not have"):
        explain_run(run, images.assign(patient_id="new"), cache_dir)
    with pytest.raises(ExplanationError, match="not in the cache.*settings"):
        explain_run(run, images, tmp_path)
    with pytest.raises(TrainingError, match="is not a run folder"):
        explain_run(tmp_path, images, cache_dir)


# Geometry


def test_map_goes_back_as_boxes_do(competition, images, cache_dir):
    manifest = read_manifest(cache_dir, "train", TINY)
    table = pd.DataFrame({"image_id": manifest.image_id, "x_min": 4 / 48, "y_min": 20 / 64, "x_max": 16 / 48, "y_max": 36 / 64})
    heat = np.zeros((64, 48), dtype=np.float32)
    heat[20:36, 4:16] = 1
    expected = to_source(table, manifest, TINY)[CORNERS].to_numpy()
    assert (manifest.flipped == "1").any() and (manifest.flipped == "0").any()
    for (_, row), corners in zip(manifest.iterrows(), expected, strict=True):
        source = to_source_map(heat, row, TINY)
        assert source.shape == (int(row.source_height), int(row.source_width))
        rows, columns = np.flatnonzero(source.max(axis=1) > 0.5), np.flatnonzero(source.max(axis=0) > 0.5)
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        inside = np.clip(corners, 0, [source.shape[1], source.shape[0]] * 2)
        assert np.allclose(found, inside, atol=1.01)


# Figures


def test_examples_are_the_surest_of_their_kind():
    breasts = pd.DataFrame(
        {"prediction_id": list("abcdef"), "cancer": [1, 1, 1, 0, 0, 0], "probability": [0.9, 0.8, 0.1, 0.7, 0.2, 0.3]}
    )
    table = pd.DataFrame(
        {"prediction_id": list("abcdef") * 2, "view": ["MLO"] * 6 + ["CC"] * 6, "cancer": [1, 1, 1, 0, 0, 0] * 2}
    )
    table["image_id"] = table.prediction_id + table["view"]
    chosen = choose_examples(breasts, table, threshold=0.5, count=1)
    assert chosen.kind.tolist() == list(KINDS)
    assert chosen.image_id.tolist() == ["aCC", "dCC", "cCC", "eCC"]
    assert len(choose_examples(breasts, table, threshold=0.5, count=9)) == 6


def test_original_is_shown_in_its_own_orientation(competition, images):
    from utils.dicom.file import read_dicom

    path = image_paths(images.head(1), competition, "train")[0]
    whole = read_dicom(path)
    assert np.allclose(read_original(path), whole, atol=1e-6)
    small = read_original(path, tallest=whole.shape[0] // 2)
    assert small.shape[0] == whole.shape[0] // 2
    assert find_breast(small).flipped == find_breast(whole).flipped


def test_gallery_shows_each_example_with_its_boxes(run, competition, images, cache_dir):
    oof = pd.read_csv(run / "oof.csv")
    breasts = oof.groupby("prediction_id", as_index=False)[["cancer", "probability"]].mean()
    examples = choose_examples(breasts, images, breasts.probability.median(), count=2)
    maps = explain_run(run, images, cache_dir, examples.image_id[1:])
    inputs = open_inputs(competition, cache_dir, TINY.image_height, TINY.image_width)
    figure = show_explanations(examples, maps, inputs, read_boxes(competition / BOXES_FILE))
    titled = [axis for axis in figure.axes if axis.get_title()]
    assert len(titled) == len(examples)
    assert "no map" in titled[0].get_title()
    with_cancer = [axis for axis in titled if ", cancer" in f", {axis.get_title().splitlines()[1]}"]
    assert with_cancer and all(len(axis.patches) >= 1 for axis in with_cancer)


@pytest.mark.parametrize("has_map", [True, False])
def test_boxes_are_drawn_on_their_lesion_in_a_smaller_copy_with_a_map_or_without(has_map):
    picture = np.zeros((50, 40), np.float32)  # of 100 x 80 stored pixels
    picture[10:20, 5:15] = 1
    heat = np.pad(np.ones((20, 20), np.float32), ((20, 60), (10, 50))) if has_map else None
    boxes = pd.DataFrame({"x_min": [10.0, 60.0], "y_min": [20.0, 40.0], "x_max": [30.0, 90.0], "y_max": [40.0, 60.0]})
    figure, axis = plt.subplots()
    draw_overlay(axis, picture, (100, 80), heat, boxes.assign(predicted=[False, True]))
    true, predicted = axis.patches
    assert true.get_bbox().extents.tolist() == [4.5, 9.5, 14.5, 19.5]  # pixel i reaches from i - 0.5 to i + 0.5
    assert (true.get_linestyle(), predicted.get_linestyle()) == ("-", "--")
    assert (axis.get_xlim(), axis.get_ylim()) == ((-0.5, 39.5), (49.5, -0.5))  # though a box reaches out of the picture
    if has_map:
        (cross,) = axis.lines
        assert cross.get_xydata().tolist() == [[9.5, 14.5]]
    plt.close(figure)
