"""Draw phantom mammograms: breasts of power-law texture, and the lesions in them.

An image is float32 of shape (height, width), 0 for air and about 1 for the brightest tissue, as it should look after
decoding, windowing and the MONOCHROME1 inversion. It is drawn with the chest wall on the left and flipped last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

# Mammograms' power spectrum falls as 1/f^beta with beta near 3: Burgess, Jacobson and Judy, Med. Phys. 28 (2001) 419.
PARENCHYMA_BETA = 3.0
MASS_AMPLITUDE = 0.20
CALCIFICATION_AMPLITUDE = 0.40
NOISE = 0.012
AIR, AIR_NOISE = 0.01, 0.004
# Shift of the gland's share of tissue per density letter: A is almost all fat, D almost all gland.
GLAND_BIAS = {"A": -3.2, "B": -1.9, "C": -0.7, "D": 0.7}
# Views from the side show the pectoral muscle; CC does not.
OBLIQUE_VIEWS = ("MLO", "LMO", "ML", "LM", "AT")


@dataclass(frozen=True)
class Lesion:
    """One finding of a breast.

    ``rho`` and ``theta`` are its polar position around the chest wall; ``radius`` is a share of the image's height.
    """

    label: str
    rho: float
    theta: float
    radius: float
    strength: float
    spicules: int = 0


@dataclass(frozen=True)
class Breast:
    """What a breast's views have in common; lengths are shares of the image's height."""

    density: str
    half_height: float
    depth: float
    center: float
    wobble: float
    implant: bool = False
    lesions: tuple[Lesion, ...] = ()

    def center_in(self, view: str) -> float:
        """Return the height of the nipple; seen from the side the breast hangs a little."""
        return self.center + (0.06 if view in OBLIQUE_VIEWS else 0)


@dataclass(frozen=True)
class Drawing:
    """What one image shows.

    Parameters
    ----------
    view : str
        CC, MLO, ...
    laterality : str
        L or R. As on a viewing screen, the left breast's chest wall is on the image's left.
    mirrored : bool
        The breast faces the side opposite to ``laterality``.
    marker, framed : bool
        A text such as "L CC" is burned in; there is a thin bright frame.
    """

    view: str
    laterality: str
    breast: Breast
    mirrored: bool = False
    marker: bool = False
    framed: bool = False


# Breast and lesions
# ------------------


def draw_breast(rng: np.random.Generator, density: str, implant: bool, lesions: tuple[Lesion, ...] = ()) -> Breast:
    """Draw one breast's size and outline; ``density`` is a letter A to D."""
    half_height, depth = rng.uniform(0.30, 0.42), rng.uniform(0.38, 0.55)
    return Breast(density, half_height, depth, rng.uniform(0.47, 0.53), rng.uniform(0, 1), implant, lesions)


def draw_lesions(rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Draw a positive breast's findings: a mass (60 %), calcifications (20 %), or a mass with calcifications (20 %)."""
    rho, theta = rng.uniform(0.35, 0.8), rng.uniform(-1.0, 1.0)
    spicules = int(rng.integers(9, 16)) if rng.random() < 0.5 else 0
    mass = Lesion("mass", rho, theta, rng.uniform(0.045, 0.08), rng.uniform(0.8, 1.25), spicules)
    cluster = Lesion("calcification", rho, theta, rng.uniform(0.03, 0.05), rng.uniform(0.8, 1.25))
    return ((mass,), (cluster,), (mass, cluster))[rng.choice(3, p=(0.6, 0.2, 0.2))]


def mass_profile(radius: float, spicules: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a mass of unit height, float32 (side, side), side odd: the projection of a ball with an uneven rim.

    ``radius`` is in pixels; ``spicules`` is the number of thin rays around it.
    """
    reach = int(np.ceil(1.7 * radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    distance, angle = np.hypot(x, y) / radius, np.arctan2(y, x)
    rim = 1 + sum(0.10 / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    ball = np.sqrt(np.clip(1 - (distance / rim) ** 2, 0, None))
    rays = np.zeros_like(ball)
    for direction in rng.uniform(-np.pi, np.pi, spicules):
        along = distance * np.cos(angle - direction)
        across = distance * np.sin(angle - direction)
        rays = np.maximum(rays, np.exp(-((across / 0.06) ** 2)) * np.clip(1.65 - along, 0, 0.9) * (along > 0))
    profile = np.maximum(ball, 0.8 * rays).astype(np.float32)
    return cv2.GaussianBlur(profile, (0, 0), max(0.6, 0.03 * radius))


def calcification_profile(radius: float, height: int, rng: np.random.Generator) -> np.ndarray:
    """Draw 5 to 15 tiny dots of height 0.6 to 1 within ``radius`` pixels, for an image of ``height`` rows."""
    reach = int(np.ceil(radius + 0.02 * height))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    profile = np.zeros_like(x)
    for _ in range(rng.integers(5, 16)):
        angle, distance = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform())
        sigma = max(0.6, height * rng.uniform(0.0025, 0.005))
        squared = (x - distance * np.cos(angle)) ** 2 + (y - distance * np.sin(angle)) ** 2
        profile = np.maximum(profile, rng.uniform(0.6, 1) * np.exp(-squared / (2 * sigma**2)))
    return profile


def _lesion_center(lesion: Lesion, breast: Breast, view: str, inside: np.ndarray, reach: int) -> tuple[int, int]:
    """Return the lesion's row and column, pulled towards the breast's middle until its square is inside the breast.

    ``inside`` is as from `_inside_distance`.
    """
    height = len(inside)
    middle = np.array([breast.center_in(view), 0.42 * breast.depth]) * height
    turned = np.array([breast.half_height * np.sin(lesion.theta), breast.depth * np.cos(lesion.theta)])
    place = np.array([breast.center_in(view), 0.0]) * height + lesion.rho * turned * height
    for pull in np.linspace(0, 1, 21):
        row, column = np.rint(place + pull * (middle - place)).astype(int)
        if inside[row, column] > 1.4143 * (reach + 1):
            break
    return int(row), int(column)


def add_lesions(
    picture: np.ndarray, breast: Breast, view: str, inside: np.ndarray, contrast: float, rng: np.random.Generator
) -> list[dict]:
    """Add the breast's findings to ``picture`` in place, with brightness scaled by ``contrast``; return their boxes.

    ``inside`` is as from `_inside_distance`. A box has ``x_min``, ``y_min``, ``x_max``, ``y_max`` (pixels, half-open)
    and ``label``.
    """
    boxes = []
    for lesion in breast.lesions:
        profile, amplitude = _profile_and_amplitude(lesion, len(picture), rng)
        reach = len(profile) // 2
        row, column = _lesion_center(lesion, breast, view, inside, reach)
        window = np.s_[row - reach : row + reach + 1, column - reach : column + reach + 1]
        picture[window] += np.float32(contrast * amplitude) * profile * (inside[window] > 0)
        # the half-open box around what is brighter than a tenth of the peak
        x, y, across, down = cv2.boundingRect((profile > 0.1 * profile.max()).astype(np.uint8))
        left, top = column - reach + x, row - reach + y
        boxes.append({"x_min": left, "y_min": top, "x_max": left + across, "y_max": top + down, "label": lesion.label})
    return boxes


def _profile_and_amplitude(lesion: Lesion, height: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    radius = lesion.radius * height
    if lesion.label == "mass":
        return mass_profile(radius, lesion.spicules, rng), MASS_AMPLITUDE * lesion.strength
    return calcification_profile(radius, height, rng), CALCIFICATION_AMPLITUDE * lesion.strength


# Tissue and frame
# ----------------


@lru_cache(maxsize=16)
def _amplitudes(height: int, width: int) -> np.ndarray:
    """Return f^(-`PARENCHYMA_BETA` / 2) on the half plane of ``rfft2``, 0 for the mean."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    return (frequency ** (-PARENCHYMA_BETA / 2)).astype(np.float32)


def power_law_texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a Gaussian field, float32 (height, width), whose power spectrum falls as 1/f^`PARENCHYMA_BETA`.

    Its mean is 0 and its standard deviation 1; it wraps around at the borders.
    """
    parts = rng.standard_normal((2, height, width // 2 + 1), dtype=np.float32)
    field = np.fft.irfft2((parts[0] + 1j * parts[1]) * _amplitudes(height, width), s=(height, width))
    return (field / field.std()).astype(np.float32)


def breast_mask(breast: Breast, view: str, height: int, width: int) -> np.ndarray:
    """Return the breast's area, chest wall on the left, as uint8 (height, width) of 0 and 1.

    From the side it hangs a little and extends up to the armpit; from above it is half an ellipse.
    """
    y = (np.arange(height) + 0.5) / height
    center = breast.center_in(view)
    offset = (y - center) / breast.half_height
    if view in OBLIQUE_VIEWS:
        offset = np.where(offset < 0, 0.5 * offset, offset)
    edge = breast.depth * np.sqrt(np.clip(1 - offset**2, 0, None))
    edge *= 1 + 0.04 * np.sin(2 * np.pi * (1.5 * y + breast.wobble))
    edge += 0.016 * np.exp(-(((y - center) / 0.016) ** 4))  # the nipple
    columns = (np.arange(width) + 0.5) / height
    return (columns[None, :] < np.minimum(edge, 0.88 * width / height)[:, None]).astype(np.uint8)


def _inside_distance(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's distance in pixels to the nearest one outside the breast or the picture."""
    return cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]


def draw_tissue(breast: Breast, view: str, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw fat, gland, skin and, in oblique views, muscle, as float32 (height, width), 0 in the air."""
    height, width = mask.shape
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5) / np.float32(height)
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / height
    gland = _gland_share(breast, x, y - breast.center_in(view), power_law_texture(height, width, rng))
    fine = power_law_texture(height, width, rng)
    tissue = 0.30 + 0.38 * gland + (0.02 + 0.035 * gland) * fine
    if view in OBLIQUE_VIEWS:
        muscle = _muscle_share(x, y, rng)
        tissue += muscle * (0.68 + 0.02 * fine - tissue)
    if breast.implant:
        tissue = np.maximum(tissue, 0.85 * _implant_share(breast, x, y - breast.center_in(view)))
    # The compressed breast thins out towards the skin, which shows as a faint line of its own.
    tissue = tissue * (1 - np.exp(-depth / 0.03)) + 0.10 * np.exp(-(((depth - 0.006) / 0.004) ** 2))
    return np.where(mask, np.maximum(tissue, 0.04), 0).astype(np.float32)


def _gland_share(breast: Breast, x: np.ndarray, y: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Return the share of gland, 0 to 1: clumps of ``field``, denser in the middle and with the density letter.

    ``y`` is measured from the nipple's height.
    """
    squared = ((x - 0.42 * breast.depth) / (0.55 * breast.depth)) ** 2
    squared = squared + (y / (0.75 * breast.half_height)) ** 2
    central = np.exp(-squared)
    return _logistic(1.6 * field + 3.2 * central - 1.0 + GLAND_BIAS[breast.density])


def _implant_share(breast: Breast, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return 1 in a smooth oval in front of the chest wall, 0 elsewhere."""
    squared = ((x - 0.2 * breast.depth) / (0.5 * breast.depth)) ** 2
    squared = squared + (y / (0.62 * breast.half_height)) ** 2
    return _logistic(30 * (1 - squared))


def _muscle_share(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return 1 in the pectoral triangle at the upper chest wall, 0 elsewhere, with a soft edge."""
    top, bottom = rng.uniform(0.18, 0.30), rng.uniform(0.45, 0.75)
    return _logistic((top * (1 - y / bottom) - x) / 0.008)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def burn_marker(picture: np.ndarray, text: str, mask: np.ndarray) -> None:
    """Write ``text`` in place, bright, in the upper or lower corner away from the chest wall.

    Write nothing if both corners touch the breast.
    """
    height, width = picture.shape
    scale = max(0.3, height / 512 * 0.45)  # smaller letters would not reach full brightness
    (wide, high), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    margin = height // 40
    left = margin if mask[:, -1].sum() > mask[:, 0].sum() else width - margin - wide
    for top in (margin, height - margin - high - base):
        corner = np.s_[top : top + high + base, left : left + wide]
        if not mask[corner].any():
            ink = np.zeros(picture.shape, np.uint8)  # OpenCV 5 writes on 8 bits only
            cv2.putText(ink, text, (left, top + high), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
            np.maximum(picture, np.minimum(ink * np.float32(2 / 255), 1.1), out=picture)
            return


def draw_image(
    drawing: Drawing, shape: tuple[int, int], rng: np.random.Generator, contrast: float = 1.0
) -> tuple[np.ndarray, list[dict], np.ndarray]:
    """Draw one view of a breast.

    The lesions have a generator of their own, so images of two contrasts differ only in the lesions.

    Parameters
    ----------
    shape : tuple of int
        Height and width in pixels.
    contrast : float
        Scales the lesions' brightness.

    Returns
    -------
    picture : ndarray of shape (height, width), float32
        0 for air, about 1 for the brightest tissue.
    boxes : list of dict
        ``x_min``, ``y_min``, ``x_max``, ``y_max`` (pixels, half-open) and ``label`` of each lesion.
    mask : ndarray of shape (height, width), uint8
        1 in the breast.
    """
    lesion_rng = rng.spawn(1)[0]
    breast, view = drawing.breast, drawing.view
    mask = breast_mask(breast, view, *shape)
    picture = draw_tissue(breast, view, mask, rng)
    boxes = add_lesions(picture, breast, view, _inside_distance(mask), contrast, lesion_rng)
    noise = np.where(mask, np.float32(NOISE), np.float32(AIR_NOISE))
    picture += np.float32(AIR) + noise * rng.standard_normal(shape, dtype=np.float32)
    if (drawing.laterality == "R") != drawing.mirrored:
        picture, mask = np.ascontiguousarray(picture[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
        boxes = [box | {"x_min": shape[1] - box["x_max"], "x_max": shape[1] - box["x_min"]} for box in boxes]
    if drawing.marker:
        burn_marker(picture, f"{drawing.laterality} {view}", mask)
    if drawing.framed:
        cv2.rectangle(picture, (0, 0), (shape[1] - 1, shape[0] - 1), 0.9, max(1, shape[0] // 256))
    return picture, boxes, mask
