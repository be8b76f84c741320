"""Whether a network computes the same in another number format or on another device.

After a few steps of training, all logits of a network are nearly the same, so that a network that ignores its images would have
the same ones. The encoders' features are compared too.
"""

from dataclasses import dataclass

import torch

from benchmarks.gpu_check.check import CheckError
from utils.networks.models import Outputs
from utils.submission.acceleration import disagreement

# Relative difference from float32 on a CPU. Measured on a CPU: 7e-3 in bfloat16, 7e-4 in float16, 2e-6 by ONNX. On a GPU,
# float32 convolutions round to TF32, which has float16's precision.
TOLERANCES = {"float32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3, "onnx": 1e-4}


@dataclass(frozen=True)
class Prediction:
    """Logits (items,) and the encoder's features (images, F), float32 on the CPU."""

    logit: torch.Tensor
    features: torch.Tensor


def check_agreement(name: str, found: Prediction, expected: Prediction) -> float:
    """Return the relative difference of features; raise CheckError if these or the logits differ too much.

    ``name`` is a key of `TOLERANCES`.
    """
    difference = relative_distance(found.features, expected.features)
    if not difference <= TOLERANCES[name]:
        raise CheckError(f"Features in {name} differ by {difference:.2g}, more than {TOLERANCES[name]:g}.")
    problem = disagreement(Outputs(found.logit), Outputs(expected.logit))
    if problem:
        raise CheckError(f"In {name}, {problem}.")
    return difference


def relative_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the distance between two tensors, relative to the second one's length."""
    return ((found - expected).norm() / expected.norm()).item()
