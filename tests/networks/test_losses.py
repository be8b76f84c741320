"""Facts about the losses."""

import numpy as np
import pytest
import torch

from utils.networks.auxiliary import MISSING
from utils.networks.losses import auxiliary_loss, box_loss, cancer_loss

LOGITS = torch.tensor([-2.0, 0.3, 4.0, -0.7, 1.5])
LABELS = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
SIZES = (2, 3)
NOWHERE = torch.full((4,), torch.nan)


def loss_of(smoothing: float = 0.0, positive_weight: float = 1.0) -> float:
    return cancer_loss(LOGITS, LABELS, smoothing, positive_weight).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_loss_is_the_weighted_cross_entropy_of_smoothed_labels(smoothing, weight):
    labels, p = LABELS.double().numpy(), 1 / (1 + np.exp(-LOGITS.double().numpy()))
    target = np.where(labels == 1, 1 - smoothing / 2, smoothing / 2)
    losses = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    wanted = (losses * np.where(LABELS.numpy() == 1, weight, 1)).mean()
    assert loss_of(smoothing, weight) == pytest.approx(wanted, rel=1e-6)


def test_gradient_raises_positives_and_lowers_negatives():
    logits = LOGITS.clone().requires_grad_()
    cancer_loss(logits, LABELS, 0.0, 2.0).backward()
    assert ((logits.grad < 0) == (LABELS == 1)).all()


def test_parts_of_a_batch_add_up_to_it():
    parts = [cancer_loss(LOGITS[part], LABELS[part], 0.1, 3.0) for part in (slice(2), slice(2, 5))]
    assert (parts[0] * 2 + parts[1] * 3).item() / 5 == pytest.approx(loss_of(0.1, 3.0))


# Auxiliary targets


def auxiliary_batch() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(4, sum(SIZES), generator=torch.Generator().manual_seed(0))
    return logits, torch.tensor([[1, 2], [MISSING, 0], [0, MISSING], [MISSING, MISSING]])


def test_auxiliary_loss_is_the_sum_of_what_is_known_over_all_there_might_be():
    logits, targets = auxiliary_batch()
    shares = [part.double().softmax(1).log().numpy() for part in logits.split(SIZES, dim=1)]
    wanted = -(shares[0][0, 1] + shares[0][2, 0] + shares[1][0, 2] + shares[1][1, 0]) / (4 * 2)
    assert auxiliary_loss(logits, targets, SIZES).item() == pytest.approx(wanted, rel=1e-6)


def test_missing_targets_teach_nothing():
    logits, targets = auxiliary_batch()
    logits.requires_grad_()
    auxiliary_loss(logits, targets, SIZES).backward()
    taught = torch.stack([part.abs().sum(1) > 0 for part in logits.grad.split(SIZES, dim=1)], dim=1)
    assert torch.equal(taught, targets != MISSING)


def test_batch_without_any_target_costs_nothing():
    logits, targets = auxiliary_batch()
    assert auxiliary_loss(logits, torch.full_like(targets, MISSING), SIZES).item() == 0


def test_auxiliary_losses_of_parts_add_up_to_the_batch():
    logits, targets = auxiliary_batch()
    parts = [auxiliary_loss(logits[part], targets[part], SIZES) * share for part, share in ((slice(1), 1), (slice(1, 4), 3))]
    assert sum(parts).item() / 4 == pytest.approx(auxiliary_loss(logits, targets, SIZES).item())


# Boxes


def boxes_of(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_right_box_costs_nothing():
    boxes = boxes_of([0.1, 0.2, 0.5, 0.4], [0.6, 0.6, 0.9, 0.8])
    assert box_loss(boxes, boxes.clone()).item() == pytest.approx(0, abs=1e-5)


def test_box_loss_is_that_of_the_edges_and_of_the_generalised_overlap():
    found, wanted = boxes_of([0.0, 0.0, 0.4, 0.4]), boxes_of([0.2, 0.0, 0.6, 0.45])
    distances = np.array([0.2, 0, 0.2, 0.05])
    edges = np.where(distances < 0.1, distances**2 / (2 * 0.1), distances - 0.1 / 2).mean()
    shared, hull = 0.2 * 0.4, 0.6 * 0.45
    union = 0.4 * 0.4 + 0.4 * 0.45 - shared
    generalised = shared / union - (hull - union) / hull
    assert box_loss(found, wanted).item() == pytest.approx(edges + 1 - generalised, rel=1e-4)


def test_box_further_away_costs_more_even_where_nothing_overlaps():
    wanted = boxes_of([0.0, 0.0, 0.1, 0.1])
    losses = [box_loss(boxes_of([x, 0.0, x + 0.1, 0.1]), wanted).item() for x in (0.05, 0.2, 0.5, 0.9)]
    assert losses == sorted(losses)


def test_images_without_a_box_count_as_zero():
    found, wanted = boxes_of([0.1, 0.1, 0.3, 0.3], [0.2, 0.5, 0.4, 0.9]), boxes_of([0.2, 0.1, 0.4, 0.3], [0.2, 0.4, 0.4, 0.9])
    padded = torch.stack([found[0], torch.rand(4), found[1]]), torch.stack([wanted[0], NOWHERE, wanted[1]])
    assert box_loss(*padded).item() == pytest.approx(box_loss(found, wanted).item() * 2 / 3)


def test_gradient_reaches_only_rows_with_a_box():
    found = boxes_of([0.1, 0.1, 0.3, 0.3], [0.2, 0.5, 0.4, 0.9], [0.5, 0.5, 0.5, 0.5]).requires_grad_()
    box_loss(found, torch.stack([NOWHERE, torch.tensor([0.2, 0.4, 0.5, 0.9]), NOWHERE])).backward()
    assert found.grad[1].any() and torch.isfinite(found.grad).all()
    assert not found.grad[[0, 2]].any()


def test_batch_without_any_box_costs_nothing():
    found = boxes_of([0.1, 0.1, 0.3, 0.3]).requires_grad_()
    loss = box_loss(found, NOWHERE[None])
    loss.backward()
    assert loss.item() == 0 and not found.grad.any()
