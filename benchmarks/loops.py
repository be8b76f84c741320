"""The bare model, the kit's loop and a plain loop on the same pictures, measured in interleaved rounds.

`benchmarks.training` says what each is.
"""

# Before torch and albumentations, since it says what they read when they are loaded.
import utils  # noqa: F401

# isort: split
import io
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from benchmarks.rates import convolution_rate, count_flops, matrix_rate
from benchmarks.timing import seconds
from benchmarks.timm_loop import TimmLoop
from utils.core.devices import cpu_count
from utils.images.cache import PNG_OPTIONS
from utils.images.cached import picture_path
from utils.images.settings import CacheSettings
from utils.networks.models import build_model
from utils.phantom.pictures import Drawing, draw_breast, draw_image
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.execution import Execution
from utils.tables.vocabulary import METADATA, Vocabulary
from utils.training.augment import Augment
from utils.training.dataset import make_dataset
from utils.training.fitting import REFRESH, Fitting
from utils.training.fold_data import FoldData
from utils.training.optimisation import autocast, make_optimizer, pick_precision
from utils.training.ranks import Ranks

LEAST_ROUNDS = 6  # of fewer, a median has no 95 % interval
VIEWS = ("CC", "MLO")
CELL_S = 30.0  # for a network and size; the dear ones take longer, since they do the least number of rounds
LEAST_STEPS, MOST_STEPS = 3, 1000
EPOCH_S = {"cpu": 1.5, "cuda": 8.0}  # so long is a measured epoch, if that makes a number of steps in between
PLAIN_SHARE = 0.5  # of the loop's steps
DISTINCT = 32  # picture files; an epoch goes through them again and again


class BareModel:
    """A network and one batch on the device, and nothing else."""

    def __init__(self, config: TrainConfig, vocabulary: Vocabulary, device: torch.device):
        self.config, self.device = config, device
        self.model = build_model(config.model, vocabulary).to(device, memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=pick_precision(config, device) == torch.float16)
        views = _views(config.model.architecture)
        shape = (views * config.batch_size, 1, config.model.image_height, config.model.image_width)
        self.images = torch.randint(256, shape, dtype=torch.uint8, device=device)
        self.metadata = torch.zeros(len(self.images), len(METADATA), device=device)
        self.lengths = torch.full((config.batch_size,), views)
        self.labels = (torch.arange(config.batch_size, device=device) % 2).float()

    def step(self) -> None:
        """Forward, backward and optimizer step."""
        self.gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> None:
        """Forward and backward."""
        with autocast(self.config, self.device):
            logits = self.model(self.images, self.metadata, self.lengths).logit
        loss = binary_cross_entropy_with_logits(logits.float(), self.labels)
        self.scaler.scale(loss).backward()


class Loop:
    """The kit's loop over phantom pictures, ``steps`` an epoch."""

    def __init__(self, config: TrainConfig, table: pd.DataFrame, folder: Path, device: torch.device):
        execution = Execution(num_workers=cpu_count() if device.type == "cuda" else 0)
        self.fitting = make_fitting(config, table, folder, folder, device, execution)
        self.epoch = 0
        self.data_wait = 0.0

    def warm_up(self) -> None:
        """Do one step, so that threads, processes and buffers are there."""
        fitting = self.fitting
        fitting.learner.network.train()
        fitting.learner.step(next(iter(fitting.loader)), 0)

    def train_epoch(self) -> None:
        """Train one epoch, without validation; ``data_wait`` is then its share of time that passed waiting for data."""
        fitting = self.fitting
        bar = tqdm(total=len(fitting.loader) * fitting.config.batch_size, file=io.StringIO(), mininterval=REFRESH)
        self.data_wait = fitting.train_epoch(self.epoch, bar)["data_wait"]
        self.epoch += 1


def make_fitting(
    config: TrainConfig, table: pd.DataFrame, cache_dir: Path, fold_dir: Path, device: torch.device, execution: Execution
) -> Fitting:
    """Make a training on all images of a table, which are also its held-out ones; nothing is written unless it is run."""
    vocabulary = Vocabulary.from_images(table)
    training_set, held_out_set = (make_dataset(config, table, cache_dir, "train", vocabulary) for _ in range(2))
    training_set.augment = Augment(config.augment_strength)
    return Fitting(config, FoldData(0, training_set, held_out_set, vocabulary), fold_dir, Ranks(device), execution)


def measure(architecture: str, size: tuple[int, int], batch: int, folder: Path, rounds: int, device: torch.device) -> dict:
    """Measure one network at one size, in interleaved rounds.

    Parameters
    ----------
    architecture : str
    size : tuple of int
        Height and width in pixels.
    batch : int
        Pictures.
    folder : Path
        Where `write_pictures` wrote.
    rounds : int
        At most.
    device : torch.device

    Returns
    -------
    dict
        ``architecture``, ``size``, ``batch``, ``precision``, ``steps`` of a loop's epoch, ``flops`` of a step, and one number a
        round of ``bare_s``, ``loop_s`` and ``plain_s`` (seconds a step; the last is empty where there is no plain loop),
        ``data_wait``, and ``matrix`` and ``convolution`` (operations a second that the device can do). ``at_once`` is how many
        pictures the loop computes at once: fewer than ``batch`` if memory ran out.
    """
    config = make_config(architecture, size, batch)
    bare = BareModel(config, Vocabulary.from_images(make_table(batch)), device)
    steps = _count_steps(bare, device)
    images = make_table(steps * batch)
    loop = Loop(config, images, folder, device)
    loop.warm_up()
    plain_steps = max(2, round(PLAIN_SHARE * steps))
    plain = _plain_loop(architecture, images[: plain_steps * batch], folder, batch, device)
    row = {"architecture": architecture, "size": list(size), "batch": batch, "steps": steps}
    row |= {"precision": str(pick_precision(config, device)).removeprefix("torch.")}
    row |= {"flops": count_flops(bare.model, bare.images, bare.metadata, bare.lengths)}
    row |= {"bare_s": [], "loop_s": [], "plain_s": [], "data_wait": [], "matrix": [], "convolution": []}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and (time.perf_counter() - start) * (number + 1) / number > CELL_S:
            break
        _measure_round(row, bare, loop, plain, device)
    row["at_once"] = loop.fitting.learner.micro_batch_size * _views(architecture)
    return row


def _measure_round(row: dict, bare: BareModel, loop: Loop, plain: TimmLoop | None, device: torch.device) -> None:
    around = max(1, row["steps"] // 4)
    before = seconds(bare.step, device, around)
    row["loop_s"].append(seconds(loop.train_epoch, device) / row["steps"])
    row["bare_s"].append((before + seconds(bare.step, device, around)) / 2)
    row["data_wait"].append(loop.data_wait)
    dtype = pick_precision(bare.config, device)
    row["matrix"].append(matrix_rate(device, dtype))
    row["convolution"].append(convolution_rate(device, dtype))
    if plain:
        row["plain_s"].append(seconds(plain.train_epoch, device) / len(plain.loader))


def _count_steps(bare: BareModel, device: torch.device) -> int:
    """Warm up, and choose how many steps an epoch is to have."""
    bare.step()
    step = seconds(bare.step, device)
    return int(np.clip(round(EPOCH_S[device.type] / step), LEAST_STEPS, MOST_STEPS))


def _plain_loop(architecture: str, images: pd.DataFrame, folder: Path, batch: int, device: torch.device) -> TimmLoop | None:
    if architecture == "rnn":
        return None
    paths = [picture_path(folder, "train", image_id) for image_id in images.image_id]
    loop = TimmLoop(architecture, paths, images.cancer.tolist(), batch, device)
    loop.model.train()
    pictures, labels = next(iter(loop.loader))  # this starts the loader's processes, which then live on
    loop.step(pictures, labels)
    return loop


def make_config(architecture: str, size: tuple[int, int], batch: int) -> TrainConfig:
    """Make a configuration of defaults; the schedule is so long that no round sees the learning rate change much."""
    model = ModelConfig(architecture, *size)
    return TrainConfig(model, CacheSettings(*size), epochs=1000, batch_size=batch // _views(architecture))


def _views(architecture: str) -> int:
    return len(VIEWS) if architecture == "rnn" else 1


def write_pictures(folder: Path, size: tuple[int, int]) -> None:
    """Write phantom pictures into a cache's folder, which leaves them in the page cache.

    The air is black, so that a file is as large as those of real pictures: 40 kB at 512 x 512.
    """
    rng = np.random.default_rng(0)
    for number in range(DISTINCT):
        picture, _, mask = draw_image(Drawing(VIEWS[number % 2], "L", draw_breast(rng, "B", False)), size, rng)
        path = picture_path(folder, "train", str(number))
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.round(np.clip(picture * mask, 0, 1) * 255).astype(np.uint8), PNG_OPTIONS)


def make_table(count: int) -> pd.DataFrame:
    """Make a train table of ``count`` images, two views a breast and every other breast positive, of `DISTINCT` pictures."""
    number = np.arange(count)
    breast = number // len(VIEWS)
    return pd.DataFrame(
        {
            "image_id": (number % DISTINCT).astype(str),
            "patient_id": breast.astype(str),
            "prediction_id": [f"{patient}_L" for patient in breast],
            "laterality": "L",
            "view": np.array(VIEWS)[number % len(VIEWS)],
            "age": 60.0 + number % 7,
            "implant": 0,
            "machine_id": "49",
            "site_id": "1",
            "cancer": breast % 2,
        }
    )


def overheads(row: dict) -> list[float]:
    """Loop over bare model, one number a round."""
    return [loop / bare for loop, bare in zip(row["loop_s"], row["bare_s"], strict=True)]


def speeds(row: dict, path: str) -> list[float]:
    """Images a second, one number a round; ``path`` is ``loop_s``, ``bare_s`` or ``plain_s``."""
    return [row["batch"] / step for step in row[path]]


def shares(row: dict, path: str, rate: str) -> list[float]:
    """The share of a ``rate`` (``matrix`` or ``convolution``) at which a ``path`` computes, one number a round."""
    return [row["flops"] / step / best for step, best in zip(row[path], row[rate], strict=True)]
