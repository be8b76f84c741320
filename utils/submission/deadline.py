"""Decide what to leave out so that a prediction ends in time, from measured rates and in a fixed order."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

RESERVE = 0.05  # share of the budget kept for the last tables and for surprises
NEWEST = 0.5  # weight of the newest measurement in the moving average


class Deadline:
    """A time budget in hours that starts when this is made; 0 for no limit."""

    def __init__(self, hours: float = 0.0):
        self.started, self.seconds = time.monotonic(), hours * 3600 or math.inf

    @property
    def spent(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Return the seconds that a plan may still take: negative after the deadline, infinite without a budget."""
        return self.seconds * (1 - RESERVE) - self.spent


@dataclass(frozen=True)
class Plan:
    """The amount of work per image.

    Parameters
    ----------
    flip : bool
        Predict mirror images too, in the runs that ask for it.
    folds : int
        Maximum number of folds per run.
    variants : int
        Number of image sizes; each comes with the runs that read it.
    """

    flip: bool
    folds: int
    variants: int

    def lesser(self) -> Iterator["Plan"]:
        """Yield this plan, then smaller and smaller ones: first no mirror images, then fewer folds, then fewer sizes."""
        yield self
        if self.flip:
            yield from replace(self, flip=False).lesser()
        elif self.folds > 1:
            yield from replace(self, folds=self.folds - 1).lesser()
        elif self.variants > 1:
            yield from replace(self, variants=self.variants - 1).lesser()

    def __str__(self) -> str:
        """Describe the plan in words."""
        sizes = f", {self.variants} image sizes" if self.variants > 1 else ""
        return f"{'with' if self.flip else 'no'} mirror images, {self.folds} folds{sizes}"


@dataclass(frozen=True)
class Work:
    """The work for one image size: for each of its runs, the number of folds, and whether mirror images are predicted."""

    runs: tuple[tuple[int, bool], ...]

    def passes(self, plan: Plan) -> int:
        """Return how many times each image passes through a network."""
        return sum(min(folds, plan.folds) * (2 if flip and plan.flip else 1) for folds, flip in self.runs)


class Pace:
    """Measured rates, and the plan that they allow.

    ``works`` has one entry per image size, of which the last are left out first. ``overlaps`` is True if decoding and
    prediction run at the same time, so that only the slower one counts.
    """

    def __init__(self, works: list[Work], overlaps: bool):
        self.works, self.overlaps = works, overlaps
        self.full = Plan(
            flip=any(flip for work in works for _, flip in work.runs),
            folds=max(folds for work in works for folds, _ in work.runs),
            variants=len(works),
        )
        self._decode: dict[int, float] = {}  # image size -> seconds per image
        self._pass: dict[int, float] = {}  # image size -> seconds per image and pass

    def measured(self, variant: int, plan: Plan, images: int, decode: float, predict: float) -> None:
        """Update the rates with the seconds that some images took."""
        _average(self._decode, variant, decode / images)
        _average(self._pass, variant, predict / images / self.works[variant].passes(plan))

    def seconds_per_image(self, plan: Plan) -> float:
        """Return the seconds per image under a plan; stages that have not been measured count as 0."""
        decode = [self._decode.get(variant, 0.0) for variant in range(plan.variants)]
        predict = [self._pass.get(variant, 0.0) * self.works[variant].passes(plan) for variant in range(plan.variants)]
        return max(sum(decode), sum(predict)) if self.overlaps else sum(decode) + sum(predict)

    def choose(self, images: int, seconds: float) -> Plan:
        """Return the fullest plan that finishes ``images`` in ``seconds``, or the smallest plan if none does."""
        for plan in self.full.lesser():
            if images * self.seconds_per_image(plan) <= seconds:
                break
        # With fewer sizes there may be time for more passes; passes that run alongside slower decoding are free.
        limit = max(seconds / images, self.seconds_per_image(plan))
        alike = replace(self.full, variants=plan.variants).lesser()
        return next(fuller for fuller in alike if self.seconds_per_image(fuller) <= limit)


def _average(rates: dict[int, float], variant: int, rate: float) -> None:
    """Update a moving average with its newest value."""
    rates[variant] = NEWEST * rate + (1 - NEWEST) * rates.get(variant, rate)
