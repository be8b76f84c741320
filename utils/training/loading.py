"""Items as batches: their order, how they are joined and split, and the loader.

A batch of B items with N images is a dict:

- ``images``: uint8 tensor (N, 1, height, width), the images of all items one after the other
- ``metadata``: float32 tensor (N, 6), one row per image, columns `utils.tables.vocabulary.METADATA`
- ``rows``: int64 tensor (N,), the images' rows in ``dataset.images``
- ``lengths``: int64 tensor (B,), the number of images of each item; sums to N
- ``label``: float32 tensor (B,)
- ``auxiliary``: int64 tensor (B, targets), see `utils.networks.auxiliary`
- ``box``: float32 tensor (B, 4), corners as shares of the image's sides; NaN if there is none
- ``index``: int64 tensor (B,), the item's row in ``dataset.items``
"""

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from utils.core.errors import KitError

PER_PICTURE = ("images", "metadata", "rows")
PREFETCHED = 4  # batches a process, so that a slow batch does not keep the network waiting
PATIENCE = 600.0  # seconds without a batch; the slowest disks take some seconds for one
REMEDY = "start the container with more shared memory (docker run --shm-size 8g), or lower num_workers (0 needs none)"

Batch = dict[str, torch.Tensor]


class LoadingError(KitError):
    """A loader's process that can't deliver; the message says what to do."""


class ShareSampler(Sampler):
    """Order of an epoch's items: each once if ``positive_share`` is None, else that share of positives in each step.

    Positives are then repeated and negatives left out. Each step has the share give or take one item, and at least one
    positive.
    """

    def __init__(self, labels: np.ndarray, positive_share: float | None, seed: int, batch_size: int):
        self.labels = np.asarray(labels)
        self.positive_share = positive_share
        self.seed = seed
        self.batch_size = batch_size
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch, 2])
        positives, negatives = np.flatnonzero(self.labels == 1), np.flatnonzero(self.labels == 0)
        if self.positive_share is None or not len(positives) or not len(negatives):
            return iter(generator.permutation(len(self.labels)).tolist())
        steps = max(1, len(self.labels) // self.batch_size)
        size = min(self.batch_size, len(self.labels))
        n_positives = max(round(self.positive_share * steps * size), steps)
        in_step = np.diff(np.linspace(0, n_positives, steps + 1).round().astype(int))
        is_positive = np.concatenate([generator.permutation(size) < count for count in in_step])
        order = np.empty(len(is_positive), dtype=int)
        order[is_positive] = _draw(positives, n_positives, generator)
        order[~is_positive] = _draw(negatives, len(order) - n_positives, generator)
        return iter(order.tolist())


def _draw(pool: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw ``count`` of ``pool``; nothing is drawn again before everything has been drawn."""
    rounds = -(-count // len(pool))
    return np.concatenate([generator.permutation(pool) for _ in range(rounds)] or [pool[:0]])[:count]


class StepSampler(Sampler):
    """One process's share of each step's items: every ``world_size``-th of them, from number ``rank`` on.

    Together, the processes do the steps that one would do alone, with the same items. ``batch_size`` is a step's over all
    processes, and a multiple of ``world_size``. An incomplete last step is left out unless it is the only one: batch
    normalisation over one or two left-over images does harm.
    """

    def __init__(self, order: Sampler, batch_size: int, rank: int = 0, world_size: int = 1):
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return max(1, len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size][self.rank :: self.world_size]


def by_size(sizes: np.ndarray, pictures: int) -> list[list[int]]:
    """Return batches of items for prediction, those with the most images first, so that memory runs out at once or never.

    Parameters
    ----------
    sizes : ndarray of int
        Number of images of each item.
    pictures : int
        Most images of a batch, unless one item alone has more.
    """
    order = np.argsort(-sizes, kind="stable")
    batches: list[list[int]] = []
    for index in order.tolist():
        if not batches or (len(batches[-1]) + 1) * sizes[batches[-1][0]] > pictures:
            batches.append([])
        batches[-1].append(index)
    return batches


def collate(items: list[dict]) -> Batch:
    """Join items into a batch as the module's docstring describes it."""
    return {
        **{key: torch.cat([item[key] for item in items]) for key in PER_PICTURE},
        "lengths": torch.tensor([len(item["images"]) for item in items]),
        "label": torch.tensor([item["label"] for item in items], dtype=torch.float32),
        **{key: torch.stack([item[key] for item in items]) for key in ("auxiliary", "box")},
        "index": torch.tensor([item["index"] for item in items]),
    }


def collate_shared(items: list[dict]) -> Batch | str:
    """Join items in shared memory, for another process; return the reason as text if there is not enough.

    The queue between the processes would do this too, but it loses a batch if no memory is left, and its reader waits forever.
    """
    try:
        return {key: value.share_memory_() for key, value in collate(items).items()}
    except RuntimeError as error:
        return str(error).splitlines()[0]


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """Split a batch into parts of at most ``size`` items."""
    count = len(batch["label"])
    if size >= count:
        return [batch]
    pictures = [int(part.sum()) for part in batch["lengths"].split(size)]
    parts = {key: value.split(pictures if key in PER_PICTURE else size) for key, value in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


class Loader(DataLoader):
    """A loader that ends with an error that says what to do if one of its processes fails."""

    def __iter__(self) -> Iterator[Batch]:
        batches = super().__iter__()
        while True:
            asked = time.monotonic()
            try:
                with explained(self):
                    batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                self.stop()
                if isinstance(error, RuntimeError) and self.timeout and time.monotonic() - asked >= self.timeout:
                    minutes = self.timeout / 60
                    raise LoadingError(
                        f"No batch came within {minutes:.0f} minutes. Remedy: check the disk, or {REMEDY}."
                    ) from error
                raise
            if isinstance(batch, str):
                self.stop()
                raise LoadingError(f"A batch got no shared memory ({batch}). Remedy: {REMEDY}.")
            yield batch

    def dead(self) -> list[str]:
        """Return the signals or exit codes of processes that have died."""
        codes = [process.exitcode for process in getattr(self._iterator, "_workers", [])]
        return [signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in codes if code is not None]

    def stop(self) -> None:
        """End the processes now: an error that a notebook keeps would keep them and their memory."""
        if self._iterator is not None:
            with contextlib.suppress(RuntimeError):  # torch reports another dead process
                self._iterator._shutdown_workers()
            self._iterator = None


@contextlib.contextmanager
def explained(*loaders: Loader) -> Iterator[None]:
    """Turn torch's RuntimeError about a dead loader process into a LoadingError, wherever it is raised."""
    try:
        yield
    except RuntimeError as error:
        causes = [cause for loader in loaders for cause in loader.dead()]
        if not causes:
            raise
        for loader in loaders:
            loader.stop()
        raise LoadingError(
            f"A process that loads images died ({causes[0]}). SIGBUS means that shared memory ran out, SIGKILL that memory did."
            f" Remedy: {REMEDY}."
        ) from error


def make_loader(dataset: Dataset, batches: int | Iterable[list[int]], num_workers: int = 0, pin_memory: bool = False) -> Loader:
    """Make a loader whose processes live as long as it does.

    Parameters
    ----------
    batches : int or iterable of lists of int
        How many items a batch has, if every item comes once, in order; else the items of each batch, as from `StepSampler`.
    num_workers : int
        Processes that load; 0 loads in threads of this one.
    pin_memory : bool
        For copies to a GPU during its work.
    """
    if isinstance(batches, int):
        batches = BatchSampler(SequentialSampler(dataset), batches, drop_last=False)
    return Loader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate_shared if num_workers else collate,
        pin_memory=pin_memory,
        timeout=PATIENCE if num_workers else 0,
        worker_init_fn=_one_thread,
        # It would draw from torch's generator in some epochs and not in others, depending on its processes.
        generator=torch.Generator(),
        prefetch_factor=PREFETCHED if num_workers else None,
        persistent_workers=num_workers > 0,
    )


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)  # each core has a process
