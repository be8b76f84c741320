"""Phantom images of RSNA's two main sizes, as heavy as the original files: they measure the time of decoding.

Decoding time follows the bits per pixel, so these were matched to nine of RSNA's original files (numbers only; the images
are drawn by `utils.phantom.pictures`):

- Air is one constant value. It covers 41 to 73 % of a real 2776 x 2082 image (here 45 to 71 %) and 83 % of the one of
  5355 x 4915 (here 80 to 86 %). A box around the breast spans 83 to 100 % of the height and 46 to 77 % of the width (here 88
  to 96 and 42 to 68), or 75 % and 24 % (here 74 to 86 and 25 to 30).
- White detector noise lies over the breast, so strong that JPEG 2000 takes as many bits per pixel as in the real files: 2.3 to
  5.0, mean 3.5 (here 2.6 to 4.9, mean 3.5), or 1.2 (here 1.0 to 1.4, mean 1.2). The lower resolutions then have nearly their
  real shares of the bytes: 26, 7 and 2 % for half, quarter and eighth size (here 24, 6 and 1.6 %).
- The 12-bit files have one wide LINEAR window; the 16-bit ones use 1,600 of their values and show them through a SIGMOID.
"""

from dataclasses import dataclass

from pydicom.uid import JPEG2000Lossless

from utils.phantom.dicom import Machine
from utils.phantom.pictures import Breast, Drawing


@dataclass(frozen=True)
class FullSize:
    """The images of one size; ``air`` and the standard deviation of the ``noise`` are shares of the brightest tissue."""

    shape: tuple[int, int]
    machine: Machine
    air: float
    noise: float
    drawings: tuple[Drawing, ...]

    @property
    def name(self) -> str:
        """The size as in 2776x2082."""
        return "x".join(map(str, self.shape))


FULL_SIZES = (
    FullSize(
        (2776, 2082),
        Machine(49, 1, JPEG2000Lossless, "MONOCHROME2", 12, ((2048, 4096),), "LINEAR", boxed=True),
        air=0.0,
        noise=0.0190,
        drawings=(
            Drawing("CC", "L", Breast("B", 0.44, 0.31, 0.50, wobble=0.0)),
            Drawing("CC", "R", Breast("C", 0.46, 0.36, 0.50, wobble=0.25)),
            Drawing("MLO", "L", Breast("B", 0.38, 0.38, 0.47, wobble=0.5)),
            Drawing("MLO", "R", Breast("A", 0.42, 0.50, 0.48, wobble=0.75)),
        ),
    ),
    FullSize(
        (5355, 4915),
        Machine(29, 2, JPEG2000Lossless, "MONOCHROME1", 16, ((1800, 1090), (2020, 1090)), "SIGMOID", boxed=True),
        air=0.01,
        noise=0.0180,
        drawings=(
            Drawing("CC", "L", Breast("B", 0.37, 0.22, 0.50, wobble=0.0)),
            Drawing("CC", "R", Breast("C", 0.40, 0.26, 0.50, wobble=0.25)),
            Drawing("MLO", "L", Breast("B", 0.27, 0.22, 0.50, wobble=0.5)),
            Drawing("MLO", "R", Breast("A", 0.30, 0.26, 0.50, wobble=0.75)),
        ),
    ),
)
