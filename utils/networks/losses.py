"""Losses: of cancer, of the auxiliary targets, and of the box."""

import torch
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from utils.networks.auxiliary import MISSING


def cancer_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float, positive_weight: float) -> torch.Tensor:
    """Compute the mean binary cross-entropy of the cancer logits.

    Parameters
    ----------
    logits, labels : tensor of shape (B,), float
    smoothing : float
        Moves labels to ``smoothing / 2`` and ``1 - smoothing / 2``.
    positive_weight : float
        Of a positive item.

    Returns
    -------
    tensor of shape ()
    """
    smooth = labels * (1 - smoothing) + smoothing / 2
    weight = 1 + (positive_weight - 1) * labels
    return nn.functional.binary_cross_entropy_with_logits(logits, smooth, weight=weight)


def auxiliary_loss(logits: torch.Tensor, targets: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Compute the mean cross-entropy over the auxiliary targets; missing ones count as zero.

    Parameters
    ----------
    logits : tensor of shape (B, sum(sizes))
    targets : tensor of shape (B, len(sizes)), int64
        Class numbers, or `MISSING`.
    sizes : tuple of int
        Classes of each target.
    """
    # Divided by all items, present or missing, so that the gradients of parts of a batch add up to the batch's.
    parts = zip(logits.split(sizes, dim=1), targets.unbind(1), strict=True)
    losses = [nn.functional.cross_entropy(part, target, ignore_index=MISSING, reduction="sum") for part, target in parts]
    return sum(losses) / (len(losses) * len(targets))


def box_loss(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute the loss of the boxes: distance of the edges, and generalised overlap; an item without a box counts as zero.

    Parameters
    ----------
    boxes, targets : tensor of shape (B, 4)
        x_min, y_min, x_max, y_max as shares of the picture's sides; NaN in ``targets`` where there is no box.
    """
    present = torch.isfinite(targets[:, 0])
    wanted = torch.where(present[:, None], targets, boxes.detach())  # no selection: its size would be asked of the GPU
    edges = nn.functional.smooth_l1_loss(boxes, wanted, beta=0.1, reduction="none").mean(dim=1)
    overlap = generalized_box_iou_loss(boxes, wanted)
    return ((edges + overlap) * present).mean()  # over all items, so that the gradients of parts add up to the batch's
