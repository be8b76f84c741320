"""What training does to a picture so that no model learns it by heart; validation and test pictures stay as they are."""

import albumentations as A  # noqa: N812  (the name that its own documentation uses)
import numpy as np


class Augment:
    """Flips, affine, brightness and contrast, and dropout of rectangles, on one-channel uint8.

    Parameters
    ----------
    strength : float
        1 as tuned; 0 does nothing; scales ranges, not probabilities.
    """

    def __init__(self, strength: float = 1.0):
        self.strength = strength
        self.pipeline = A.Compose(
            [
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
        )

    def __call__(self, picture: np.ndarray, seed: int) -> np.ndarray:
        """Augment one picture; the same seed gives the same result in any process.

        Parameters
        ----------
        picture : ndarray of shape (height, width), uint8
        seed : int

        Returns
        -------
        ndarray of shape (height, width), uint8
        """
        if self.strength == 0:
            return picture
        self.pipeline.set_random_seed(seed)
        return self.pipeline(image=picture)["image"]
