"""Scores such as the probabilistic F1, thresholds for it, and intervals from a bootstrap over patients."""

from utils.metrics.scores import probabilistic_f1

__all__ = ["probabilistic_f1"]
