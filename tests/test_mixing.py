"""Facts about mixing the images of a batch."""

import numpy as np
import pytest
import torch

from utils.mixing import mix

LEVELS = torch.tensor([10.0, 60.0, 130.0, 250.0])  # one grey value an image


@pytest.fixture
def images():
    return LEVELS.to(torch.uint8)[:, None, None, None].repeat(1, 1, 20, 12)


def mixed_with(seed: int, images: torch.Tensor, mixup: float, cutmix: float) -> tuple[torch.Tensor, float]:
    np.random.seed(seed)
    return mix(images, mixup, cutmix)


def is_blended(mixed: torch.Tensor) -> bool:
    return not torch.isin(mixed, LEVELS).all()


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_each_image_with_its_partner_by_the_share(images, seed):
    mixed, share = mixed_with(seed, images, 1.0, 0.0)
    assert 0 < share < 1 and mixed.dtype == torch.float32
    wanted = share * LEVELS + (1 - share) * LEVELS.flip(0)
    assert torch.allclose(mixed, wanted[:, None, None, None].expand_as(mixed), atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_leaves_each_image_the_share_of_its_pixels(images, seed):
    mixed, share = mixed_with(seed, images, 0.0, 1.0)
    own = mixed == LEVELS[:, None, None, None]
    assert (own | (mixed == LEVELS.flip(0)[:, None, None, None])).all()
    assert own.double().mean(dim=(1, 2, 3)).tolist() == pytest.approx([share] * 4)


def test_cutmix_pastes_one_rectangle_at_the_place_that_it_had(images):
    images = images + torch.arange(20, dtype=torch.uint8)[:, None] // 4  # so that rows differ
    mixed, share = mixed_with(1, images, 0.0, 1.0)
    pasted = (mixed != images).any(dim=0)[0]
    rows, columns = pasted.any(dim=1), pasted.any(dim=0)
    assert 0 < share < 1 and torch.equal(pasted, rows[:, None] & columns[None])
    assert torch.equal(mixed[:, 0, pasted], images.flip(0).float()[:, 0, pasted])


def test_same_seed_mixes_alike(images):
    for parameters in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
        (first, share), (second, again) = (mixed_with(7, images, *parameters) for _ in range(2))
        assert torch.equal(first, second) and share == again


def test_where_both_are_asked_for_each_is_drawn(images):
    kinds = [is_blended(mixed_with(seed, images, 1.0, 1.0)[0]) for seed in range(20)]
    assert 4 < sum(kinds) < 16


def test_images_given_stay_as_they_were(images):
    before = images.clone()
    for parameters in ((1.0, 0.0), (0.0, 1.0)):
        mixed_with(0, images, *parameters)
    assert torch.equal(images, before)
