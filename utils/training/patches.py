"""Patches of cached pictures, around boxes and elsewhere: an encoder learns lesions close up before it sees whole images.

After the end-to-end route from patches to whole images that the paper takes over from Shen et al. 2019.
"""

from functools import cached_property

import cv2
import numpy as np
import pandas as pd
import torch

from utils.tables.boxes import CORNERS
from utils.tables.vocabulary import Vocabulary
from utils.training.augment import Augment
from utils.training.dataset import NO_BOX, ImageDataset

LEAST_TISSUE = 0.5  # share of a background patch that is brighter than black
MOST_OF_BOX = 0.25  # share of a box that a background patch may hold
TRIES = 20  # places that are drawn for a background patch


class PatchDataset(ImageDataset):
    """One patch around each box, and one elsewhere in the same image.

    Both come from the same images, so that no other difference between marked and unmarked images, such as the set that they
    are from, tells them apart. The label is the image's for a patch around a box, and 0 elsewhere; the one auxiliary target is
    the box's label, or "background".

    Parameters
    ----------
    images : DataFrame
        Of one side of the folds.
    cache_dir : path
    vocabulary : Vocabulary
    boxes : DataFrame
        From `utils.images.boxes.to_picture`; those of other images are left out.
    size : int
        Side of a patch in pixels.
    augment : Augment or None
        None centres patches on their boxes; otherwise a box lies anywhere in its patch. The picture is augmented, then the
        patch is cut, so that no border of black comes between it and its surroundings.
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
        self.corners = {image_id: table[CORNERS].to_numpy() for image_id, table in boxes.groupby("image_id")}
        around = images.merge(boxes[["image_id", "label", *CORNERS]], on="image_id").assign(around_box=True)
        elsewhere = around.assign(around_box=False, cancer=0, label="")
        items = pd.concat([around, elsewhere], ignore_index=True)
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

    def _picture(self, row: int) -> tuple[torch.Tensor, np.ndarray]:
        picture = self._load(row)
        generator = np.random.default_rng([self.seed, self.epoch if self.augment else 0, row, 3])
        place = self._choose_place(picture, self.images.iloc[row], generator)
        if self.augment:
            picture, place = self._augmented(picture, place, int(generator.integers(2**31)))
        patch = cut_patch(picture, place, self.size)
        return torch.from_numpy(patch.copy())[None], NO_BOX  # (1, size, size), (4,)

    def _augmented(self, picture: np.ndarray, place: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment a picture, and follow a place (row, column) in it; both stay as they are where it would leave the picture."""
        height, width = picture.shape
        row, column = np.clip(place, 1, [height - 1, width - 1])
        box = np.array([(column - 1) / width, (row - 1) / height, (column + 1) / width, (row + 1) / height], dtype=np.float32)
        augmented, moved = self.augment(picture, seed, box)
        if np.isnan(moved[0]):
            return picture, place
        return augmented, np.array([(moved[1] + moved[3]) / 2 * height, (moved[0] + moved[2]) / 2 * width])

    def _choose_place(self, picture: np.ndarray, item: pd.Series, generator: np.random.Generator) -> np.ndarray:
        """Choose the middle of a patch: row and column."""
        if not item.around_box:
            return choose_background(picture, self.corners[item.image_id], self.size, generator)
        height, width = picture.shape
        centre = np.array([(item.y_min + item.y_max) / 2 * height, (item.x_min + item.x_max) / 2 * width])
        shift = generator.uniform(-0.25, 0.25, 2) * self.size if self.augment else 0
        return centre + shift


def choose_background(picture: np.ndarray, corners: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Choose the middle (row, column) of a square of tissue away from all boxes.

    Of a few random places, the first with enough tissue is taken, else the one with the most. If boxes fill the picture, the
    square may hold a part of one.

    Parameters
    ----------
    picture : ndarray of shape (height, width), uint8
    corners : ndarray of shape (boxes, 4)
        As shares of the picture's sides.
    size : int
        Side of the square in pixels.
    generator : Generator
    """
    height, width = picture.shape
    boxes = corners * [width, height, width, height]
    places = generator.uniform(0, 1, (TRIES, 2)) * picture.shape
    apart = [place for place in places if _is_apart(place, boxes, size)]
    best, most = None, -1.0
    for place in apart or places:
        tissue = (cut_patch(picture, place, size) > 0).mean()
        if tissue >= LEAST_TISSUE:
            return place
        if tissue > most:
            best, most = place, tissue
    return best


def _is_apart(place: np.ndarray, boxes: np.ndarray, size: int) -> bool:
    """Tell whether a square around a place (row, column) holds little of each box, and is not centred in one."""
    row, column = place
    left, top, right, bottom = boxes.T
    shared_width = np.clip(np.minimum(right, column + size / 2) - np.maximum(left, column - size / 2), 0, None)
    shared_height = np.clip(np.minimum(bottom, row + size / 2) - np.maximum(top, row - size / 2), 0, None)
    held = shared_width * shared_height / ((right - left) * (bottom - top))
    centred = (left <= column) & (column < right) & (top <= row) & (row < bottom)
    return bool((held < MOST_OF_BOX).all() and not centred.any())


def cut_patch(picture: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """Cut a square around a point (row, column); what lies outside of the picture is black."""
    top, left = (int(round(float(value))) - size // 2 for value in centre)
    padded = cv2.copyMakeBorder(picture, size, size, size, size, cv2.BORDER_CONSTANT, value=0)
    return padded[top + size : top + 2 * size, left + size : left + 2 * size]
