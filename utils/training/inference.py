"""A network's predictions for the items of a data set."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from utils.networks.models import Outputs
from utils.runs.config import TrainConfig
from utils.training.loading import Batch, make_loader, split_batch
from utils.training.optimisation import autocast


@dataclass(frozen=True)
class Predictions:
    """Item numbers, logits (n,) and boxes (n, 4); ``boxes`` is None if none are predicted."""

    index: np.ndarray
    logits: np.ndarray
    boxes: np.ndarray | None

    @classmethod
    def joined(cls, parts: list["Predictions"]) -> "Predictions":
        """Join parts, in the order of the items."""
        parts = [part for part in parts if len(part.index)] or parts[:1]
        index = np.concatenate([part.index for part in parts])
        order = np.argsort(index)
        boxes = None if parts[0].boxes is None else np.concatenate([part.boxes for part in parts])[order]
        return cls(index[order], np.concatenate([part.logits for part in parts])[order], boxes)


def predict_logits(model: nn.Module, dataset: Dataset, config: TrainConfig, device: torch.device) -> np.ndarray:
    """Predict all items of a data set.

    Returns
    -------
    ndarray of shape (len(dataset),), float64
        Logits, in the order of its items.
    """
    loader = make_loader(dataset, config.batch_size, pin_memory=device.type == "cuda")
    return predict(model, loader, config, device).logits


def predict(
    model: nn.Module, loader: DataLoader, config: TrainConfig, device: torch.device, at_once: int | None = None
) -> Predictions:
    """Predict a loader's items, in its order, ``at_once`` items at a time (a batch if None)."""
    model.eval()
    indices, outputs = [], []
    with torch.inference_mode(), autocast(config, device):
        for batch in (part for whole in loader for part in split_batch(whole, at_once or len(whole["label"]))):
            indices.append(batch["index"])
            outputs.append(forward_flipped(model, batch, device) if config.test_time_flip else forward(model, batch, device))
    if not outputs:
        return Predictions(np.empty(0, dtype=int), np.empty(0), None)
    logits = torch.cat([output.logit.float().cpu() for output in outputs]).double().numpy()
    has_boxes = outputs[0].box is not None
    boxes = torch.cat([output.box.cpu() for output in outputs]).numpy() if has_boxes else None
    return Predictions(torch.cat(indices).numpy(), logits, boxes)


def forward(model: nn.Module, batch: Batch, device: torch.device, images: torch.Tensor | None = None) -> Outputs:
    """Pass a batch through a network on its device; ``images`` replace the batch's if given."""
    images = batch["images"].to(device, non_blocking=True) if images is None else images
    metadata = batch["metadata"].to(device, non_blocking=True)
    return model(images, metadata, batch["lengths"])  # lengths stay on the CPU, where they are read


def forward_flipped(model: nn.Module, batch: Batch, device: torch.device) -> Outputs:
    """Pass a batch and its mirror images through a network, and average the two logits."""
    images = batch["images"].to(device, non_blocking=True)
    outputs = forward(model, batch, device, images)
    mirrored = forward(model, batch, device, images.flip(-1))
    return outputs._replace(logit=(outputs.logit + mirrored.logit) / 2)
