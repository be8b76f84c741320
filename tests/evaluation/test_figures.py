"""Titles of images say how a probability compares with its threshold."""

import pytest

from utils.evaluation.figures import compared


@pytest.mark.parametrize(
    ("probability", "threshold", "said"),
    [
        (0.431, 0.31, "0.43 ≥ threshold 0.31"),
        (0.1, 0.31, "0.10 < threshold 0.31"),
        (0.4312, 0.4309, "0.4312 ≥ threshold 0.4309"),  # as many digits as it takes
        (0.3, 0.3, "0.30 ≥ threshold 0.30"),  # a tie is called back
        (0.3, 0.3 + 1e-12, "0.300000 < threshold 0.300000"),
        (1.0, 1.0, "1.00 ≥ threshold 1.00"),
    ],
)
def test_probability_and_threshold_are_shown_with_the_digits_that_differ(probability, threshold, said):
    assert compared(probability, threshold) == said
