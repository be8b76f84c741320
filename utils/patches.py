"""Patches of cached pictures, around boxes and elsewhere: an encoder learns lesions close up before it sees whole images.

After the end-to-end route from patches to whole images that the paper takes over from Shen et al. 2019.
"""

from functools import cached_property

import cv2
import numpy as np
import pandas as pd
import torch

from utils.augment import Augment
from utils.boxes import CORNERS
from utils.dataset import ImageDataset, Vocabulary

LEAST_TISSUE = 0.5  # share of a background patch that is brighter than black
TRIES = 10  # places that are looked at for one


class PatchDataset(ImageDataset):
    """One item per box, and as many patches of images without any.

    The label tells whether the patch was cut around a box; the one auxiliary target is the box's label.

    Parameters
    ----------
    images : DataFrame
        Of one side of the folds.
    cache_dir : path
    vocabulary : Vocabulary
    boxes : DataFrame
        From `utils.boxes.to_picture`; those of other images are left out.
    size : int
        Side of a patch in pixels.
    augment : Augment or None
        None centres patches on their boxes; otherwise a box lies anywhere in its patch.
    seed : int
    """

    def __init__(
        self,
        images: pd.DataFrame,
        cache_dir,
        vocabulary: Vocabulary,
        boxes: pd.DataFrame,
        size: int,
        augment: Augment | None,
        seed: int,
    ):
        boxes = boxes[boxes.image_id.isin(images.image_id)]
        self.kinds = tuple(sorted(boxes.label.unique()))
        around = images.merge(boxes[["image_id", "label", *CORNERS]], on="image_id").assign(cancer=1)
        without = images[~images.image_id.isin(boxes.image_id) & (images.cancer == 0)]
        count = len(around) if len(without) else 0
        background = without.sample(count, replace=len(without) < count, random_state=seed).assign(cancer=0)
        items = pd.concat([around, background], ignore_index=True)
        super().__init__(items, cache_dir, "train", vocabulary, augment, seed)
        # Each patch is a finding of its own to the metrics.
        self.items = self.items.assign(prediction_id=[str(number) for number in range(len(items))])
        self.size = size

    @cached_property
    def auxiliary(self) -> torch.Tensor:
        """Number of each item's kind of box, 0 for background; one column."""
        numbers = {kind: number for number, kind in enumerate(self.kinds, start=1)}
        return torch.tensor(self.items.label.map(numbers).fillna(0).to_numpy(dtype=np.int64))[:, None]

    @property
    def auxiliary_sizes(self) -> tuple[int, ...]:
        """Classes of the auxiliary target."""
        return (len(self.kinds) + 1,)

    def _cut(self, picture: np.ndarray, row: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, self.epoch if self.augment else 0, row, 3])
        item = self.images.iloc[row]
        if item.cancer:
            height, width = picture.shape
            centre = np.array([(item.y_min + item.y_max) / 2 * height, (item.x_min + item.x_max) / 2 * width])
            shift = generator.uniform(-0.25, 0.25, 2) * self.size if self.augment else 0
            return cut_patch(picture, centre + shift, self.size)
        for _ in range(TRIES):
            centre = generator.uniform(0, 1, 2) * picture.shape
            patch = cut_patch(picture, centre, self.size)
            if (patch > 0).mean() >= LEAST_TISSUE:
                break
        return patch

    def _load(self, row: int) -> np.ndarray:
        return self._cut(super()._load(row), row)


def cut_patch(picture: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """Cut a square around a point (row, column); what lies outside of the picture is black."""
    top, left = (int(round(float(value))) - size // 2 for value in centre)
    padded = cv2.copyMakeBorder(picture, size, size, size, size, cv2.BORDER_CONSTANT, value=0)
    return padded[top + size : top + 2 * size, left + size : left + 2 * size]
