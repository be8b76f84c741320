"""Blending images of a batch with each other (mixup), or pasting a patch of one into another (cutmix)."""

import numpy as np
import torch
from timm.data.mixup import cutmix_bbox_and_lam


def mix(images: torch.Tensor, mixup: float, cutmix: float) -> tuple[torch.Tensor, float]:
    """Mix each image with the one at its place in the reversed batch.

    Parameters
    ----------
    images : tensor of shape (N, 1, H, W), uint8
    mixup, cutmix : float
        Parameters of the beta distributions; 0 for none. Where both are given, each batch draws one of the two.

    Returns
    -------
    images : tensor of shape (N, 1, H, W), float, on the same scale
    share : float
        Of each image itself; the rest is its partner's, whose target counts by that much.

    References
    ----------
    Zhang et al., mixup, 2018; Yun et al., CutMix, 2019.
    """
    use_cutmix = cutmix and (not mixup or np.random.rand() < 0.5)
    share = float(np.random.beta(*[cutmix if use_cutmix else mixup] * 2))
    images = images.float()
    if not use_cutmix:
        return images * share + images.flip(0) * (1 - share), share
    (top, bottom, left, right), share = cutmix_bbox_and_lam(images.shape, share)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, float(share)
