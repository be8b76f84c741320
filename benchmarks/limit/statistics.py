"""What the observer of the phantom's pictures is told: its mean lesions, and the power spectrum of its tissue.

Both are those of cached pictures, in grey from 0 to 1 and at the cache's resolution, with the smooth trend of a breast's
brightness taken off.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from benchmarks.limit.observer import ObserverError
from utils.images.boxes import CROP
from utils.images.breast import breast_mask
from utils.images.cached import load_picture
from utils.images.resample import fitting_scale
from utils.images.settings import CacheSettings
from utils.phantom.pictures import (
    CALCIFICATION_AMPLITUDE,
    MASS_AMPLITUDE,
    Lesion,
    calcification_profile,
    draw_lesions,
    mass_profile,
)

PATCH_SHARE = 0.4  # of the picture's height, a patch's side: it holds the largest mass with its rays
TREND_SHARE = 0.25  # of the side: deviation of the blur that is taken off as the trend of a breast's brightness
SKIN = 2.0  # pixels within the skin that are left out: there the breast's edge is mixed in
INSIDE = 0.98  # share of a patch that must be breast
LEAST_PATCHES = 20
N_SIGNALS = 2000
SIZES = 4  # mean signals of each kind of finding, from the smallest to the largest quarter


# Signals
# -------


def patch_side(settings: CacheSettings) -> int:
    """Side of the patches in pixels: even, and wider than the largest mass with its rays."""
    return 2 * round(PATCH_SHARE * settings.image_height / 2)


def mean_signals(manifest: pd.DataFrame, settings: CacheSettings, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw findings as the phantom does, at the scale of random cached pictures, and average those of like kind and size.

    Parameters
    ----------
    manifest : DataFrame
        The cache's.
    settings : CacheSettings
    rng : numpy.random.Generator
        Drawn from; its state moves on.

    Returns
    -------
    signals : ndarray of shape (k, side, side), float32
        In grey at contrast 1, centred on ``[side // 2, side // 2]``.
    shares : ndarray of shape (k,)
        They add up to 1.
    """
    side, geometry = patch_side(settings), _heights_and_scales(manifest, settings)
    rows = []
    for height, scale in geometry[rng.integers(len(geometry), size=N_SIGNALS)]:
        lesions = draw_lesions(rng)
        signal = sum(_draw_signal(lesion, height, scale, side, rng) for lesion in lesions)
        rows.append(("+".join(lesion.label for lesion in lesions), lesions[0].radius * height * scale, signal))
    table = pd.DataFrame(rows, columns=["kind", "radius", "signal"]).sort_values("radius", kind="stable")
    kinds = [kind for _, kind in table.groupby("kind")]
    groups = [kind.signal.iloc[part] for kind in kinds for part in np.array_split(np.arange(len(kind)), SIZES) if len(part)]
    return np.stack([np.mean(list(group), axis=0) for group in groups]), np.array([len(group) for group in groups]) / N_SIGNALS


def _draw_signal(lesion: Lesion, height: float, scale: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """One finding in grey at contrast 1, drawn on ``height`` rows and shrunk by ``scale``: float32 (side, side)."""
    radius = lesion.radius * height
    if lesion.label == "mass":
        profile = MASS_AMPLITUDE * lesion.strength * mass_profile(radius, lesion.spicules, rng)
    else:
        profile = CALCIFICATION_AMPLITUDE * lesion.strength * calcification_profile(radius, round(height), rng)
    reach = max(0, round((len(profile) * scale - 1) / 2))
    small = cv2.resize(profile.astype(np.float32), (2 * reach + 1, 2 * reach + 1), interpolation=cv2.INTER_AREA)
    middle = side // 2
    cut = max(0, reach - middle + 1)  # of a lesion wider than the patch, the rim
    small, reach = small[cut : len(small) - cut, cut : len(small) - cut], reach - cut
    signal = np.zeros((side, side), np.float32)
    signal[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1] = small
    return signal


def without_trend(signals: np.ndarray) -> np.ndarray:
    """What `read_tissue` leaves of the signals in the middle of a breast."""
    blur = TREND_SHARE * signals.shape[-1]
    return np.stack([signal - blurred(signal, blur) for signal in signals])


def _heights_and_scales(manifest: pd.DataFrame, settings: CacheSettings) -> np.ndarray:
    """Rows of each stored picture, and cached pixels per stored pixel: (n, 2)."""
    table = manifest[["source_height", *CROP]].astype(float)
    shapes = zip(table.crop_bottom - table.crop_top, table.crop_right - table.crop_left, strict=True)
    scales = [fitting_scale(shape, settings.image_height, settings.image_width) for shape in shapes]
    return np.column_stack([table.source_height, scales])


# Noise
# -----


def read_tissue(cache_dir: str | Path, split: str, image_id: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Load a picture and take off the smooth trend of the breast's brightness.

    Returns
    -------
    residual : ndarray of shape (h, w), float32
        In grey; 0 outside the breast and on its skin.
    inside : ndarray of shape (h, w), float32
        Distance to the nearest pixel outside the breast; the picture's borders count as outside.
    """
    grey = load_picture(cache_dir, split, image_id).astype(np.float32) / 255
    mask = cv2.resize(breast_mask(grey).astype(np.uint8), grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
    inside = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    inner = (inside > SKIN).astype(np.float32)
    blur = TREND_SHARE * side
    trend = blurred(grey * inner, blur) / np.maximum(blurred(inner, blur), 1e-3)
    return (grey - trend) * inner, inside


def tissue_spectrum(tissue: Iterable[tuple[np.ndarray, np.ndarray]], side: int) -> np.ndarray:
    """Estimate the tissue's power spectrum from overlapping patches inside the breasts, by Welch's method.

    Hann's window leaks with f^-6, which is less than the tissue's own f^-3; a plain patch leaks with f^-2 from its borders, and
    would bury the high frequencies.

    Parameters
    ----------
    tissue : iterable of (residual, inside)
        From `read_tissue`.
    side : int
        Of the patches, in pixels.

    Returns
    -------
    ndarray of shape (side, side), float64
        As in `benchmarks.limit.observer`; infinite at frequency 0, since a patch's mean is taken off.

    Raises
    ------
    ObserverError
        If fewer than `LEAST_PATCHES` patches lie in the breasts.

    References
    ----------
    Welch, The use of fast Fourier transform for the estimation of power spectra, IEEE Trans. Audio Electroacoust. 15 (1967) 70.
    """
    window = np.outer(np.hanning(side + 2)[1:-1], np.hanning(side + 2)[1:-1])
    power, count = np.zeros((side, side)), 0
    for residual, inside in tissue:
        for patch in _patches(residual, inside, side):
            level = (patch * window).sum() / window.sum()
            power += np.abs(np.fft.fft2((patch - level) * window)) ** 2
            count += 1
    if count < LEAST_PATCHES:
        raise ObserverError(f"Only {count} patches of {side} pixels lie in healthy training breasts: take more patients.")
    power /= count * (window**2).sum()
    power[0, 0] = np.inf
    return power


def _patches(residual: np.ndarray, inside: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Patches of tissue alone, each a quarter of its side from the next."""
    for top in range(0, residual.shape[0] - side + 1, side // 4):
        for left in range(0, residual.shape[1] - side + 1, side // 4):
            window = np.s_[top : top + side, left : left + side]
            if (inside[window] > SKIN).mean() >= INSIDE:
                yield residual[window]


def blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian blur; beyond the borders all is 0."""
    return cv2.GaussianBlur(values, (0, 0), deviation, borderType=cv2.BORDER_CONSTANT)
