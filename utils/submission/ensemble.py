"""The trained folds of several runs as one ensemble; runs that read the same images load each of them once."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from utils.core.parallel import prefetched
from utils.images.settings import CacheSettings
from utils.metrics.scores import sigmoid
from utils.runs.config import TrainConfig
from utils.runs.oof import aggregate
from utils.runs.run import Run
from utils.submission.acceleration import Accelerated, accelerate, offered
from utils.submission.deadline import Plan, Work
from utils.submission.draft import SubmissionError
from utils.tables.vocabulary import Vocabulary
from utils.training.dataset import make_dataset
from utils.training.fold_weights import load_fold
from utils.training.inference import forward, forward_flipped
from utils.training.loading import Batch, by_size, make_loader, split_batch
from utils.training.optimisation import autocast, is_out_of_memory

IMAGES_AT_ONCE = 32  # without gradients they take a fraction of training's memory
MEASURED_IMAGES = 8
LEAST_IMAGES, LEAST_SECONDS = 1000, 60.0  # with less work, trying candidates would cost more than it saves


@dataclass
class Member:
    """One fold's network on its device; ``number`` is its index among its run's folds."""

    run: Path
    fold_dir: Path
    number: int
    config: TrainConfig
    model: nn.Module | Accelerated
    vocabulary: Vocabulary
    device: torch.device

    @property
    def items(self) -> tuple:
        """Return the settings that decide which items the network reads."""
        return self.config.model.item, self.config.max_views, self.config.seed if self.config.max_views else None


class Variant:
    """All folds of the runs that read images of one preprocessing."""

    def __init__(self, settings: CacheSettings, members: list[Member]):
        self.settings, self.members = settings, members
        self.runs = list(dict.fromkeys(member.run for member in members))

    @property
    def work(self) -> Work:
        """Return the number of folds of each run, and whether it asks for mirror images."""
        of_run = [[member for member in self.members if member.run == run] for run in self.runs]
        return Work(tuple((len(members), members[0].config.test_time_flip) for members in of_run))

    def accelerate(self, images: pd.DataFrame, cache_dir: Path, n_images: int) -> dict[str, str]:
        """Make the networks faster if ``n_images`` make it worthwhile, and return what was chosen by run name.

        Candidates are compared on each run's first fold, with cached test ``images``; the run's other folds try only the
        winner.
        """
        if n_images < LEAST_IMAGES:
            return {}
        chosen: dict[Path, Accelerated] = {}
        for member in self.members:
            _, loader = _load(member, images, cache_dir, MEASURED_IMAGES)
            batch = next(iter(loader))
            candidates = offered(member.config, member.device)
            if member.run in chosen:
                name = chosen[member.run].name
                winner = {name: candidates[name]} if name in candidates else {}
                member.model = accelerate(member.model, batch, member.device, winner, work_seconds=math.inf)
                continue
            seconds = _seconds(member, batch) * n_images / len(batch["rows"])
            if seconds >= LEAST_SECONDS:
                member.model = accelerate(member.model, batch, member.device, candidates, seconds)
                chosen[member.run] = member.model
        return {run.name: str(accelerated) for run, accelerated in chosen.items()}

    def predict(
        self, images: pd.DataFrame, cache_dir: Path, aggregation: str, plan: Plan, not_finite: Counter | None = None
    ) -> pd.DataFrame:
        """Predict breasts with every run, averaged over its folds.

        A logit that is NaN or infinite is ignored; the other images and folds decide.

        Parameters
        ----------
        images : DataFrame
            Test images in the cache, with all images of each patient.
        cache_dir : Path
        aggregation : str
            See `utils.runs.oof.aggregate`.
        plan : Plan
        not_finite : Counter, optional
            Updated with the number of images without a finite logit, by fold folder.

        Returns
        -------
        DataFrame
            Probabilities, indexed by prediction_id, one column per run; NaN if no logit is finite.
        """
        members = [member for member in self.members if member.number < plan.folds]
        by_fold: dict[Path, list[pd.Series]] = {run: [] for run in self.runs}
        for items in dict.fromkeys(member.items for member in members):
            alike = [member for member in members if member.items == items]
            table, logits = predict_members(alike, images, cache_dir, plan.flip)
            for member, column in zip(alike, logits.T, strict=True):
                finite = np.isfinite(column)
                probability = np.where(finite, sigmoid(column), np.nan)
                by_fold[member.run].append(aggregate(table.assign(probability=probability), aggregation))
                if not_finite is not None and not finite.all():
                    not_finite[member.fold_dir] += _count_images(member, table[~finite], images)
        return pd.DataFrame({run: pd.concat(folds, axis=1).mean(axis=1) for run, folds in by_fold.items()})


def load_variants(runs: Sequence[Path], is_phantom: bool, devices: Sequence[torch.device]) -> list[Variant]:
    """Load the folds of runs, grouped by preprocessing and spread over the devices.

    Raise SubmissionError if a run has no finished fold or `check_run` refuses it.
    """
    members: dict[CacheSettings, list[Member]] = {}
    for place, run in enumerate(runs):
        check_run(run, is_phantom)
        config, folds = Run(run).config, Run(run).usable_folds()
        if not folds:
            raise SubmissionError(f"{run} has no finished fold (fold*/oof.csv): leave it out of run_dirs, or train it.")
        for number, fold_dir in enumerate(folds):
            model, vocabulary = load_fold(config, fold_dir)
            device = devices[(place + number) % len(devices)]
            member = Member(run, fold_dir, number, config, model.to(device).eval(), vocabulary, device)
            members.setdefault(config.preprocessing, []).append(member)
    return [Variant(settings, alike) for settings, alike in members.items()]


def check_run(run_dir: Path, is_phantom: bool) -> None:
    """Raise SubmissionError if today's preprocessing differs from the run's, or a phantom run meets real images."""
    notes, settings = Run(run_dir).notes, Run(run_dir).config.preprocessing
    if notes.settings_hash != settings.hash or settings.version != CacheSettings().version:
        raise SubmissionError(
            f"{run_dir} was trained on preprocessing {notes.settings_hash} of version {settings.version}, which this kit"
            f" (version {CacheSettings().version}) does not support: train it again, or submit with the kit that trained it."
        )
    if notes.phantom and not is_phantom:
        raise SubmissionError(f"{run_dir} was trained on the phantom, but the images are real: name other run_dirs.")


def predict_members(
    members: Sequence[Member], images: pd.DataFrame, cache_dir: Path, flip: bool
) -> tuple[pd.DataFrame, np.ndarray]:
    """Run each batch through several networks that read the same items, in parallel if they are on several devices.

    Return the table of items and their logits, float64 of shape (items, members). ``flip`` averages a logit with its mirror
    image's, in runs that ask for it.
    """
    dataset, loader = _load(members[0], images, cache_dir)
    encoded = [torch.from_numpy(member.vocabulary.encode(dataset.images)) for member in members]
    logits = np.empty((len(dataset), len(members)))
    by_device: defaultdict[torch.device, list[int]] = defaultdict(list)
    for place, member in enumerate(members):
        by_device[member.device].append(place)
    on_device = [np.array(places) for places in by_device.values()]

    def predict(batch: Batch, places: np.ndarray) -> np.ndarray:
        own = [batch | {"metadata": encoded[place][batch["rows"]]} for place in places]
        return np.stack([_logits(members[place], part, flip) for place, part in zip(places, own, strict=True)], axis=1)

    with ThreadPoolExecutor(len(on_device)) as devices:
        for batch in prefetched(iter(loader)):
            for places, columns in zip(on_device, devices.map(partial(predict, batch), on_device), strict=True):
                logits[batch["index"].numpy()[:, None], places] = columns
    return dataset.items, logits


def _load(member: Member, images: pd.DataFrame, cache_dir: Path, at_once: int = IMAGES_AT_ONCE) -> tuple:
    """Return a member's dataset, and a loader of it."""
    dataset = make_dataset(member.config, images, cache_dir, "test", member.vocabulary)
    batches = by_size(dataset.sizes, at_once)
    return dataset, make_loader(dataset, batches, pin_memory=member.device.type == "cuda")


def _seconds(member: Member, batch: Batch) -> float:
    """Return the seconds that a member takes for a batch and its mirror image, after one warm-up."""
    _logits(member, batch, flip=True)  # the first call includes one-time set-up
    start = time.perf_counter()
    _logits(member, batch, flip=True)
    return time.perf_counter() - start


def _count_images(member: Member, items: pd.DataFrame, images: pd.DataFrame) -> int:
    """Count the images of items; an item is one image, or a breast with all its images."""
    return len(items) if member.config.model.item == "image" else int(images.prediction_id.isin(items.prediction_id).sum())


def _logits(member: Member, batch: Batch, flip: bool) -> np.ndarray:
    """Return a batch's logits, float64; if memory runs out, halve the parts until they fit."""
    at_once = len(batch["label"])
    while True:
        try:
            return np.concatenate(list(_parts(member, batch, flip, at_once)))
        except RuntimeError as error:
            if at_once == 1 or not is_out_of_memory(error):
                raise
        at_once = -(-at_once // 2)  # out here, since the error keeps the memory alive
        if member.device.type == "cuda":
            torch.cuda.empty_cache()


def _parts(member: Member, batch: Batch, flip: bool, at_once: int) -> Iterator[np.ndarray]:
    predict = forward_flipped if flip and member.config.test_time_flip else forward
    with torch.inference_mode(), autocast(member.config, member.device):  # both modes are per thread
        for part in split_batch(batch, at_once):
            yield predict(member.model, part, member.device).logit.double().cpu().numpy()
