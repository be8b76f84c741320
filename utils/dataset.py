"""Cached pictures and metadata as batches: one picture an item for image models, a breast's pictures for the recurrent one.

Both kinds of item have the same form, so that one training loop serves all. A batch is a dict:

- ``images``: uint8 tensor (N, 1, height, width), the pictures of all items one after the other
- ``metadata``: float32 tensor (N, 6), one row per picture, columns `METADATA`
- ``lengths``: int64 tensor (B,), how many pictures each item has; sums to N
- ``label``: float32 tensor (B,)
- ``index``: int64 tensor (B,), the item's row in ``dataset.items``
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.augment import Augment
from utils.cache import load_picture

METADATA = ("age", "age_missing", "implant", "view", "machine_id", "site_id")
CATEGORIES = ("view", "machine_id", "site_id")
VIEW_ORDER = ("CC", "MLO", "ML", "LM", "LMO", "AT")  # the two screening views first; others follow by name


@dataclass(frozen=True)
class Vocabulary:
    """What the metadata looked like in training: it turns a table into numbers, unseen and missing values included.

    ``view``, ``machine_id``, ``site_id`` list the known values; their codes start at 1, and 0 stands for missing or unseen.
    """

    age_mean: float
    age_std: float
    view: tuple[str, ...]
    machine_id: tuple[str, ...]
    site_id: tuple[str, ...]

    @classmethod
    def from_images(cls, images: pd.DataFrame) -> "Vocabulary":
        """Learn the vocabulary from training images alone."""
        known = {column: tuple(sorted(images[column].dropna().astype(str).unique())) for column in CATEGORIES}
        age = images.age.dropna()
        mean, std = (float(age.mean()), float(age.std(ddof=0))) if len(age) else (0.0, 1.0)
        return cls(age_mean=mean, age_std=std or 1.0, **known)

    def encode(self, images: pd.DataFrame) -> np.ndarray:
        """Encode metadata.

        Returns
        -------
        ndarray of shape (len(images), 6), float32
            Columns `METADATA`: standardised age (0 where missing), whether it is missing, implant (0 or 1), and three codes.
        """
        age = ((images.age - self.age_mean) / self.age_std).fillna(0)
        columns = [age, images.age.isna(), images.implant]
        for column in CATEGORIES:
            codes = {value: code for code, value in enumerate(getattr(self, column), start=1)}
            columns.append(images[column].astype(str).map(codes).fillna(0))
        return np.stack([column.to_numpy(dtype=np.float32) for column in columns], axis=1)


class ImageDataset(Dataset):
    """One item per image.

    Parameters
    ----------
    images : DataFrame
        Rows of train.csv or test.csv whose pictures are in the cache.
    cache_dir : path
    split : {"train", "test"}
    vocabulary : Vocabulary
    augment : Augment or None
        None for validation and test.
    seed : int
        With ``epoch`` and the item's index, it decides every random choice.
    """

    def __init__(
        self,
        images: pd.DataFrame,
        cache_dir: str | Path,
        split: str,
        vocabulary: Vocabulary,
        augment: Augment | None = None,
        seed: int = 0,
    ):
        self.images = images.reset_index(drop=True)
        self.cache_dir, self.split = cache_dir, split
        self.metadata = torch.from_numpy(vocabulary.encode(self.images))
        self.augment, self.seed, self.epoch = augment, seed, 0
        self.items = self.images

    @property
    def labels(self) -> np.ndarray:
        """Labels of the items, int array; zeros where the table has none."""
        return self.items["cancer"].to_numpy() if "cancer" in self.items else np.zeros(len(self.items), dtype=int)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        rows = self._rows(index)
        return {
            "images": torch.stack([self._picture(row) for row in rows]),  # (V, 1, H, W)
            "metadata": self.metadata[rows],  # (V, 6)
            "label": float(self.labels[index]),
            "index": index,
        }

    def _rows(self, index: int) -> list[int]:
        return [index]

    def _picture(self, row: int) -> torch.Tensor:
        picture = load_picture(self.cache_dir, self.split, self.images.image_id.iloc[row])
        if self.augment:
            picture = self.augment(picture, seed=int(self._generator(row).integers(2**31)))
        return torch.from_numpy(np.ascontiguousarray(picture))[None]  # (1, H, W)

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, number])


class BreastDataset(ImageDataset):
    """One item per breast: all its images in view order, or ``max_views`` of them drawn at random.

    In training the draw changes with the epoch; in validation it is the same every time.

    Parameters
    ----------
    max_views : int or None
        None takes all. 1 is needed where the number of images of a breast tells its label.
    """

    def __init__(self, images: pd.DataFrame, *args, max_views: int | None = None, **kwargs):
        order = images.view.map({view: rank for rank, view in enumerate(VIEW_ORDER)}).fillna(len(VIEW_ORDER))
        images = images.assign(_order=order).sort_values(["_order", "view", "image_id"]).drop(columns="_order")
        super().__init__(images, *args, **kwargs)
        self.max_views = max_views
        groups = self.images.groupby("prediction_id", sort=False).indices
        self.groups = list(groups.values())
        self.items = self.images.iloc[[rows[0] for rows in self.groups]].reset_index(drop=True)

    def _rows(self, index: int) -> list[int]:
        rows = self.groups[index]
        if self.max_views is None or len(rows) <= self.max_views:
            return rows.tolist()
        # The item's own stream, apart from those that augment its pictures.
        generator = np.random.default_rng([self.seed, self.epoch if self.augment else 0, index, 1])
        return sorted(generator.choice(rows, self.max_views, replace=False).tolist())


class ShareSampler(Sampler):
    """Order of an epoch's items: every item once, or as many with a set share of positives.

    Parameters
    ----------
    labels : ndarray of int
    positive_share : float or None
        None shuffles. Else positives are repeated, and negatives left out, so that their share is this.
    seed : int
    """

    def __init__(self, labels: np.ndarray, positive_share: float | None, seed: int):
        self.labels, self.positive_share, self.seed, self.epoch = np.asarray(labels), positive_share, seed, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch, 2])
        positives, negatives = np.flatnonzero(self.labels == 1), np.flatnonzero(self.labels == 0)
        if self.positive_share is None or not len(positives) or not len(negatives):
            return iter(generator.permutation(len(self.labels)).tolist())
        n_positives = round(self.positive_share * len(self.labels))
        chosen = [_draw(positives, n_positives, generator), _draw(negatives, len(self.labels) - n_positives, generator)]
        return iter(generator.permutation(np.concatenate(chosen)).tolist())


def _draw(pool: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw ``count`` of ``pool``; nothing is drawn again before everything has been drawn."""
    rounds = -(-count // len(pool))
    return np.concatenate([generator.permutation(pool) for _ in range(rounds)] or [pool[:0]])[:count]


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Join items into a batch; see the module's first lines."""
    return {
        "images": torch.cat([item["images"] for item in items]),
        "metadata": torch.cat([item["metadata"] for item in items]),
        "lengths": torch.tensor([len(item["images"]) for item in items]),
        "label": torch.tensor([item["label"] for item in items], dtype=torch.float32),
        "index": torch.tensor([item["index"] for item in items]),
    }


def make_loader(
    dataset: ImageDataset, batch_size: int, num_workers: int, sampler: Sampler | None = None, pin_memory: bool = False
) -> DataLoader:
    """Make a loader of whole epochs; with a sampler an incomplete last batch is dropped if a complete one exists."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        # Batch normalisation over one or two left-over pictures does harm.
        drop_last=sampler is not None and len(dataset) >= batch_size,
    )
