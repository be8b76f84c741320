"""Augmentation of training images; validation and test images stay as they are."""

import threading

import albumentations as A  # noqa: N812  (the name that its own documentation uses)
import numpy as np


class Augment:
    """Flips, affine, brightness and contrast, and dropout of rectangles, on one-channel uint8.

    Parameters
    ----------
    strength : float
        Scales ranges, not probabilities: 1 is the tuned strength, and 0 changes nothing.
    """

    def __init__(self, strength: float = 1.0):
        self.strength = strength
        self._local = threading.local()  # a pipeline has its own generator, so each thread needs its own

    def __call__(self, picture: np.ndarray, seed: int, box: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Augment one image; the same seed gives the same result in any process.

        Parameters
        ----------
        picture : ndarray of shape (height, width), uint8
        seed : int
        box : ndarray of shape (4,), optional
            x_min, y_min, x_max, y_max as shares of the image's sides; moves with the image.

        Returns
        -------
        picture : ndarray of shape (height, width), uint8
        box : ndarray of shape (4,), float32, or None
            NaN if less than half of it remains in the image.
        """
        if self.strength == 0:
            return picture, box
        if not hasattr(self._local, "pipelines"):
            self._local.pipelines = {has_box: _compose(self.strength, has_box) for has_box in (False, True)}
        pipeline = self._local.pipelines[box is not None]
        pipeline.set_random_seed(seed)
        if box is None:
            return pipeline(image=picture)["image"], None
        result = pipeline(image=picture, bboxes=np.empty((0, 4)) if np.isnan(box[0]) else box[None])
        left = np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4)
        return result["image"], left[0] if len(left) else np.full(4, np.nan, dtype=np.float32)

    def __reduce__(self) -> tuple:
        """Pickle the strength alone, for spawned processes: pipelines stay in their threads."""
        return type(self), (self.strength,)


def _compose(strength: float, has_box: bool) -> A.Compose:
    boxes = None  # looking for boxes takes a tenth of the time
    if has_box:
        # Without min_visibility, CoarseDropout would erase boxes that a hole covers in part.
        boxes = A.BboxParams(format="albumentations", min_visibility=0.5, clip=True)
    return A.Compose(_list_transforms(strength), bbox_params=boxes)


def _list_transforms(strength: float) -> list[A.BasicTransform]:
    return [
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
        A.Affine(
            scale=(1 - 0.15 * strength, 1 + 0.15 * strength),
            translate_percent=(-0.06 * strength, 0.06 * strength),
            rotate=(-20 * strength, 20 * strength),
            shear=(-8 * strength, 8 * strength),
            fill=0,
            p=0.8,
        ),
        A.RandomBrightnessContrast(brightness_limit=0.15 * strength, contrast_limit=0.15 * strength, p=0.5),
        A.CoarseDropout(
            num_holes_range=(1, 4),
            hole_height_range=(0.05, 0.15),
            hole_width_range=(0.05, 0.15),
            fill=0,
            p=0.3 * strength,
        ),
    ]
