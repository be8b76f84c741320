"""Mixup: blends the images of a batch with each other."""

import numpy as np
import torch


def mix(images: torch.Tensor, mixup: float) -> tuple[torch.Tensor, float]:
    """Mix each image with the one at its place in the reversed batch (Zhang et al., mixup, 2018).

    Return float images on the same scale, and the share that each image itself has; ``mixup`` is the beta distribution's
    parameter.
    """
    share = float(np.random.beta(mixup, mixup))
    images = images.float()
    return images * share + images.flip(0) * (1 - share), share
