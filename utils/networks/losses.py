"""Losses for cancer, auxiliary targets and the box."""

import torch
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from utils.networks.auxiliary import MISSING


def cancer_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float, positive_weight: float) -> torch.Tensor:
    """Return the mean binary cross-entropy of the cancer logits.

    Parameters
    ----------
    logits, labels : tensor of shape (B,), float
    smoothing : float
        Labels become ``smoothing / 2`` and ``1 - smoothing / 2``.
    positive_weight : float
        Weight of a positive item; a negative one has 1.
    """
    smooth = labels * (1 - smoothing) + smoothing / 2
    weight = 1 + (positive_weight - 1) * labels
    return nn.functional.binary_cross_entropy_with_logits(logits, smooth, weight=weight)


def auxiliary_loss(logits: torch.Tensor, targets: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Return the mean cross-entropy over the auxiliary targets; missing ones count as zero.

    Parameters
    ----------
    logits : tensor of shape (B, sum(sizes))
    targets : tensor of shape (B, len(sizes)), int64
        Class numbers, or `MISSING`.
    sizes : tuple of int
        Number of classes of each target.
    """
    # Divide by all items, present or missing, so that the gradients of parts of a batch add up to the batch's.
    parts = zip(logits.split(sizes, dim=1), targets.unbind(1), strict=True)
    losses = [nn.functional.cross_entropy(part, target, ignore_index=MISSING, reduction="sum") for part, target in parts]
    return sum(losses) / (len(losses) * len(targets))


def box_loss(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean of edge distance (smooth L1) plus generalised IoU loss; an item without a box counts as zero.

    Parameters
    ----------
    boxes, targets : tensor of shape (B, 4)
        x_min, y_min, x_max, y_max as shares of the image's sides; NaN in ``targets`` if there is no box.
    """
    present = torch.isfinite(targets[:, 0])
    wanted = torch.where(present[:, None], targets, boxes.detach())  # selecting rows would make the GPU synchronise
    edges = nn.functional.smooth_l1_loss(boxes, wanted, beta=0.1, reduction="none").mean(dim=1)
    overlap = generalized_box_iou_loss(boxes, wanted)
    return ((edges + overlap) * present).mean()  # over all items, as in `auxiliary_loss`
