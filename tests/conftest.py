"""One tiny phantom competition, its cache, and one thread per process."""

import contextlib

import cv2
import pytest

from tests.helpers import TINY
from utils.images.cache import build_cache
from utils.phantom.competition import make_competition
from utils.tables import read_images


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two torch threads stall each other where another process competes for the cores."""
    cv2.setNumThreads(1)
    with contextlib.suppress(ImportError):  # the oldest versions are tested without torch
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def competition(tmp_path_factory):
    """A phantom of 16 training and 4 test patients; tests must not change it."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    return make_competition(folder, n_train_patients=16, n_test_patients=4, height=96, positive_share=0.5, n_jobs=1)


@pytest.fixture(scope="session")
def images(competition):
    return read_images(competition, "train")


@pytest.fixture(scope="session")
def test_images(competition):
    return read_images(competition, "test")


@pytest.fixture(scope="session")
def cache_dir(competition, images, tmp_path_factory):
    """A cache of the phantom's training images at 64 x 48."""
    folder = tmp_path_factory.mktemp("cache") / "tiny"
    build_cache(images, competition, "train", folder, TINY)
    return folder


@pytest.fixture
def settings():
    return TINY
