"""Patches of cached images, around boxes and elsewhere: an encoder learns lesions close up before whole images.

This is the end-to-end route of Shen et al., 2019, from patches to whole images.
"""

from functools import cached_property

import cv2
import numpy as np
import pandas as pd
import torch

from utils.images.training_data import TrainingData
from utils.runs.config import TrainConfig
from utils.tables.boxes import CORNERS
from utils.tables.vocabulary import Vocabulary
from utils.training.dataset import NO_BOX, ImageDataset

LEAST_TISSUE = 0.5  # share of a background patch that is brighter than black
MOST_OF_BOX = 0.25  # largest share of a box in a background patch
TRIES = 20  # places drawn for a background patch


class PatchDataset(ImageDataset):
    """One patch around each box, and one elsewhere in the same image.

    Both come from the same images, so that nothing else that differs between marked and unmarked images, such as their set,
    tells them apart. The label is the image's for a patch around a box, and 0 elsewhere. The one auxiliary target is the box's
    label, or "background". The boxes of ``data`` are from `utils.images.boxes.to_picture`.

    Without ``augment``, patches are centred on their boxes; with it, a box is anywhere in its patch. The image is augmented
    before the patch is cut, so that no black border comes between the patch and its surroundings.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, images: pd.DataFrame, vocabulary: Vocabulary):
        boxes = data.boxes[data.boxes.image_id.isin(images.image_id)]
        self.kinds = tuple(sorted(boxes.label.unique()))
        self.corners = {image_id: table[CORNERS].to_numpy() for image_id, table in boxes.groupby("image_id")}
        around = images.merge(boxes[["image_id", "label", *CORNERS]], on="image_id").assign(around_box=True)
        elsewhere = around.assign(around_box=False, cancer=0, label="")
        items = pd.concat([around, elsewhere], ignore_index=True)
        super().__init__(items, data.cache_dir, "train", vocabulary, config.seed)
        # The metrics count each patch as a finding of its own.
        self.items = self.items.assign(prediction_id=[str(number) for number in range(len(items))])
        self.size = config.patch_size

    @cached_property
    def auxiliary(self) -> torch.Tensor:
        """Kind of each item's box, 0 for background; one column."""
        numbers = {kind: number for number, kind in enumerate(self.kinds, start=1)}
        return torch.tensor(self.items.label.map(numbers).fillna(0).to_numpy(dtype=np.int64))[:, None]

    @property
    def auxiliary_sizes(self) -> tuple[int, ...]:
        """Number of classes of the auxiliary target."""
        return (len(self.kinds) + 1,)

    def _picture(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        picture = self._load(row)
        generator = np.random.default_rng([self.seed, self.epoch if self.augment else 0, row, 3])
        place = self._choose_place(picture, self.images.iloc[row], generator)
        if self.augment:
            picture, place = self._augmented(picture, place, int(generator.integers(2**31)))
        return cut_patch(picture, place, self.size), NO_BOX  # (size, size), (4,)

    def _augmented(self, picture: np.ndarray, place: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image and move a place (row, column) with it; return both as they were if the place would leave it."""
        height, width = picture.shape
        row, column = np.clip(place, 1, [height - 1, width - 1])
        box = np.array([(column - 1) / width, (row - 1) / height, (column + 1) / width, (row + 1) / height], dtype=np.float32)
        augmented, moved = self.augment(picture, seed, box)
        if np.isnan(moved[0]):
            return picture, place
        return augmented, np.array([(moved[1] + moved[3]) / 2 * height, (moved[0] + moved[2]) / 2 * width])

    def _choose_place(self, picture: np.ndarray, item: pd.Series, generator: np.random.Generator) -> np.ndarray:
        """Choose the centre of a patch: row and column."""
        if not item.around_box:
            return choose_background(picture, self.corners[item.image_id], self.size, generator)
        height, width = picture.shape
        centre = np.array([(item.y_min + item.y_max) / 2 * height, (item.x_min + item.x_max) / 2 * width])
        shift = generator.uniform(-0.25, 0.25, 2) * self.size if self.augment else 0
        return centre + shift


def choose_background(picture: np.ndarray, corners: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Choose the centre (row, column) of a square of tissue away from all boxes.

    Of a few random places, take the first with enough tissue, else the one with the most. If boxes fill the image, the square
    may contain a part of one. ``corners`` (boxes, 4) are shares of the image's sides.
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
    """True if a square around a place (row, column) contains little of each box, and is not centred in one."""
    row, column = place
    left, top, right, bottom = boxes.T
    shared_width = np.clip(np.minimum(right, column + size / 2) - np.maximum(left, column - size / 2), 0, None)
    shared_height = np.clip(np.minimum(bottom, row + size / 2) - np.maximum(top, row - size / 2), 0, None)
    held = shared_width * shared_height / ((right - left) * (bottom - top))
    centred = (left <= column) & (column < right) & (top <= row) & (row < bottom)
    return bool((held < MOST_OF_BOX).all() and not centred.any())


def cut_patch(picture: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """Cut a square around a point (row, column), black outside the image."""
    top, left = (int(round(float(value))) - size // 2 for value in centre)
    padded = cv2.copyMakeBorder(picture, size, size, size, size, cv2.BORDER_CONSTANT, value=0)
    return padded[top + size : top + 2 * size, left + size : left + 2 * size]
