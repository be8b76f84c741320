"""Markdown tables, and medians with their intervals; nothing here imports torch."""

from collections.abc import Iterable
from statistics import median

from scipy.stats import quantile_test

LEVEL = 0.95


def markdown(head: tuple[str, ...], rows: Iterable[list[str]]) -> list[str]:
    """Return the lines of a table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def spread(values: list[float], form: str) -> str:
    """Return a median with its 95 % interval as text, or with the lowest and highest of fewer than six values.

    The interval is that of order statistics, which assumes no distribution; of 6 to 8 values, it is the lowest and highest.
    """
    if not values:
        return "–"
    middle, low, high = median(values), min(values), max(values)
    interval = quantile_test(values, q=middle, p=0.5).confidence_interval(LEVEL)
    if interval.low == interval.low:  # not NaN
        low, high = interval
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"
