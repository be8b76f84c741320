"""The matched filter on the phantom's cached pictures: what can be seen at a cache's resolution, without training a network.

It reads the very pictures that a model reads, 8 bits and all. Noise is the tissue of lesion-free training breasts, signals are
the means of lesions drawn as the phantom draws them, and nothing is fitted on pictures that are scored, but for each picture's
local contrast, which says how far to trust the filter there.

It is not the ideal observer of these pictures. Tissue is neither Gaussian nor stationary: gland is clumped, denser in the
middle, and ends at the skin and the muscle. A lesion's shape is random, and a mean over shapes keeps neither rays nor single
calcifications. A breast's views hold one lesion, and here each is scored as if its place were free. A network may use all
three, so it may pass the observer that does not know the place. The one that does know it, which no model is told, is nearer
an upper bound, though no proven one.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.special import logsumexp

from benchmarks.limit.observer import ObserverError, matched_filter
from benchmarks.limit.statistics import blurred, mean_signals, patch_side, read_tissue, tissue_spectrum, without_trend
from utils.core.files import read_json
from utils.images.boxes import largest_boxes, to_picture
from utils.images.cached import read_manifest
from utils.images.settings import CacheSettings
from utils.phantom.competition import PARAMETERS_FILE, is_phantom_competition, read_truth
from utils.tables.boxes import CORNERS

OBSERVERS = ("known_place", "unknown_place")
NEAR_SHARE = 0.33  # of the side: deviation of the surroundings in which the filter's local variance is measured
LOCAL_SHARE = 0.7  # of the variance: what the surroundings say; the rest is the training breasts' variance
PRIOR_BLUR = 0.06  # of the picture's height
RAREST = 1  # percentile of the lesions' distances from the breast's edge: no place nearer to it is looked at


@dataclass(frozen=True)
class PhantomObserver:
    """A fitted observer; lengths in pixels of the cached picture, grey from 0 to 1.

    Parameters
    ----------
    settings : CacheSettings
    signals, templates : ndarray of shape (k, side, side), float32
        Mean lesions, each with its matched filter.
    shares : ndarray of shape (k,)
        How often a positive breast's finding is of each kind and size; they add up to 1.
    means, variances : ndarray of shape (k,)
        Of the filters' outputs on lesion-free training breasts.
    margin : float
        Least distance of a place from the breast's edge.
    prior : ndarray of shape (image_height, image_width), float32
        Density of the training lesions' places in the picture.
    """

    settings: CacheSettings
    signals: np.ndarray
    templates: np.ndarray
    shares: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    margin: float
    prior: np.ndarray


def fit_observer(
    competition_dir: str | Path, images: pd.DataFrame, cache_dir: str | Path, settings: CacheSettings, seed: int = 0
) -> PhantomObserver:
    """Fit the observer on a phantom's training images.

    Parameters
    ----------
    competition_dir : path
        Gives the lesions' contrast, and their boxes for the prior of places.
    images : DataFrame
        Of the training table; only those in the cache are used.
    cache_dir : path
    settings : CacheSettings
    seed : int
        Of the lesions that are drawn.

    Raises
    ------
    ObserverError
        If this is no phantom, its lesions are hidden, or too little of its healthy breasts is there.
    """
    contrast = _contrast(competition_dir)
    manifest = _readable(images, cache_dir, "train", settings)
    side = patch_side(settings)
    signals, shares = mean_signals(manifest, settings, np.random.default_rng(seed))
    signals = without_trend(contrast * signals)
    healthy = manifest.image_id[manifest.image_id.isin(images.image_id[images.cancer == 0])]
    tissue = [read_tissue(cache_dir, "train", image_id, side) for image_id in healthy]
    spectrum = tissue_spectrum(tissue, side)
    templates = np.stack([matched_filter(signal, spectrum) for signal in signals]).astype(np.float32)
    margin, prior = _places_of_lesions(competition_dir, manifest, cache_dir, settings)
    outputs = np.concatenate([filter_picture(residual, templates)[:, inside > margin] for residual, inside in tissue], axis=1)
    if not outputs.size:
        raise ObserverError("No healthy training breast is large enough to hold a lesion: take more patients.")
    return PhantomObserver(settings, signals, templates, shares, outputs.mean(axis=1), outputs.var(axis=1), margin, prior)


def score_images(
    observer: PhantomObserver,
    competition_dir: str | Path,
    images: pd.DataFrame,
    cache_dir: str | Path,
    split: str = "test",
    seed: int = 0,
) -> pd.DataFrame:
    """Log likelihood ratios of a lesion in each image.

    The observer that knows the place reads the centre of the true box. Where there is none, it reads a place drawn as the
    training lesions' places are, so that the place alone tells nothing.

    Parameters
    ----------
    observer : PhantomObserver
    competition_dir : path
        Gives the boxes.
    images : DataFrame
        Those that are not in the cache are left out.
    cache_dir : path
    split : {"train", "test"}
    seed : int
        Of the drawn places.

    Returns
    -------
    DataFrame
        prediction_id, patient_id, image_id, known_place, unknown_place.
    """
    settings = observer.settings
    manifest = _readable(images, cache_dir, split, settings)
    boxes = to_picture(read_truth(competition_dir)[0], manifest, settings)
    images = images[images.image_id.isin(manifest.image_id)]
    rng = np.random.default_rng(seed)
    rows = []
    for image_id, box in zip(images.image_id, largest_boxes(boxes, images.image_id), strict=True):
        ratios, prior = place_ratios(observer, *read_tissue(cache_dir, split, image_id, len(observer.templates[0])))
        drawn = rng.choice(prior.size, p=prior.ravel())  # drawn for every image, so that labels move no other's place
        row, column = np.unravel_index(drawn, prior.shape) if np.isnan(box[0]) else _centre(box, settings)
        rows.append((ratios[row, column], logsumexp(ratios, b=prior)))
    return images[["prediction_id", "patient_id", "image_id"]].assign(**dict(zip(OBSERVERS, np.transpose(rows), strict=True)))


def per_breast(scores: pd.DataFrame) -> pd.DataFrame:
    """Add up a breast's images, as if each were independent given the label.

    Returns
    -------
    DataFrame
        patient_id, known_place, unknown_place, indexed by prediction_id.
    """
    sums = dict.fromkeys(OBSERVERS, "sum")
    return scores.groupby("prediction_id", sort=False).agg({"patient_id": "first"} | sums)


# Places
# ------


def filter_picture(residual: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Correlate a picture with each template, centred on each pixel: (h, w) and (k, side, side) to (k, h, w), float32."""
    middle = templates.shape[-1] // 2
    options = {"anchor": (middle, middle), "borderType": cv2.BORDER_CONSTANT}
    return np.stack([cv2.filter2D(residual, cv2.CV_32F, template, **options) for template in templates])


def place_ratios(observer: PhantomObserver, residual: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log likelihood ratio of a lesion at each place of a picture, whatever its kind and size.

    Where a signal stands, its filter's output is higher by the signal's own; it varies as much as it does around there.

    Parameters
    ----------
    observer : PhantomObserver
    residual, inside : ndarray of shape (h, w)
        From `read_tissue`.

    Returns
    -------
    ratios : ndarray of shape (h, w)
    prior : ndarray of shape (h, w)
        Probability of each place; 0 outside the breast and near its edge.
    """
    outputs = filter_picture(residual, observer.templates) - observer.means[:, None, None]  # (k, h, w)
    allowed = inside > observer.margin
    allowed = allowed if allowed.any() else inside >= inside.max()
    variances = _local_variances(outputs, allowed, observer)
    rises = (observer.templates * observer.signals).sum(axis=(1, 2))[:, None, None]
    ratios = logsumexp((rises * outputs - rises**2 / 2) / variances, axis=0, b=observer.shares[:, None, None])
    prior = np.where(allowed, observer.prior + np.finfo(np.float32).tiny, 0).astype(float)
    return ratios, prior / prior.sum()


def _local_variances(outputs: np.ndarray, allowed: np.ndarray, observer: PhantomObserver) -> np.ndarray:
    """Variance of the filters' outputs around each place, drawn towards that of the training breasts: (k, h, w)."""
    blur = NEAR_SHARE * observer.templates.shape[-1]
    weight = np.maximum(blurred(allowed.astype(np.float32), blur), 1e-3)
    squares = np.square(outputs, dtype=np.float32) * allowed
    local = np.stack([blurred(square, blur) / weight for square in squares])
    return LOCAL_SHARE * local + (1 - LOCAL_SHARE) * observer.variances[:, None, None]


def _places_of_lesions(
    competition_dir: str | Path, manifest: pd.DataFrame, cache_dir: str | Path, settings: CacheSettings
) -> tuple[float, np.ndarray]:
    """Margin and prior of a `PhantomObserver`, from the training boxes."""
    boxes = to_picture(read_truth(competition_dir)[0], manifest, settings)
    if not len(boxes):
        raise ObserverError("No training image shows a lesion: take more patients, or a larger positive_share.")
    shape = settings.image_height, settings.image_width
    counts, distances = np.zeros(shape, np.float32), []
    for image_id, box in zip(boxes.image_id, boxes[CORNERS].to_numpy(), strict=True):
        centre = _centre(box, settings)
        counts[centre] += 1
        distances.append(read_tissue(cache_dir, "train", image_id, patch_side(settings))[1][centre])
    prior = blurred(counts, PRIOR_BLUR * settings.image_height)
    return float(np.percentile(distances, RAREST)), prior / prior.sum()


def _centre(box: np.ndarray, settings: CacheSettings) -> tuple[int, int]:
    """Row and column of the middle of a box (x_min, y_min, x_max, y_max), given as shares of the picture's sides."""
    row, column = (box[1] + box[3]) / 2 * settings.image_height, (box[0] + box[2]) / 2 * settings.image_width
    return min(int(row), settings.image_height - 1), min(int(column), settings.image_width - 1)


# Cache
# -----


def _contrast(competition_dir: str | Path) -> float:
    if not is_phantom_competition(competition_dir):
        raise ObserverError(f"{competition_dir} holds no phantom: what is possible on other pictures, nobody knows.")
    contrast = read_json(Path(competition_dir) / PARAMETERS_FILE)["contrast"]
    if not contrast > 0:
        raise ObserverError(f"The lesions of {competition_dir} have no contrast: no observer can find them.")
    return contrast


def _readable(images: pd.DataFrame, cache_dir: str | Path, split: str, settings: CacheSettings) -> pd.DataFrame:
    """The manifest's rows of the images that are in the cache."""
    manifest = read_manifest(cache_dir, split, settings)
    manifest = manifest[(manifest.error == "") & manifest.image_id.isin(images.image_id)]
    if manifest.empty:
        raise ObserverError(f"{cache_dir} holds none of the {split} images with these settings: run preprocess.ipynb first.")
    return manifest
