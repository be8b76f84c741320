"""A small phantom competition for the checks, and trainings on it."""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import pandas as pd
import torch

from benchmarks.loops import make_fitting
from utils.core.devices import cpu_count, pick_device
from utils.images.cache import build_cache
from utils.images.settings import CacheSettings
from utils.images.training_data import TrainingData
from utils.phantom.competition import make_competition
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.execution import Execution
from utils.tables import read_images
from utils.training.fitting import Fitting

TOY_ENCODERS = ("cnn", "resnet18")


@dataclass(frozen=True)
class Size:
    """How much the checks compute: pixels of an image's side, patients of the phantom, and items of a batch."""

    side: int
    train_patients: int
    test_patients: int
    batch: int


GPU_SIZE, TOY_SIZE = Size(256, 24, 12, 16), Size(64, 6, 4, 4)


@dataclass(frozen=True)
class Small:
    """The device, and a phantom with its cache in ``folder``."""

    device: torch.device
    folder: Path

    @property
    def is_toy(self) -> bool:
        """True if there is no GPU."""
        return self.device.type == "cpu"

    @property
    def size(self) -> Size:
        return TOY_SIZE if self.is_toy else GPU_SIZE

    @property
    def settings(self) -> CacheSettings:
        return CacheSettings(self.size.side, self.size.side)

    @property
    def competition(self) -> Path:
        return self.folder / "competition"

    @cached_property
    def images(self) -> pd.DataFrame:
        return read_images(self.competition, "train")

    @property
    def data(self) -> TrainingData:
        return TrainingData(self.images, self.folder / "cache", is_phantom=True)

    def config(self, architecture: str, dropout: float = 0.2, **changes) -> TrainConfig:
        """Return a training of one epoch, without a running average of its weights."""
        encoders = TOY_ENCODERS if self.is_toy else ModelConfig("rnn", 1, 1).encoders
        model = ModelConfig(architecture, self.size.side, self.size.side, dropout=dropout, encoders=encoders)
        config = TrainConfig(model, self.settings, n_folds=2, epochs=1, batch_size=self.size.batch, ema_decay=0.0)
        return replace(config, **changes)

    def fitting(self, config: TrainConfig) -> Fitting:
        """Make a training on all images, which are also its held-out ones; nothing is written unless it is run."""
        return make_fitting(config, self.images, self.data.cache_dir, self.folder, self.device, Execution())


@cache
def open_small(work: Path) -> Small:
    """Make the phantom in ``work``, or find it there from another process."""
    torch.set_num_threads(1 if cpu_count() < 4 else torch.get_num_threads())
    small = Small(pick_device(), work)
    make_competition(
        small.competition,
        n_train_patients=small.size.train_patients,
        n_test_patients=small.size.test_patients,
        height=2 * small.size.side,
        positive_share=0.5,
    )
    build_cache(small.images, small.competition, "train", small.data.cache_dir, small.settings, quiet=True)
    return small
