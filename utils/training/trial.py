"""Tries a training's networks on one image before the images are made, as they would fail hours later."""

from dataclasses import replace

import timm
import torch
from torch import nn

from utils.core.errors import KitError
from utils.networks.auxiliary import SIZES
from utils.networks.models import build_model
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.errors import ModelError
from utils.runs.execution import Execution
from utils.tables.vocabulary import Vocabulary
from utils.training.folds import patch_config
from utils.training.learner import encoders_of
from utils.training.sources import example_file

ANY = Vocabulary(age_mean=0.0, age_std=1.0, view=("CC", "MLO"), machine_id=("0",), site_id=("0",))


def try_networks(config: TrainConfig, execution: Execution) -> None:
    """Build a training's networks with their weights, and pass an image through.

    Raises
    ------
    KitError
        If a network does not exist, does not take the size or can't learn from so few images at once, or its weights do not
        fit. Other errors are torch's and timm's.
    """
    model = replace(config.model, weights_path=example_file(config.model), pretrained=False)
    alone = _learns_one_by_one(config, execution)
    _try_network(model, alone, config.freeze_stages)
    if config.patch_epochs:
        _try_network(replace(patch_config(config).model, weights_path=model.weights_path, pretrained=False), alone)
    if config.model.pretrained and not config.model.weights_path:
        _check_pretrained(config.model)


def _learns_one_by_one(config: TrainConfig, execution: Execution) -> bool:
    """True if a part of a step, which is computed at once, is a single image."""
    if config.model.item != "image" or execution.world_size > 1:  # several processes normalise together
        return False
    part = min(config.micro_batch_size or config.batch_size, config.batch_size)
    return 1 in (part, config.batch_size % part)


def _try_network(model: ModelConfig, one_by_one: bool, freeze_stages: int = 0) -> None:
    network = build_model(model, ANY, SIZES).eval()  # not on the meta device, where timm can't resize weights
    for encoder in encoders_of(network):
        if freeze_stages and encoder.is_trained:
            encoder.freeze(freeze_stages, norms=False)
    if model.box_head:
        with torch.inference_mode():
            _, maps = network.encoder(torch.zeros(1, 1, model.image_height, model.image_width, dtype=torch.uint8))
            network.box(maps)
    if one_by_one and not _learns_from(network, model, 1) and _learns_from(network, model, 2):
        raise KitError(
            f"{model.architecture} can't learn from one image of {model.image_height} x {model.image_width} at a time, as it"
            " normalises over the images that are computed at once. Set batch_size and micro_batch_size so that these are two"
            " or more."
        )


def _learns_from(network: nn.Module, model: ModelConfig, images: int) -> bool:
    """True if a network can compute a part of a step, judged by shapes alone."""
    network.to("meta").train()
    try:
        with torch.device("meta"):
            network.encoder(torch.zeros(images, 1, model.image_height, model.image_width, dtype=torch.uint8))
    except Exception:  # each network raises its own error
        return False
    return True


def _check_pretrained(model: ModelConfig) -> None:
    """Raise ModelError if there are no weights of a network."""
    if model.architecture == "cnn":
        raise ModelError("There are no pretrained weights of cnn: set pretrained to False, or give weights_path.")
    for name in model.encoder_names:
        if timm.is_model(name) and not timm.models.is_model_pretrained(name):
            raise ModelError(f"timm has no pretrained weights of {name}: set pretrained to False, or give weights_path.")
