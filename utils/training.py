"""Train one configuration over k folds: one loop for all architectures, resumable after every epoch.

A run folder holds ``config.json``, ``folds.csv``, ``oof.csv`` and ``history.csv``, and for each fold ``fold{k}/`` with
``weights.safetensors`` (the kept epoch's averaged weights), ``history.csv``, ``oof.csv`` and, until the fold is done,
``checkpoint.pt``.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from tqdm import tqdm

from utils.augment import Augment
from utils.cache import CacheSettings
from utils.dataset import BreastDataset, ImageDataset, ShareSampler, Vocabulary, make_loader
from utils.environment import KitError, pick_device, read_json, seed_everything, versions, write_atomic, write_json
from utils.metrics import area_under_roc, sigmoid
from utils.models import ModelConfig, build_model
from utils.tables import assign_folds

OOF_COLUMNS = ["prediction_id", "patient_id", "laterality", "image_id", "fold", "cancer", "logit", "probability"]
KEEP_EPOCH = ("best_auc", "last")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EMA_WARMUP_POWER = 2 / 3  # the average forgets its random start early, also in a run of few steps


class TrainingError(KitError):
    """A run that can't go on; the message says what to change."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's weights; saved as JSON beside them.

    Parameters
    ----------
    model : ModelConfig
    preprocessing : CacheSettings
        Of the cache that the run trains on.
    n_folds : int
    folds : tuple of int
        Which folds to train; empty for all.
    epochs, batch_size : int
        A batch counts items: images, or breasts for ``rnn``.
    learning_rate, weight_decay : float
        Of AdamW, at the peak of the schedule: linear warm-up, then cosine to zero. Biases and norms do not decay.
    warmup_share : float
        Of all steps.
    label_smoothing : float
        Moves the labels to ``label_smoothing / 2`` and ``1 - label_smoothing / 2``.
    positive_weight : float
        Of a positive item in the loss.
    positive_share : float or None
        Share of positives that the sampler draws; None draws every item once.
    ema_decay : float
        Of the running average of weights, which is what is evaluated and kept; 0 keeps the raw weights.
    clip_norm : float
        Largest gradient norm.
    augment_strength : float
        See `utils.augment.Augment`.
    max_views : int or None
        Of ``rnn``: images of a breast that it sees, drawn at random; None for all.
    keep_epoch : {"best_auc", "last"}
        ``best_auc`` keeps the epoch with the highest AUC per breast on the held-out fold (its lowest loss where AUC is
        undefined); the out-of-fold predictions are then a little too good, since the fold chose its epoch. ``last``
        keeps them honest.
    precision : {"auto", "float32", "bfloat16", "float16"}
    seed : int
    """

    model: ModelConfig
    preprocessing: CacheSettings
    n_folds: int = 4
    folds: tuple[int, ...] = ()
    epochs: int = 8
    batch_size: int = 16
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    label_smoothing: float = 0.0
    positive_weight: float = 1.0
    positive_share: float | None = None
    ema_decay: float = 0.99
    clip_norm: float = 1.0
    augment_strength: float = 1.0
    max_views: int | None = None
    keep_epoch: str = "best_auc"
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        """Check types and ranges: papermill passes ``-p`` values that are no plain numbers on as text."""
        for name in ("n_folds", "epochs", "batch_size", "seed"):
            _check(isinstance(getattr(self, name), int), name, getattr(self, name), "a whole number")
        for name in ("learning_rate", "weight_decay", "label_smoothing", "positive_weight", "ema_decay", "augment_strength"):
            value = getattr(self, name)
            _check(
                isinstance(value, int | float) and value >= 0,
                name,
                value,
                "a number of 0 or more (YAML wants 1.0e-4, not 1e-4)",
            )
        _check(self.n_folds >= 2, "n_folds", self.n_folds, "2 or more")
        _check(set(self.folds) <= set(range(self.n_folds)), "folds", self.folds, f"numbers from 0 to {self.n_folds - 1}")
        _check(min(self.epochs, self.batch_size) >= 1, "epochs and batch_size", (self.epochs, self.batch_size), "1 or more")
        share = self.positive_share
        _check(share is None or 0 < share < 1, "positive_share", share, "between 0 and 1, or None")
        _check(self.max_views is None or self.max_views >= 1, "max_views", self.max_views, "1 or more, or None")
        _check(self.keep_epoch in KEEP_EPOCH, "keep_epoch", self.keep_epoch, f"one of {', '.join(KEEP_EPOCH)}")
        _check(self.precision in ("auto", *PRECISIONS), "precision", self.precision, f"auto or one of {', '.join(PRECISIONS)}")

    def to_json(self) -> dict:
        """Plain dictionary, as written to config.json."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, content: dict) -> "TrainConfig":
        """Undo `to_json`."""
        known = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        model = known["model"] | {"encoders": tuple(known["model"]["encoders"])}
        known |= {"model": ModelConfig(**model), "preprocessing": CacheSettings(**known["preprocessing"])}
        return cls(**known | {"folds": tuple(known["folds"])})


def train_run(
    config: TrainConfig,
    images: pd.DataFrame,
    cache_dir: str | Path,
    run_dir: str | Path,
    num_workers: int = 0,
    is_phantom: bool = False,
) -> pd.DataFrame:
    """Train every fold of a configuration, and collect the out-of-fold predictions.

    Called again after a kill, it goes on from the last finished epoch, with the result of an uninterrupted run.

    Parameters
    ----------
    config : TrainConfig
    images : DataFrame
        A train table whose images are all in the cache.
    cache_dir, run_dir : path
    num_workers : int
        Processes that load data; 0 loads in this one.
    is_phantom : bool
        Noted in the run's configuration, so that no phantom model ever predicts real images.

    Returns
    -------
    DataFrame
        The out-of-fold table of all folds that are finished in ``run_dir``, as in ``oof.csv``.

    Raises
    ------
    TrainingError
        If the run folder holds another configuration, or the loss diverges.
    """
    run_dir = Path(run_dir)
    images = assign_folds(images, config.n_folds, config.seed)
    _claim(run_dir, config, images, is_phantom)
    for fold in config.folds or range(config.n_folds):
        fit_fold(config, images, fold, cache_dir, run_dir / f"fold{fold}", num_workers)
    finished = finished_folds(run_dir)  # of earlier calls too: folds may be trained one by one
    oof = pd.concat([read_oof(fold_dir / "oof.csv") for fold_dir in finished], ignore_index=True)
    history = pd.concat([pd.read_csv(fold_dir / "history.csv") for fold_dir in finished], ignore_index=True)
    _write_csv(run_dir / "history.csv", history)
    _write_csv(run_dir / "oof.csv", oof)
    return oof


def finished_folds(run_dir: Path) -> list[Path]:
    """List the folders of a run's finished folds, by number; an unfinished fold has weights, but no ``oof.csv``."""
    return sorted((path.parent for path in run_dir.glob("fold*/oof.csv")), key=lambda fold: int(fold.name.removeprefix("fold")))


def fit_fold(
    config: TrainConfig, images: pd.DataFrame, fold: int, cache_dir: str | Path, fold_dir: Path, num_workers: int = 0
) -> None:
    """Train on all folds but one, predict that one, and write its rows of ``oof.csv`` into ``fold_dir``; once.

    Parameters
    ----------
    config : TrainConfig
    images : DataFrame
        With the column ``fold``.
    fold : int
        The held-out fold.
    cache_dir : path
    fold_dir : Path
    num_workers : int
    """
    oof_path = fold_dir / "oof.csv"
    if oof_path.is_file():
        return
    inside, held_out = images[images.fold != fold], images[images.fold == fold]
    vocabulary = Vocabulary.from_images(inside)
    training_set = make_dataset(config, inside, cache_dir, "train", vocabulary, Augment(config.augment_strength))
    validation_set = make_dataset(config, held_out, cache_dir, "train", vocabulary)
    fitting = _Fitting(config, fold, training_set, vocabulary, fold_dir, num_workers)
    fitting.run(validation_set)
    model, _ = load_fold(config, fold_dir)
    device = pick_device()
    logits = predict_logits(model.to(device), validation_set, config, device, num_workers)
    _write_csv(oof_path, _oof_table(config, validation_set, logits, fold))
    fitting.checkpoint_path.unlink(missing_ok=True)


def make_dataset(
    config: TrainConfig,
    images: pd.DataFrame,
    cache_dir: str | Path,
    split: str,
    vocabulary: Vocabulary,
    augment: Augment | None = None,
) -> ImageDataset:
    """Make the data set that an architecture reads: images, or breasts for ``rnn``."""
    if config.model.breast_level:
        return BreastDataset(images, cache_dir, split, vocabulary, augment, config.seed, max_views=config.max_views)
    return ImageDataset(images, cache_dir, split, vocabulary, augment, config.seed)


def predict_logits(
    model: nn.Module, dataset: ImageDataset, config: TrainConfig, device: torch.device, num_workers: int = 0
) -> np.ndarray:
    """Predict all items of a data set.

    Returns
    -------
    ndarray of shape (len(dataset),), float64
        Logits, in the order of ``dataset.items``.
    """
    loader = make_loader(dataset, config.batch_size, num_workers, pin_memory=device.type == "cuda")
    model.eval()
    logits = []
    with torch.inference_mode(), _autocast(config, device):
        for batch in loader:
            logits.append(_forward(model, batch, device).float().cpu())
    return torch.cat(logits).double().numpy() if logits else np.empty(0)


def load_fold(config: TrainConfig, fold_dir: str | Path) -> tuple[nn.Module, Vocabulary]:
    """Load a fold's network and the vocabulary that it was trained with.

    Raises
    ------
    TrainingError
        If the weights are missing.
    """
    path = Path(fold_dir) / "weights.safetensors"
    if not path.is_file():
        raise TrainingError(f"{path} is missing: let train.ipynb finish this run, or leave it out of run_dirs.")
    with safetensors.safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["vocabulary"])
    vocabulary = Vocabulary(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})
    # What the encoder started from does not matter any more, and need not exist here.
    model = build_model(replace(config.model, pretrained=False, weights_path=""), vocabulary)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.to(memory_format=torch.channels_last), vocabulary


def load_config(run_dir: str | Path) -> TrainConfig:
    """Read a run's configuration.

    Raises
    ------
    TrainingError
        If there is none.
    """
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise TrainingError(f"{run_dir} is no run folder (it has no config.json): run train.ipynb first.")
    return TrainConfig.from_json(read_json(path))


class _Fitting:
    """The state of one fold's training, and the loop that advances it by epochs."""

    def __init__(
        self, config: TrainConfig, fold: int, dataset: ImageDataset, vocabulary: Vocabulary, fold_dir: Path, num_workers: int
    ):
        self.config, self.fold, self.dataset, self.vocabulary, self.fold_dir = config, fold, dataset, vocabulary, fold_dir
        self.num_workers, self.device = num_workers, pick_device()
        self.checkpoint_path = fold_dir / "checkpoint.pt"
        seed_everything(_derive_seed(config.seed, fold))
        self.model = build_model(config.model, vocabulary).to(self.device, memory_format=torch.channels_last)
        self.ema = ModelEmaV3(self.model, decay=config.ema_decay, use_warmup=True, warmup_power=EMA_WARMUP_POWER)
        groups = param_groups_weight_decay(self.model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.sampler = ShareSampler(dataset.labels, config.positive_share, _derive_seed(config.seed, fold))
        self.loader = make_loader(dataset, config.batch_size, num_workers, self.sampler, pin_memory=self.device.type == "cuda")
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _warmup_cosine(config, len(self.loader)))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=_precision(config, self.device) == torch.float16)
        self.history: list[dict] = []

    def run(self, validation_set: ImageDataset) -> None:
        """Train from the last checkpoint to the last epoch; the kept epoch's weights are then in the fold's folder."""
        self._restore()
        total = self.config.epochs * len(self.loader) * self.config.batch_size
        done = len(self.history) * len(self.loader) * self.config.batch_size
        unit = " breasts" if self.config.model.breast_level else " images"
        label = f"{self.config.model.architecture} fold {self.fold}"
        with tqdm(total=total, initial=done, desc=label, unit=unit, mininterval=2.0) as bar:
            for epoch in range(len(self.history), self.config.epochs):
                row = self._epoch(epoch, validation_set, bar)
                self.history.append(row)
                self._keep(validation_set)
                bar.set_postfix(epoch=f"{epoch + 1}/{self.config.epochs}", loss=row["train_loss"], auc=row["valid_auc"])
        _write_csv(self.fold_dir / "history.csv", pd.DataFrame(self.history))  # a kill may have come before the last row

    def _epoch(self, epoch: int, validation_set: ImageDataset, bar: tqdm) -> dict:
        start = time.perf_counter()
        # Every random choice hangs on (seed, fold, epoch) alone, so a resumed run repeats it without stored generators.
        seed_everything(_derive_seed(self.config.seed, self.fold, epoch))
        self.sampler.epoch = self.dataset.epoch = epoch
        learning_rate = self.optimizer.param_groups[0]["lr"]
        train_loss = self._train(epoch, bar)
        logits = predict_logits(self._averaged(), validation_set, self.config, self.device, self.num_workers)
        return {
            "fold": self.fold,
            "epoch": epoch,
            "learning_rate": learning_rate,
            "train_loss": train_loss,
            **_validation_metrics(validation_set, logits),
            "seconds": time.perf_counter() - start,
        }

    def _train(self, epoch: int, bar: tqdm) -> float:
        """Train one epoch; returns its mean loss."""
        self.model.train()
        total = torch.zeros((), device=self.device)
        for step, batch in enumerate(self.loader, start=epoch * len(self.loader)):
            with _autocast(self.config, self.device):
                logits = _forward(self.model, batch, self.device)
            loss = self._loss(logits.float(), batch["label"].to(self.device, non_blocking=True))
            self._step(loss, step)
            total += loss.detach()  # no .item() here: it would make the GPU wait at every step
            bar.update(len(batch["label"]))
        mean = total.item() / len(self.loader)
        if not math.isfinite(mean):
            raise TrainingError(
                f"The loss of fold {self.fold} became {mean} in epoch {epoch}: lower learning_rate (now"
                f" {self.config.learning_rate}) or set precision to float32. {self.checkpoint_path} holds the last good epoch."
            )
        return mean

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        smooth = labels * (1 - self.config.label_smoothing) + self.config.label_smoothing / 2
        weight = 1 + (self.config.positive_weight - 1) * labels
        return nn.functional.binary_cross_entropy_with_logits(logits, smooth, weight=weight)

    def _step(self, loss: torch.Tensor, step: int) -> None:
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.config.ema_decay:
            self.ema.update(self.model, step=step)

    def _averaged(self) -> nn.Module:
        return self.ema.module if self.config.ema_decay else self.model

    def _keep(self, validation_set: ImageDataset) -> None:
        """Save the weights if this epoch is to be kept, then the checkpoint, then the history."""
        if self.config.keep_epoch == "last" or len(self.history) - 1 == _best_epoch(self.history):
            metadata = {"vocabulary": json.dumps(asdict(self.vocabulary)), "epoch": str(len(self.history) - 1)}
            with write_atomic(self.fold_dir / "weights.safetensors") as temporary:
                safetensors.torch.save_file(_plain_state(self._averaged()), temporary, metadata)
        with write_atomic(self.checkpoint_path) as temporary:
            torch.save(self._state(), temporary)
        _write_csv(self.fold_dir / "history.csv", pd.DataFrame(self.history))

    def _state(self) -> dict:
        return {name: part.state_dict() for name, part in self._parts().items()} | {"history": self.history}

    def _restore(self) -> None:
        if not self.checkpoint_path.is_file():
            return
        state = torch.load(self.checkpoint_path, map_location=self.device, weights_only=True)
        for name, part in self._parts().items():
            if state[name]:  # a scaler that was not needed has none
                part.load_state_dict(state[name])
        self.history = state["history"]
        print(f"Resuming {self.fold_dir} after {len(self.history)} finished epoch(s).")

    def _parts(self) -> dict:
        return {
            "model": self.model,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }


def _forward(model: nn.Module, batch: dict[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    images, metadata = (batch[key].to(device, non_blocking=True) for key in ("images", "metadata"))
    return model(images, metadata, batch["lengths"])  # (B,); lengths stay on the CPU, where they are read


def _autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    dtype = _precision(config, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Pick the number format: half precision on a GPU (T4 has no bfloat16), float32 on a CPU, where neither gained."""
    if config.precision != "auto":
        return PRECISIONS[config.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.float32


def _warmup_cosine(config: TrainConfig, steps_per_epoch: int):
    total = config.epochs * steps_per_epoch
    warmup = max(1, round(config.warmup_share * total))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return factor


def _validation_metrics(dataset: ImageDataset, logits: np.ndarray) -> dict[str, float]:
    """Loss per item, and AUC per breast over the mean of its items' probabilities."""
    labels = dataset.labels
    loss = np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean()  # binary cross-entropy
    breasts = dataset.items.assign(probability=sigmoid(logits), cancer=labels)
    breasts = breasts.groupby("prediction_id")[["cancer", "probability"]].mean()
    return {"valid_loss": float(loss), "valid_auc": area_under_roc(breasts.cancer, breasts.probability)}


def _best_epoch(history: Sequence[dict]) -> int:
    """Epoch with the highest AUC, the first of equals; by the lowest loss where AUC is undefined."""
    if any(math.isnan(row["valid_auc"]) for row in history):
        return int(np.argmin([row["valid_loss"] for row in history]))
    return int(np.argmax([row["valid_auc"] for row in history]))


def _oof_table(config: TrainConfig, dataset: ImageDataset, logits: np.ndarray, fold: int) -> pd.DataFrame:
    items = dataset.items.assign(fold=fold, logit=logits, probability=sigmoid(logits))
    if config.model.breast_level:
        items["image_id"] = ""
    return items[OOF_COLUMNS].reset_index(drop=True)


def read_oof(path: str | Path) -> pd.DataFrame:
    """Read an out-of-fold table; ids are text, and ``image_id`` is empty for breast-level models."""
    ids = dict.fromkeys(["prediction_id", "patient_id", "laterality", "image_id"], str)
    return pd.read_csv(path, dtype=ids, keep_default_na=False)


def _claim(run_dir: Path, config: TrainConfig, images: pd.DataFrame, is_phantom: bool) -> None:
    """Write the configuration into a new run folder, or check that it is that of an existing one."""
    path = run_dir / "config.json"
    if path.is_file():
        found, wanted = load_config(run_dir).to_json(), config.to_json()
        differing = [key for key in wanted if found.get(key) != wanted[key] and key != "folds"]
        if differing:
            raise TrainingError(
                f"{run_dir} holds a run with other settings ({', '.join(differing)}): choose another run_dir, or delete it."
            )
        folds = _read_folds(run_dir)
        if folds != dict(zip(images.patient_id, images.fold, strict=True)):
            raise TrainingError(f"{run_dir} was started on other images or folds: choose another run_dir, or delete it.")
        return
    folds = images[["patient_id", "fold"]].drop_duplicates().sort_values("patient_id")
    _write_csv(run_dir / "folds.csv", folds)
    prevalence = float(images.groupby("prediction_id").cancer.first().mean())
    notes = {"prevalence": prevalence, "settings_hash": config.preprocessing.hash, "phantom": is_phantom}
    write_json(path, config.to_json() | notes | {"versions": versions()})


def _read_folds(run_dir: Path) -> dict[str, int]:
    folds = pd.read_csv(run_dir / "folds.csv", dtype={"patient_id": str})
    return dict(zip(folds.patient_id, folds.fold, strict=True))


def _plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with write_atomic(path) as temporary:
        table.to_csv(temporary, index=False)


def _derive_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def as_numbers(text: str | Sequence[int]) -> tuple[int, ...]:
    """Read a notebook's parameter such as ``"0,2"``: papermill's ``-p`` knows no lists."""
    try:
        return tuple(
            int(part) for part in (text.split(",") if isinstance(text, str) else _as_sequence(text)) if str(part).strip()
        )
    except ValueError as error:
        raise TrainingError(f"folds is {text!r}, but must be whole numbers with commas between.") from error


def _as_sequence(value: int | Sequence[int]) -> Sequence[int]:
    return [value] if isinstance(value, int) else value


def _check(holds: bool, name: str, value, wanted: str) -> None:
    if not holds:
        raise TrainingError(f"{name} is {value!r}, but must be {wanted}.")
