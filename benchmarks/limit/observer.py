"""What is possible: the prewhitened matched filter, ideal for a known signal in Gaussian noise of a known power spectrum.

No observer finds the signal more often than this one does, so its AUC is the top of the scale on which a model's is read.
Where the noise is not Gaussian, it is the best of the linear observers alone (Hotelling's). `benchmarks.limit.phantom` applies
it to the phantom's pictures.

A spectrum here is an array of shape (h, w) in the layout of ``numpy.fft.fft2``: the expected |DFT|^2 of the noise over h * w,
so that white noise of deviation s has s^2 everywhere. Noise and pictures wrap around at the borders: so the results are exact.

References
----------
Barrett and Myers, Foundations of Image Science (Wiley 2004), chapter 13; Burgess, Jacobson and Judy, Human observer detection
experiments with mammograms and power-law noise, Med. Phys. 28 (2001) 419.
"""

import numpy as np
from scipy.special import logsumexp, ndtr, ndtri

from utils.core.errors import KitError
from utils.metrics.intervals import Interval, PatientBootstrap


class ObserverError(KitError):
    """A signal, a spectrum or pictures that no observer can be made of; the message says what to change."""


def power_law_spectrum(shape: tuple[int, int], beta: float, deviation: float, white: float = 0.0) -> np.ndarray:
    """Power spectrum of a texture that falls as 1/f^beta, and of white noise on it.

    Parameters
    ----------
    shape : (int, int)
        Height and width in pixels.
    beta : float
        Slope of the spectrum; about 3 in mammograms.
    deviation, white : float
        Standard deviations of the texture and of the white noise, in grey.

    Returns
    -------
    ndarray of shape (h, w), float64
        Frequency 0, where the law has no value, counts as the lowest other: a picture's mean is known no better.
    """
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :])
    frequency[0, 0] = frequency.ravel()[1:].min()
    texture = frequency**-beta
    return deviation**2 * texture / texture.mean() + white**2


def draw_noise(spectrum: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw Gaussian noise of a spectrum.

    Returns
    -------
    ndarray of shape (count, h, w), float64
        Mean 0.
    """
    white = np.fft.fft2(rng.standard_normal((count, *spectrum.shape)))
    return np.fft.ifft2(white * np.sqrt(spectrum)).real


# Known location
# --------------


def matched_filter(signal: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
    """Template whose dot product with a picture separates signal from noise best: the inverse covariance times the signal.

    Parameters
    ----------
    signal : ndarray of shape (h, w)
        In grey, at its place.
    spectrum : ndarray of shape (h, w)
        Above 0; infinite where nothing shall be used.

    Returns
    -------
    ndarray of shape (h, w), float64

    Raises
    ------
    ObserverError
        If the shapes differ, or the spectrum has a frequency without noise.
    """
    if signal.shape != spectrum.shape:
        raise ObserverError(
            f"The signal is {signal.shape}, the spectrum {spectrum.shape}: pad the signal to the spectrum's shape."
        )
    if not (spectrum > 0).all():
        raise ObserverError("The spectrum must be above 0 at every frequency: add some white noise.")
    return np.fft.ifft2(np.fft.fft2(signal) / spectrum).real


def detectability(signal: np.ndarray, spectrum: np.ndarray) -> float:
    """Detectability d' for the ideal observer that knows the signal's place: the root of the mean of |S(f)|^2 / P(f).

    In white noise of deviation s it is the signal's norm over s. The parameters are those of `matched_filter`.
    """
    return float(np.sqrt((signal * matched_filter(signal, spectrum)).sum()))


def auc_of(d_prime: float) -> float:
    """AUC of an observer whose scores are Gaussian, ``d_prime`` deviations apart: Phi(d' / sqrt 2)."""
    return float(ndtr(d_prime / np.sqrt(2)))


def d_prime_of(auc: float) -> float:
    """Undo `auc_of`; infinite for an AUC of 1."""
    return float(np.sqrt(2) * ndtri(auc))


# Unknown location
# ----------------


def log_likelihood_ratios(pictures: np.ndarray, signal: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
    """Log of how much likelier each picture is with the signal, shifted to each place, than without.

    Parameters
    ----------
    pictures : ndarray of shape (..., h, w)
    signal, spectrum : ndarray of shape (h, w)
        See `matched_filter`.

    Returns
    -------
    ndarray of shape (..., h, w), float64
        Entry (i, j) belongs to the signal rolled by i rows and j columns: the filtered picture minus d'^2 / 2.
    """
    template = matched_filter(signal, spectrum)
    filtered = np.fft.ifft2(np.fft.fft2(pictures) * np.fft.fft2(template).conj()).real
    return filtered - (signal * template).sum() / 2


def unknown_location(ratios: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
    """Log likelihood ratio of the signal at any place: the places' ratios averaged, not their logs.

    Parameters
    ----------
    ratios : ndarray of shape (..., h, w)
        From `log_likelihood_ratios`.
    prior : ndarray of shape (h, w), optional
        Probability of each place, or any multiple of it; all alike by default.

    Returns
    -------
    ndarray of shape (...)
    """
    prior = np.ones(ratios.shape[-2:]) if prior is None else prior
    return logsumexp(ratios, axis=(-2, -1), b=prior / prior.sum())


def simulated_auc(
    signal: np.ndarray, spectrum: np.ndarray, count: int = 1000, location_known: bool = False, seed: int = 0
) -> Interval:
    """AUC of the ideal observer on ``count`` simulated pictures with the signal, at any place, and as many without.

    Parameters
    ----------
    signal, spectrum : ndarray of shape (h, w)
        See `matched_filter`.
    count : int
    location_known : bool
        Then the AUC should be that of `detectability`; else there is no closed form, and this is the way to it.
    seed : int

    Returns
    -------
    Interval
        Its width is that of the simulation.
    """
    rng = np.random.default_rng(seed)
    # All places are alike to noise that wraps around, so the signal may as well stay at one of them.
    present = log_likelihood_ratios(draw_noise(spectrum, count, rng) + signal, signal, spectrum)  # (count, h, w)
    absent = log_likelihood_ratios(draw_noise(spectrum, count, rng), signal, spectrum)
    ratios = np.concatenate([present, absent])
    scores = ratios[:, 0, 0] if location_known else unknown_location(ratios)
    return PatientBootstrap(np.arange(2 * count), seed=seed).auc(np.repeat([1, 0], count), scores)


# Shares of what is possible
# --------------------------


def efficiency(auc: float, ideal_auc: float) -> float:
    """Share of the ideal observer's squared d' that a model reaches, each d' being that of its AUC.

    The field's scale: where the place is known, a model of efficiency 0.5 does as well as the ideal observer would with half
    of the signal's energy. It is 0 for a model that guesses or does worse, and NaN where the ideal observer guesses or never
    errs.

    References
    ----------
    Tanner and Birdsall, Definitions of d' and eta as psychophysical measures, J. Acoust. Soc. Am. 30 (1958) 922.
    """
    ideal = d_prime_of(ideal_auc)
    if not 0 < ideal < np.inf:
        return float("nan")
    return (max(d_prime_of(auc), 0.0) / ideal) ** 2


def share_of_possible(auc: float, ideal_auc: float) -> float:
    """Share of the way from guessing, an AUC of 0.5, to the ideal observer's AUC."""
    return (auc - 0.5) / (ideal_auc - 0.5) if ideal_auc > 0.5 else float("nan")
