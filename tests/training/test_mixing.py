"""Facts about mixing the images of a batch."""

import numpy as np
import pytest
import torch

from utils.training.mixing import mix

LEVELS = torch.tensor([10.0, 60.0, 130.0, 250.0])  # one grey value an image


@pytest.fixture
def images():
    return LEVELS.to(torch.uint8)[:, None, None, None].repeat(1, 1, 20, 12)


def mixed_with(seed: int, images: torch.Tensor, mixup: float) -> tuple[torch.Tensor, float]:
    np.random.seed(seed)
    return mix(images, mixup)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_each_image_with_its_partner_by_the_share(images, seed):
    mixed, share = mixed_with(seed, images, 1.0)
    assert 0 < share < 1 and mixed.dtype == torch.float32
    wanted = share * LEVELS + (1 - share) * LEVELS.flip(0)
    assert torch.allclose(mixed, wanted[:, None, None, None].expand_as(mixed), atol=1e-3)


def test_same_seed_mixes_alike(images):
    (first, share), (second, again) = (mixed_with(7, images, 0.5) for _ in range(2))
    assert torch.equal(first, second) and share == again


def test_images_given_stay_as_they_were(images):
    before = images.clone()
    mixed_with(0, images, 1.0)
    assert torch.equal(images, before)
