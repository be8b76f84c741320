"""Blending the images of a batch with each other: mixup."""

import numpy as np
import torch


def mix(images: torch.Tensor, mixup: float) -> tuple[torch.Tensor, float]:
    """Mix each image with the one at its place in the reversed batch.

    Parameters
    ----------
    images : tensor of shape (N, 1, H, W), uint8
    mixup : float
        Parameter of the beta distribution.

    Returns
    -------
    images : tensor of shape (N, 1, H, W), float, on the same scale
    share : float
        Of each image itself; the rest is its partner's, whose target counts by that much.

    References
    ----------
    Zhang et al., mixup, 2018.
    """
    share = float(np.random.beta(mixup, mixup))
    images = images.float()
    return images * share + images.flip(0) * (1 - share), share
