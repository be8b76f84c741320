"""Facts about the ideal observer, held against simulation, brute force and the phantom's own pictures."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.limit.observer import (
    ObserverError,
    auc_of,
    d_prime_of,
    detectability,
    draw_noise,
    efficiency,
    log_likelihood_ratios,
    matched_filter,
    power_law_spectrum,
    share_of_possible,
    simulated_auc,
    unknown_location,
)
from benchmarks.limit.phantom import OBSERVERS, fit_observer, per_breast, place_ratios, score_images
from benchmarks.limit.statistics import mean_signals, patch_side, tissue_spectrum
from utils.core.errors import KitError
from utils.images.cache import build_cache
from utils.images.settings import CacheSettings
from utils.metrics.intervals import PatientBootstrap
from utils.phantom.competition import make_competition, read_truth
from utils.phantom.pictures import power_law_texture
from utils.tables.competition import read_images

SETTINGS = CacheSettings(image_height=64, image_width=48)


def disc(shape=(24, 20), radius=3.0, height=1.0):
    """A ball's projection in the picture's upper left corner's middle, wrapped."""
    y, x = (np.fft.fftfreq(n) * n for n in shape)
    return height * np.sqrt(np.clip(1 - (y[:, None] ** 2 + x[None, :] ** 2) / radius**2, 0, None))


def brute_force_covariance(spectrum):
    """Covariance of all pairs of pixels, from the autocorrelation; (h * w, h * w)."""
    h, w = spectrum.shape
    correlation = np.fft.ifft2(spectrum).real
    rows, columns = (index.ravel() for index in np.indices((h, w)))
    return correlation[(rows[:, None] - rows) % h, (columns[:, None] - columns) % w]


# Theory
# ------


def test_detectability_in_white_noise_is_the_signals_norm_over_its_deviation():
    signal = disc()
    spectrum = np.full(signal.shape, 0.5**2)
    assert detectability(signal, spectrum) == pytest.approx(np.linalg.norm(signal) / 0.5)


def test_the_filter_is_the_inverse_covariance_times_the_signal():
    signal, spectrum = disc((8, 6), 2.0), power_law_spectrum((8, 6), 3.0, 0.7, 0.1)
    covariance = brute_force_covariance(spectrum)
    wanted = np.linalg.solve(covariance, signal.ravel())
    np.testing.assert_allclose(matched_filter(signal, spectrum).ravel(), wanted, rtol=1e-8, atol=1e-8)
    assert detectability(signal, spectrum) == pytest.approx(np.sqrt(signal.ravel() @ wanted))


def test_drawn_noise_has_the_spectrum_that_was_asked_for():
    spectrum = power_law_spectrum((16, 12), 3.0, 0.7, 0.1)
    noise = draw_noise(spectrum, 4000, np.random.default_rng(0))
    measured = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0) / spectrum.size
    np.testing.assert_allclose(measured, spectrum, rtol=0.15)
    assert noise.var() == pytest.approx(spectrum.mean(), rel=0.05)


def test_a_power_law_spectrum_has_its_slope_and_its_deviation():
    spectrum = power_law_spectrum((64, 64), 3.0, 0.7)
    assert spectrum[0, 2] / spectrum[0, 4] == pytest.approx(2**3)
    assert spectrum.mean() == pytest.approx(0.7**2)
    np.testing.assert_allclose(power_law_spectrum((64, 64), 3.0, 0.7, 0.2), spectrum + 0.2**2)


def test_simulation_gives_the_closed_form_where_the_place_is_known():
    spectrum = power_law_spectrum((24, 20), 3.0, 1.0, 0.1)
    signal = disc()
    signal *= 1.5 / detectability(signal, spectrum)
    simulated = simulated_auc(signal, spectrum, count=2000, location_known=True)
    assert simulated.low < auc_of(1.5) < simulated.high
    assert simulated.high - simulated.low < 0.04


def test_no_other_template_separates_better():
    rng = np.random.default_rng(0)
    signal, spectrum = disc((8, 6), 2.0), power_law_spectrum((8, 6), 3.0, 1.0, 0.2)
    covariance, best = brute_force_covariance(spectrum), detectability(signal, spectrum)

    def separation(template):
        return template @ signal.ravel() / np.sqrt(template @ covariance @ template)

    template = matched_filter(signal, spectrum).ravel()
    others = [signal.ravel(), *(template + 0.1 * np.abs(template).max() * rng.standard_normal((200, template.size)))]
    assert separation(template) == pytest.approx(best)
    assert max(separation(other) for other in others) < best
    assert separation(signal.ravel()) < 0.9 * best  # without prewhitening


def test_a_place_is_found_worse_than_it_is_known_and_worse_among_more_places():
    known, unknown = [], []
    for shape in ((12, 12), (36, 36)):
        signal = disc(shape, 2.0)
        spectrum = np.full(shape, (np.linalg.norm(signal) / 2.5) ** 2)  # d' of 2.5
        known.append(simulated_auc(signal, spectrum, 600, location_known=True).value)
        unknown.append(simulated_auc(signal, spectrum, 600).value)
    assert 0.6 < unknown[1] < unknown[0] < min(known)


def test_a_signal_at_any_place_gives_its_ratio_there():
    signal, spectrum = disc(), power_law_spectrum((24, 20), 3.0, 1.0, 0.1)
    ratios = log_likelihood_ratios(np.roll(signal, (5, 7), (0, 1)), signal, spectrum)
    assert np.unravel_index(ratios.argmax(), ratios.shape) == (5, 7)
    assert ratios[5, 7] == pytest.approx(detectability(signal, spectrum) ** 2 / 2)


def test_likelihood_ratios_average_to_one_without_the_signal():
    signal = disc((12, 12), 2.0)
    spectrum = np.full(signal.shape, np.linalg.norm(signal) ** 2)  # d' of 1
    pictures = draw_noise(spectrum, 4000, np.random.default_rng(0))
    ratios = unknown_location(log_likelihood_ratios(pictures, signal, spectrum))
    assert np.exp(ratios).mean() == pytest.approx(1, abs=0.03)


def test_a_prior_of_one_place_is_a_known_place():
    ratios = np.random.default_rng(0).normal(size=(3, 6, 5))
    prior = np.zeros((6, 5))
    prior[2, 4] = 7
    np.testing.assert_allclose(unknown_location(ratios, prior), ratios[:, 2, 4])


def test_a_signal_of_another_shape_and_a_spectrum_without_noise_are_refused():
    with pytest.raises(ObserverError, match="pad the signal"):
        matched_filter(np.ones((4, 4)), np.ones((8, 8)))
    with pytest.raises(KitError, match="white noise"):
        matched_filter(np.ones((4, 4)), np.zeros((4, 4)))


def test_efficiency_is_the_share_of_squared_d_prime():
    assert d_prime_of(auc_of(1.7)) == pytest.approx(1.7)
    assert efficiency(auc_of(1.0), auc_of(2.0)) == pytest.approx(0.25)
    assert efficiency(0.9, 0.9) == pytest.approx(1)
    assert efficiency(0.4, 0.9) == 0
    assert np.isnan([efficiency(0.7, 0.5), efficiency(0.7, 1.0), share_of_possible(0.7, 0.5)]).all()
    assert share_of_possible(0.7, 0.9) == pytest.approx(0.5)


# Phantom
# -------


def welch(pictures):
    everywhere = np.full((128, 128), 50, np.float32)
    return tissue_spectrum([(picture, everywhere) for picture in pictures], 32)


def test_welchs_spectrum_is_that_of_the_noise():
    exact = power_law_spectrum((128, 128), 3.0, 0.1, 0.002)
    spectrum = welch(draw_noise(exact, 40, np.random.default_rng(0)))
    for place in ((0, 6), (6, 0), (5, 5), (0, 10), (12, 12), (16, 16)):
        assert spectrum[place] == pytest.approx(exact[::4, ::4][place], rel=0.15)
    assert np.isinf(spectrum[0, 0])


def test_welchs_spectrum_of_the_phantoms_texture_has_its_slope():
    rng = np.random.default_rng(0)
    spectrum = welch([power_law_texture(128, 128, rng) for _ in range(30)])
    assert np.log2(spectrum[0, 5] / spectrum[0, 10]) == pytest.approx(3, abs=0.3)
    assert np.log2(spectrum[6, 0] / spectrum[12, 0]) == pytest.approx(3, abs=0.3)


def make_phantom(folder, contrast, splits):
    """A phantom of 24 training patients and 40 of the test, and its cache."""
    sizes = {"n_train_patients": 24, "n_test_patients": 40, "height": 96, "positive_share": 0.5}
    competition = make_competition(folder / "phantom", **sizes, contrast=contrast, n_jobs=1)
    for split in splits:
        build_cache(read_images(competition, split), competition, split, folder / "cache", SETTINGS)
    return competition, folder / "cache"


def aucs(competition, scores):
    breasts = per_breast(scores)
    labels = read_truth(competition)[1].set_index("prediction_id").cancer.loc[breasts.index]
    return [PatientBootstrap(breasts.patient_id).auc(labels, breasts[name]) for name in OBSERVERS]


@pytest.fixture(scope="module")
def faint(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("faint"), 0.8, ("train", "test"))


@pytest.fixture(scope="module")
def observer(faint):
    return fit_observer(faint[0], read_images(faint[0], "train"), faint[1], SETTINGS)


@pytest.fixture(scope="module")
def scores(faint, observer):
    return score_images(observer, faint[0], read_images(faint[0], "test"), faint[1])


def test_lesions_of_the_test_are_found_better_where_their_place_is_known(faint, scores):
    known, unknown = aucs(faint[0], scores)
    assert known.value > unknown.value + 0.02
    assert unknown.low > 0.6
    assert known.low > 0.8


def test_hidden_lesions_are_not_found_even_where_their_place_is_known(observer, tmp_path):
    hidden, cache = make_phantom(tmp_path, 0.0, ("test",))
    for interval in aucs(hidden, score_images(observer, hidden, read_images(hidden, "test"), cache)):
        assert interval.low < 0.5 < interval.high


def test_a_breasts_score_is_the_sum_of_its_images(scores):
    breasts = per_breast(scores)
    name = scores.prediction_id.value_counts().index[0]
    rows = scores[scores.prediction_id == name]
    assert len(rows) > 1
    assert breasts.unknown_place[name] == pytest.approx(rows.unknown_place.sum())


def test_an_images_score_hangs_on_no_other_image(faint, observer, scores):
    images = read_images(faint[0], "test")
    alone = score_images(observer, faint[0], images.iloc[[5]], faint[1])
    assert alone.unknown_place.iloc[0] == scores.unknown_place[images.index[5]]


def test_places_are_weighted_inside_the_breast_alone(observer):
    inside = np.zeros((64, 48), np.float32)
    inside[20:40, 10:30] = observer.margin + 1
    _, prior = place_ratios(observer, np.zeros((64, 48), np.float32), inside)
    assert prior.sum() == pytest.approx(1)
    assert (prior[20:40, 10:30] > 0).all()
    assert prior[inside == 0].sum() == 0


def test_a_flat_breast_speaks_against_a_lesion(observer):
    ratios, prior = place_ratios(observer, np.zeros((64, 48), np.float32), np.full((64, 48), 99, np.float32))
    assert ratios[prior > 0].max() < 0.5


def test_filters_vary_on_tissue_as_its_spectrum_says(observer):
    rises = (observer.templates * observer.signals).sum(axis=(1, 2))  # d'^2 is the filter's variance too
    masses = observer.variances / rises
    assert ((masses > 0.5) & (masses < 2.5)).all()


def test_mean_signals_are_centred_and_as_bright_as_the_phantoms_lesions():
    columns = {"source_height": 128, "crop_top": 0, "crop_left": 0, "crop_bottom": 128, "crop_right": 96}
    signals, shares = mean_signals(pd.DataFrame([columns]), SETTINGS, np.random.default_rng(0))
    assert shares.sum() == pytest.approx(1)
    middle = patch_side(SETTINGS) // 2
    brightest = signals[-1]  # of masses with calcifications, the largest
    assert 0.15 < brightest[middle, middle] < 0.5
    rows, columns = np.indices(brightest.shape)
    for places in (rows, columns):
        assert (places * brightest).sum() / brightest.sum() == pytest.approx(middle, abs=0.3)


def test_hidden_lesions_and_other_competitions_are_refused(tmp_path):
    hidden = make_competition(tmp_path / "hidden", 2, 1, height=64, contrast=0, n_jobs=1)
    with pytest.raises(ObserverError, match="no contrast"):
        fit_observer(hidden, read_images(hidden, "train"), tmp_path, SETTINGS)
    with pytest.raises(ObserverError, match="no phantom"):
        fit_observer(tmp_path, read_images(hidden, "train"), tmp_path, SETTINGS)


def test_a_cache_without_the_images_is_refused(competition, images, tmp_path):
    with pytest.raises(ObserverError, match="preprocess.ipynb"):
        fit_observer(competition, images, tmp_path, SETTINGS)
