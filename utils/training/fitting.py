"""One fold's training: the loop over epochs, which resumes after the last finished one."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import nn
from tqdm import tqdm

from utils.core.environment import seed_everything, write_atomic, write_csv
from utils.metrics.scores import area_under_roc, best_threshold, sigmoid
from utils.networks.models import build_model
from utils.runs.config import TrainConfig, TrainingError
from utils.runs.execution import Execution
from utils.runs.folder import writing_to
from utils.training.checkpoint import check_kept, read_checkpoint
from utils.training.dataset import ImageDataset
from utils.training.fold_data import FoldData
from utils.training.fold_weights import read_vocabulary
from utils.training.inference import Predictions, predict
from utils.training.learner import Learner, encoders_of
from utils.training.loading import ShareSampler, StepSampler, explained, make_loader
from utils.training.probe import encode, fit_head
from utils.training.ranks import Ranks

try:
    import resource
except ImportError:  # Windows
    resource = None

REFRESH = 2.0  # seconds between readings of the loss: each makes a GPU wait


class Fitting:
    """The state of one fold's training; ``fold_dir`` gets its weights, history and checkpoint."""

    def __init__(self, config: TrainConfig, data: FoldData, fold_dir: Path, ranks: Ranks, execution: Execution):
        self.config, self.data, self.fold_dir, self.ranks, self.device = config, data, fold_dir, ranks, ranks.device
        self.checkpoint_path = fold_dir / "checkpoint.pt"
        self.history: list[dict] = []
        self.floor: Predictions | None = None  # what `fit_head` predicts
        items = len(data.training_set)
        if ranks.world_size > 1 and items < config.batch_size:
            raise TrainingError(f"{items} items are less than one step's batch_size: train in one process.")
        _set_determinism(config.deterministic)
        seed_everything(derive_seed(config.seed, data.fold))
        auxiliary_sizes = data.auxiliary_sizes if config.auxiliary_weight else ()
        model = build_model(config.model, data.vocabulary, auxiliary_sizes)
        if config.model.metadata:
            model.head.metadata.fit(data.training_set.metadata, data.training_set.images.cancer.to_numpy())
        self._make_loaders(execution)
        self.learner = Learner(config, model, ranks, len(self.loader), auxiliary_sizes)
        if execution.compile:
            for encoder in encoders_of(self.learner.model):
                encoder.compile()
        self.board = _make_board(fold_dir) if execution.tensorboard and ranks.is_first else None

    def _make_loaders(self, execution: Execution) -> None:
        config, data, ranks = self.config, self.data, self.ranks
        seed = derive_seed(config.seed, data.fold)
        self.sampler = ShareSampler(data.training_set.labels, config.positive_share, seed, config.batch_size)
        steps = StepSampler(self.sampler, config.batch_size, ranks.rank, ranks.world_size)
        options = {"num_workers": execution.num_workers, "pin_memory": self.device.type == "cuda"}
        self.loader = make_loader(data.training_set, config.batch_size, sampler=steps, **options)
        own = range(ranks.rank, len(data.held_out_set), ranks.world_size)
        at_once = config.micro_batch_size or config.batch_size
        self.validation_loader = make_loader(torch.utils.data.Subset(data.held_out_set, own), at_once, **options)

    def run(self) -> None:
        """Train from the last checkpoint to the last epoch, and leave the kept epoch's weights in the fold's folder."""
        self._restore()
        items = len(self.loader) * self.config.batch_size
        with tqdm(
            total=self.config.epochs * items,
            initial=len(self.history) * items,
            desc=f"{self.config.model.architecture} fold {self.data.fold}",
            unit=f" {self.config.model.item}s",
            mininterval=REFRESH,
            disable=not self.ranks.is_first,
        ) as bar:
            for epoch in range(len(self.history), self.config.epochs):
                with explained(self.loader, self.validation_loader):
                    self.history.append(self._epoch(epoch, bar))
                self._keep()
        if not self.history:  # 0 epochs
            self.history.append(self._row_of_floor())
            self._keep()
        if self.ranks.is_first:
            write_csv(self.fold_dir / "history.csv", pd.DataFrame(self.history))  # a kill may have prevented the last row
            print(f"Fold {self.data.fold}: {peak_memory(self.device)}")
        self.ranks.gather(None)  # no process reads the weights before they are written

    def start_from(self, path: Path) -> None:
        """Load the encoder of another network of the same architecture."""
        read_vocabulary(path)  # raises if the file is broken
        state = safetensors.torch.load_file(path, device=str(self.device))
        prefix = "encoder."
        encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        self.learner.model.encoder.load_state_dict(encoder)
        self.learner.ema.set(self.learner.model)

    def fit_head(self) -> Predictions | None:
        """Start the head from a logistic regression on the encoder's features; return its predictions of held-out items.

        Return None if a checkpoint shows that training has begun.
        """
        if self.ranks.gather(self.checkpoint_path.is_file())[0]:
            return None
        items = self.data.training_set.plain()
        own = torch.utils.data.Subset(items, range(self.ranks.rank, len(items), self.ranks.world_size))
        loader = make_loader(own, self.learner.micro_batch_size, num_workers=self.loader.num_workers)
        parts = self.ranks.gather(encode(self.learner.model.encoder, loader, self.config, self.device))
        index, features, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(index)  # so that each process fits the same numbers
        fit_head(self.learner.model.head.cancer, features[order], labels[order], self.config.positive_share)
        self.learner.ema.set(self.learner.model)
        self.floor = self.predict(self.learner.averaged)
        return self.floor

    def _row_of_floor(self) -> dict:
        """Return the history row of a fold that trains for 0 epochs."""
        metrics = validation_metrics(self.data.held_out_set, self.floor.logits)
        row = {"fold": self.data.fold, "epoch": 0, "learning_rate": 0.0, "train_loss": math.nan, "data_wait": 0.0, **metrics}
        return row | {"items_per_second": math.nan, "seconds": 0.0}

    def _epoch(self, epoch: int, bar: tqdm) -> dict:
        # Every random choice depends only on seed, fold and epoch, so a resumed run repeats it without stored generators.
        seed_everything(derive_seed(self.config.seed, self.data.fold, epoch, self.ranks.rank))
        self.sampler.epoch = self.data.training_set.epoch = epoch
        learning_rate = self.learner.learning_rate
        start = time.perf_counter()
        training = self._train(epoch, bar)
        seconds = time.perf_counter() - start
        training["train_loss"] = self.ranks.mean(training["train_loss"])
        row = {
            "fold": self.data.fold,
            "epoch": epoch,
            "learning_rate": learning_rate,
            **training,
            **validation_metrics(self.data.held_out_set, self.predict(self.learner.averaged).logits),
            "items_per_second": len(self.loader) * self.config.batch_size / seconds,
            "seconds": time.perf_counter() - start,
        }
        bar.set_postfix(epoch=f"{epoch + 1}/{self.config.epochs}", loss=row["train_loss"], auc=row["valid_auc"])
        return row

    def predict(self, model: nn.Module) -> Predictions:
        """Predict the held-out items, each process its share; return all predictions in each process."""
        self.ranks.align(model)
        with explained(self.validation_loader):
            mine = predict(model, self.validation_loader, self.config, self.device, self.learner.micro_batch_size)
        predictions = Predictions.joined(self.ranks.gather(mine))
        if not np.isfinite(predictions.logits).all():
            raise TrainingError(
                f"Fold {self.data.fold}: some held-out items got no finite logit; set precision to float32, or lower"
                f" learning_rate (now {self.config.learning_rate})."
            )
        return predictions

    def _train(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """Train one epoch; return its mean loss and the share of time spent waiting for data."""
        self.learner.network.train()
        losses = _LossWatch(self, epoch)
        start = looked = time.perf_counter()
        waited = 0.0
        batches = iter(self.loader)
        for step in range(epoch * len(self.loader), (epoch + 1) * len(self.loader)):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            losses.add(self.learner(batch, step), step)
            bar.update(len(batch["label"]) * self.ranks.world_size)
            if time.perf_counter() - looked > REFRESH:
                bar.set_postfix(epoch=f"{epoch + 1}/{self.config.epochs}", loss=losses.mean(), refresh=False)
                looked = time.perf_counter()
        return {"train_loss": losses.mean(), "data_wait": waited / (time.perf_counter() - start)}

    def _keep(self) -> None:
        """Save the weights if this epoch is the one to keep, then checkpoint and history, in the first process."""
        if not self.ranks.is_first:
            return
        if self.ranks.lock:
            self.ranks.lock.check()
        with writing_to(self.fold_dir):
            self._write()

    def _write(self) -> None:
        if self.config.keep_epoch == "last" or len(self.history) - 1 == best_epoch(self.history):
            metadata = {"vocabulary": json.dumps(asdict(self.data.vocabulary)), "epoch": str(len(self.history) - 1)}
            with write_atomic(self.fold_dir / "weights.safetensors") as temporary:
                # save_file would replace the file by its own, with other permissions.
                temporary.write_bytes(safetensors.torch.save(plain_state(self.learner.averaged), metadata))
        with write_atomic(self.checkpoint_path) as temporary:
            torch.save(self._state(), temporary)
        write_csv(self.fold_dir / "history.csv", pd.DataFrame(self.history))
        if self.board:
            for name, value in self.history[-1].items():
                self.board.add_scalar(name, value, self.history[-1]["epoch"])
            self.board.flush()

    def _state(self) -> dict:
        parts = {name: part.state_dict() for name, part in self.learner.parts().items()}
        return parts | {"config": self.config.to_json(), "history": self.history} | self.learner.memory()

    def _restore(self) -> None:
        if not self.checkpoint_path.is_file():
            return
        state = read_checkpoint(self.checkpoint_path, self.config, self.data.fold, self.learner.parts(), self.device)
        check_kept(self.fold_dir, self.data.fold, self.data.vocabulary, kept_state(self.learner.averaged))
        self.learner.restore(state)
        self.history = state["history"]
        if self.ranks.is_first:
            print(f"Resuming {self.fold_dir} after {len(self.history)} finished epoch(s).")


class _LossWatch:
    """Running mean of an epoch's losses, kept on the device: reading a number makes a GPU wait for its work."""

    def __init__(self, fitting: Fitting, epoch: int):
        self.fitting, self.epoch, self.count = fitting, epoch, 0
        self.total = torch.zeros((), device=fitting.device)
        self.first_bad = torch.full((), -1, device=fitting.device)

    def add(self, loss: torch.Tensor, step: int) -> None:
        self.total += loss
        self.count += 1
        self.first_bad = torch.where((self.first_bad < 0) & ~torch.isfinite(loss), step, self.first_bad)

    def mean(self) -> float:
        """Return the mean so far; raise TrainingError if a loss was not finite."""
        mean = self.total.item() / self.count
        if not math.isfinite(mean):
            path, rate = self.fitting.checkpoint_path, self.fitting.config.learning_rate
            kept = f"{path} holds the last good epoch" if path.is_file() else "No epoch had ended before"
            raise TrainingError(
                f"The loss of fold {self.fitting.data.fold} became {mean} in epoch {self.epoch}, at step"
                f" {self.first_bad.item()}. {kept}: lower learning_rate (now {rate}) or set precision to float32, in a new"
                " run_dir."
            )
        return mean


def validation_metrics(dataset: ImageDataset, logits: np.ndarray) -> dict[str, float]:
    """Return loss per item, and AUC and pF1 per breast (mean probability of its items; threshold tuned on these breasts)."""
    labels = dataset.labels
    if not len(labels):  # patch training may hold out no box
        return dict.fromkeys(("valid_loss", "valid_auc", "valid_pf1"), math.nan)
    loss = np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean()  # binary cross-entropy
    breasts = dataset.items.assign(probability=sigmoid(logits), cancer=labels)
    breasts = breasts.groupby("prediction_id")[["cancer", "probability"]].mean()
    return {
        "valid_loss": float(loss),
        "valid_auc": area_under_roc(breasts.cancer, breasts.probability),
        "valid_pf1": best_threshold(breasts.cancer, breasts.probability)[1],
    }


def best_epoch(history: Sequence[dict]) -> int:
    """Return the first epoch with the highest AUC, or with the lowest loss if AUC is undefined."""
    if any(math.isnan(row["valid_auc"]) for row in history):
        return int(np.argmin([row["valid_loss"] for row in history]))
    return int(np.argmax([row["valid_auc"] for row in history]))


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict for inference: on the CPU, without the auxiliary head."""
    return {key: value.detach().cpu().contiguous() for key, value in kept_state(model).items()}


def kept_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict without the auxiliary head, which only training needs."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith("head.auxiliary.")}


def derive_seed(*numbers: int) -> int:
    """Derive one seed from several numbers."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def peak_memory(device: torch.device) -> str:
    """Return peak memory as text: of the GPU, else of this process."""
    if device.type == "cuda":
        return f"at most {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of the GPU's memory in use"
    if resource is None:
        return "peak memory is unknown on Windows"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss: macOS counts bytes, Linux and the BSDs KiB
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"at most {used / 2**30:.2f} GiB of memory in use by this process"


def _set_determinism(deterministic: bool) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def _make_board(fold_dir: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError("tensorboard=True needs the package: pip install tensorboard.") from error
    return SummaryWriter(fold_dir / "tensorboard")
