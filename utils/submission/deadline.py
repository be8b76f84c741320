"""What to leave out so that a prediction ends in time: rates are measured, the order is fixed."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

RESERVE = 0.05  # share of the budget that no plan may count on: the last table, and what nobody foresaw
NEWEST = 0.5  # weight of the newest measurement in a rate


class Deadline:
    """Time that is left of a budget, from the moment that this is made.

    Parameters
    ----------
    hours : float
        0 for no end.
    """

    def __init__(self, hours: float = 0.0):
        self.started, self.seconds = time.monotonic(), hours * 3600 or math.inf

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds that a plan may still take; below 0 when the time is over, infinite without a budget."""
        return self.seconds * (1 - RESERVE) - self.spent


@dataclass(frozen=True)
class Plan:
    """How much is done for each image.

    Parameters
    ----------
    flip : bool
        Predict mirror images too, in the runs that ask for it.
    folds : int
        Of each run, at most.
    variants : int
        Sizes of pictures, each with the runs that read it.
    """

    flip: bool
    folds: int
    variants: int

    def lesser(self) -> Iterator["Plan"]:
        """Yield this plan, then with less and less of it: first no mirror images, then fewer folds, then fewer sizes."""
        yield self
        if self.flip:
            yield from replace(self, flip=False).lesser()
        elif self.folds > 1:
            yield from replace(self, folds=self.folds - 1).lesser()
        elif self.variants > 1:
            yield from replace(self, variants=self.variants - 1).lesser()

    def __str__(self) -> str:
        """Say it in words."""
        sizes = f", {self.variants} picture sizes" if self.variants > 1 else ""
        return f"{'with' if self.flip else 'no'} mirror images, {self.folds} folds{sizes}"


@dataclass(frozen=True)
class Work:
    """What one size of pictures means: the folds of its runs, and which of them ask for mirror images too.

    Parameters
    ----------
    runs : tuple of (int, bool)
        Number of folds, and whether mirror images are predicted, of each run.
    """

    runs: tuple[tuple[int, bool], ...]

    def passes(self, plan: Plan) -> int:
        """Count how often each image passes through a network."""
        return sum(min(folds, plan.folds) * (2 if flip and plan.flip else 1) for folds, flip in self.runs)


class Pace:
    """Measured rates, and the plan that they allow.

    Parameters
    ----------
    works : list of Work
        One for each size of pictures; the last are left out first.
    overlaps : bool
        Whether pictures are decoded while others are predicted: the slower of the two then decides.
    """

    def __init__(self, works: list[Work], overlaps: bool):
        self.works, self.overlaps = works, overlaps
        self.full = Plan(
            flip=any(flip for work in works for _, flip in work.runs),
            folds=max(folds for work in works for folds, _ in work.runs),
            variants=len(works),
        )
        self._decode: dict[int, float] = {}  # seconds an image
        self._pass: dict[int, float] = {}  # seconds an image and pass

    def measured(self, variant: int, plan: Plan, images: int, decode: float, predict: float) -> None:
        """Note how many seconds some images took."""
        for rates, rate in ((self._decode, decode / images), (self._pass, predict / images / self.works[variant].passes(plan))):
            rates[variant] = rate if variant not in rates else NEWEST * rate + (1 - NEWEST) * rates[variant]

    def seconds_per_image(self, plan: Plan) -> float:
        """Seconds that an image takes; 0 for what has not been measured."""
        decode = [self._decode.get(variant, 0.0) for variant in range(plan.variants)]
        predict = [self._pass.get(variant, 0.0) * self.works[variant].passes(plan) for variant in range(plan.variants)]
        return max(sum(decode), sum(predict)) if self.overlaps else sum(decode) + sum(predict)

    def choose(self, images: int, seconds: float) -> Plan:
        """Choose the fullest plan that so many images allow in so many seconds; the least where none does."""
        for plan in self.full.lesser():
            if images * self.seconds_per_image(plan) <= seconds:
                break
        # Fewer pictures may leave time for more passes, and passes beside a slower decoding take none.
        limit = max(seconds / images, self.seconds_per_image(plan))
        alike = replace(self.full, variants=plan.variants).lesser()
        return next(fuller for fuller in alike if self.seconds_per_image(fuller) <= limit)
