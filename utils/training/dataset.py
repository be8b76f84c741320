"""Cached images and metadata as items: one image, or a breast with its images.

Both kinds of item have the same form, so one training loop serves both. `utils.training.loading` describes a batch.
"""

import copy
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from utils.core.devices import cpu_count
from utils.images.boxes import largest_boxes
from utils.images.cached import load_picture
from utils.networks.auxiliary import auxiliary_targets
from utils.runs.config import TrainConfig
from utils.tables.vocabulary import Vocabulary
from utils.training.augment import Augment

NO_BOX = np.full(4, np.nan, dtype=np.float32)
VIEW_ORDER = ("CC", "MLO", "ML", "LM", "LMO", "AT")  # screening views first; others follow by name


class ImageDataset(Dataset):
    """One item per image.

    Parameters
    ----------
    images : DataFrame
        Rows of train.csv or test.csv whose images are in the cache.
    cache_dir : path
    split : {"train", "test"}
    vocabulary : Vocabulary
    seed : int
        Decides every random choice, together with ``epoch`` and the item's index.

    Attributes
    ----------
    augment : Augment or None
        Set it for training.
    boxes : ndarray of shape (images, 4) or None
        Target of each image; see `add_boxes`.
    """

    def __init__(self, images: pd.DataFrame, cache_dir: str | Path, split: str, vocabulary: Vocabulary, seed: int = 0):
        self.images = images.reset_index(drop=True)
        self.items = self.images
        # Lists, as reading one value of a pandas column takes 50 µs.
        self._image_ids = self.images.image_id.tolist()
        self._cache_dirs = self.images.cache_dir.tolist() if "cache_dir" in self.images else [cache_dir] * len(self.images)
        self.split = split
        self.metadata = torch.from_numpy(vocabulary.encode(self.images))
        self.seed = seed
        self.augment: Augment | None = None
        self.boxes: np.ndarray | None = None
        # In shared memory, so that a loader's persistent processes see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """Epoch number, which decides random choices."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._epoch.fill_(number)

    def add_boxes(self, boxes: pd.DataFrame) -> None:
        """Make each image's largest box its target; ``boxes`` are from `utils.images.boxes.to_picture`."""
        self.boxes = largest_boxes(boxes, self.images.image_id)

    def plain(self) -> "ImageDataset":
        """Return the same items without augmentation."""
        same = copy.copy(self)
        same.augment = None
        return same

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels of the items, int array; zeros if the table has none."""
        return self.items["cancer"].to_numpy() if "cancer" in self.items else np.zeros(len(self.items), dtype=int)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of images of each item, int array."""
        return np.array([len(self._rows(index)) for index in range(len(self))], dtype=int)

    @cached_property
    def auxiliary(self) -> torch.Tensor:
        """Auxiliary targets of the items, from `utils.networks.auxiliary.auxiliary_targets`."""
        return torch.from_numpy(auxiliary_targets(self.items))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        rows = self._rows(index)
        pictures, boxes = zip(*[self._picture(row) for row in rows], strict=True)
        return {
            "images": torch.from_numpy(np.stack(pictures)[:, None]),  # (V, 1, H, W)
            "metadata": self.metadata[rows],  # (V, 6)
            "rows": torch.tensor(rows),  # (V,)
            "label": float(self.labels[index]),
            "auxiliary": self.auxiliary[index],
            "box": torch.from_numpy(boxes[0]),  # (4,)
            "index": index,
        }

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """Return the items of a batch; outside loader processes in threads, as the decoder and OpenCV release the GIL."""
        if torch.utils.data.get_worker_info() or cpu_count() == 1:
            return [self[index] for index in indices]
        return list(_threads().map(self.__getitem__, indices))

    def _rows(self, index: int) -> list[int]:
        """Return the rows of an item's images."""
        return [index]

    def _picture(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        picture = self._load(row)
        box = None if self.boxes is None else self.boxes[row]
        if self.augment:
            picture, box = self.augment(picture, int(self._generator(row).integers(2**31)), box)
        return picture, NO_BOX if box is None else box  # (H, W), (4,)

    def _load(self, row: int) -> np.ndarray:
        return load_picture(self._cache_dirs[row], self.split, self._image_ids[row])

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, number])


class BreastDataset(ImageDataset):
    """One item per breast: all its images in view order, or ``max_views`` of them drawn at random.

    The draw changes with the epoch in training, and stays the same in validation.

    Parameters
    ----------
    max_views : int or None
        None takes all images. Use 1 if the number of a breast's images reveals its label.
    """

    def __init__(
        self,
        images: pd.DataFrame,
        cache_dir: str | Path,
        split: str,
        vocabulary: Vocabulary,
        seed: int = 0,
        max_views: int | None = None,
    ):
        order = images.view.map({view: rank for rank, view in enumerate(VIEW_ORDER)}).fillna(len(VIEW_ORDER))
        images = images.assign(_order=order).sort_values(["_order", "view", "image_id"]).drop(columns="_order")
        super().__init__(images, cache_dir, split, vocabulary, seed)
        self.max_views = max_views
        groups = self.images.groupby("prediction_id", sort=False).indices
        self.groups = list(groups.values())
        self.items = self.images.iloc[[rows[0] for rows in self.groups]].reset_index(drop=True)

    def _rows(self, index: int) -> list[int]:
        rows = self.groups[index]
        if self.max_views is None or len(rows) <= self.max_views:
            return rows.tolist()
        # A stream of the breast's own: independent of the rest of the table, and of the streams that augment its images.
        breast = zlib.crc32(self.items.prediction_id.iloc[index].encode())
        generator = np.random.default_rng([self.seed, self.epoch if self.augment else 0, breast, 1])
        return sorted(generator.choice(rows, self.max_views, replace=False).tolist())


def make_dataset(
    config: TrainConfig, images: pd.DataFrame, cache_dir: str | Path, split: str, vocabulary: Vocabulary
) -> ImageDataset:
    """Make a model's data set, of images or of breasts; see `ImageDataset` for the arguments."""
    if config.model.item == "image":
        return ImageDataset(images, cache_dir, split, vocabulary, config.seed)
    return BreastDataset(images, cache_dir, split, vocabulary, config.seed, config.max_views)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cpu_count(), thread_name_prefix="load")
