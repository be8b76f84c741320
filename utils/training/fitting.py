"""One fold's training: the loop over epochs, which resumes after the last finished one."""

import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Subset
from tqdm import tqdm

from utils.core.files import write_atomic, write_csv
from utils.core.progress import progress_bar
from utils.networks.models import build_model
from utils.runs.config import TrainConfig
from utils.runs.errors import TrainingError
from utils.runs.execution import Execution
from utils.training.checkpoint import check_kept, read_checkpoint, writing_to
from utils.training.fold_data import FoldData
from utils.training.fold_weights import kept_state, read_encoder, save_weights
from utils.training.inference import Predictions, predict
from utils.training.learner import Learner, encoders_of
from utils.training.loading import ShareSampler, StepSampler, explained, make_loader
from utils.training.monitoring import EpochWatch, make_board, peak_memory
from utils.training.probe import encode, fit_head
from utils.training.randomness import derive_seed, seed_everything, set_determinism
from utils.training.ranks import Ranks
from utils.training.validation import best_epoch, validation_metrics

REFRESH = 2.0  # seconds between readings of the loss: each makes a GPU wait


class Fitting:
    """The training of one fold; ``fold_dir`` gets its weights, history and checkpoint."""

    def __init__(self, config: TrainConfig, data: FoldData, fold_dir: Path, ranks: Ranks, execution: Execution):
        items = len(data.training_set)
        if ranks.world_size > 1 and items < config.batch_size:
            raise TrainingError(f"{items} items are fewer than a step's batch_size: train in one process.")
        self.config = config
        self.data = data
        self.fold_dir = fold_dir
        self.ranks = ranks
        self.device = ranks.device
        self.checkpoint_path = fold_dir / "checkpoint.pt"
        self.history: list[dict] = []  # a row for each finished epoch
        self.sampler = ShareSampler(
            data.training_set.labels, config.positive_share, derive_seed(config.seed, data.fold), config.batch_size
        )
        steps = StepSampler(self.sampler, config.batch_size, ranks.rank, ranks.world_size)
        at_once = config.micro_batch_size or config.batch_size
        workers, pinned = execution.num_workers, self.device.type == "cuda"
        self.loader = make_loader(data.training_set, steps, workers, pinned)
        self.validation_loader = make_loader(self._share_of(data.held_out_set), at_once, workers, pinned)
        self.learner = self._make_learner()
        if execution.compile:
            for encoder in encoders_of(self.learner.model):
                encoder.compile()
        self.board = make_board(fold_dir) if execution.tensorboard and ranks.is_first else None

    def run(self) -> None:
        """Train from the last checkpoint to the last epoch, and leave the kept epoch's weights in the fold's folder."""
        self._resume()
        with self._make_bar() as bar:
            for epoch in range(len(self.history), self.config.epochs):
                with explained(self.loader, self.validation_loader):
                    self.history.append(self._run_epoch(epoch, bar))
                self._save()
        if not self.history:  # 0 epochs
            self.history.append(self._row_without_training())
            self._save()
        if self.ranks.is_first:
            write_csv(self.fold_dir / "history.csv", pd.DataFrame(self.history))  # a kill may have prevented the last row
            print(f"Fold {self.data.fold}: {peak_memory(self.device)}")
        self.ranks.gather(None)  # no process reads the weights before they are written

    def _run_epoch(self, epoch: int, bar: tqdm) -> dict:
        """Train one epoch, evaluate the averaged network, and return the epoch's row of the history."""
        learning_rate = self.learner.learning_rate
        start = time.perf_counter()
        trained = self.train_epoch(epoch, bar)
        seconds = time.perf_counter() - start
        evaluated = self._evaluate()
        shown = {"epoch": f"{epoch + 1}/{self.config.epochs}", "loss": trained["train_loss"], "auc": evaluated["valid_auc"]}
        bar.set_postfix(shown, refresh=False)
        return {
            "fold": self.data.fold,
            "epoch": epoch,
            "learning_rate": learning_rate,
            **trained,
            **evaluated,
            "items_per_second": len(self.loader) * self.config.batch_size / seconds,
            "seconds": time.perf_counter() - start,
        }

    def train_epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """Train one epoch; return its mean loss and the share of time spent waiting for data."""
        # Every random choice depends only on seed, fold and epoch, so a resumed run repeats it without stored generators.
        seed_everything(derive_seed(self.config.seed, self.data.fold, epoch, self.ranks.rank))
        self.sampler.epoch = epoch
        self.data.training_set.epoch = epoch
        self.learner.network.train()
        watch = EpochWatch(self.device)
        looked = time.perf_counter()
        for step, batch in enumerate(watch.batches(self.loader), start=epoch * len(self.loader)):
            loss = self.learner.step(batch, step)
            watch.add(loss, step)
            bar.update(len(batch["label"]) * self.ranks.world_size)
            if time.perf_counter() - looked > REFRESH:
                mean = self._mean_loss(watch, epoch)
                bar.set_postfix(epoch=f"{epoch + 1}/{self.config.epochs}", loss=mean, refresh=False)
                looked = time.perf_counter()
        return {"train_loss": self.ranks.mean(self._mean_loss(watch, epoch)), "data_wait": watch.data_wait}

    def _evaluate(self) -> dict[str, float]:
        return validation_metrics(self.data.held_out_set, self.predict(self.learner.averaged).logits)

    def predict(self, model: nn.Module) -> Predictions:
        """Predict the held-out items, each process its share; return all predictions in each process."""
        self.ranks.align(model)
        with explained(self.validation_loader):
            mine = predict(model, self.validation_loader, self.config, self.device, self.learner.micro_batch_size)
        predictions = Predictions.joined(self.ranks.gather(mine))
        if not np.isfinite(predictions.logits).all():
            raise TrainingError(
                f"Fold {self.data.fold}: some held-out items got no finite logit. Set precision to float32, or lower"
                f" learning_rate (now {self.config.learning_rate})."
            )
        return predictions

    def _save(self) -> None:
        """Save the weights if this epoch is the one to keep, then checkpoint and history, in the first process."""
        if not self.ranks.is_first:
            return
        if self.ranks.lock:
            self.ranks.lock.check()
        epoch = len(self.history) - 1
        with writing_to(self.fold_dir):
            if self.config.keep_epoch == "last" or epoch == best_epoch(self.history):
                save_weights(self.fold_dir / "weights.safetensors", self.learner.averaged, self.data.vocabulary, epoch)
            with write_atomic(self.checkpoint_path) as temporary:
                torch.save(self.learner.state() | {"config": self.config.to_json(), "history": self.history}, temporary)
            write_csv(self.fold_dir / "history.csv", pd.DataFrame(self.history))
            if self.board:
                for name, value in self.history[-1].items():
                    self.board.add_scalar(name, value, epoch)
                self.board.flush()

    def _resume(self) -> None:
        """Restore the checkpoint if there is one."""
        if not self.checkpoint_path.is_file():
            return
        state = read_checkpoint(self.checkpoint_path, self.config, self.data.fold, self.learner.parts(), self.device)
        check_kept(self.fold_dir, self.data.fold, self.data.vocabulary, kept_state(self.learner.averaged))
        self.learner.restore(state)
        self.history = state["history"]
        if self.ranks.is_first:
            print(f"Resuming {self.fold_dir} after {len(self.history)} finished epoch(s).")

    def _mean_loss(self, watch: EpochWatch, epoch: int) -> float:
        """Return an epoch's mean loss so far; raise TrainingError if it is not finite."""
        mean = watch.mean_loss
        if not math.isfinite(mean):
            kept = "No epoch had ended before"
            if self.checkpoint_path.is_file():
                kept = f"{self.checkpoint_path} holds the last good epoch"
            raise TrainingError(
                f"The loss of fold {self.data.fold} became {mean} in epoch {epoch}, at step {watch.first_bad.item()}. {kept}:"
                f" lower learning_rate (now {self.config.learning_rate}) or set precision to float32, in a new run_dir."
            )
        return mean

    # Before the first epoch

    def start_from(self, path: Path) -> None:
        """Load the encoder of another network of the same architecture."""
        self.learner.model.encoder.load_state_dict(read_encoder(path))
        self.learner.ema.set(self.learner.model)

    def fit_head(self) -> Predictions | None:
        """Start the head from a logistic regression on the encoder's features; return its predictions of held-out items.

        Return None if a checkpoint shows that training has begun.
        """
        if self.ranks.gather(self.checkpoint_path.is_file())[0]:
            return None
        items = self.data.training_set.plain()
        loader = make_loader(self._share_of(items), self.learner.micro_batch_size, num_workers=self.loader.num_workers)
        parts = self.ranks.gather(encode(self.learner.model.encoder, loader, self.config, self.device))
        index, features, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(index)  # so that each process fits the same numbers
        fit_head(self.learner.model.head.cancer, features[order], labels[order], self.config.positive_share)
        self.learner.ema.set(self.learner.model)
        return self.predict(self.learner.averaged)

    def _row_without_training(self) -> dict:
        """Return the history row of a fold that trains for 0 epochs."""
        return {
            "fold": self.data.fold,
            "epoch": 0,
            "learning_rate": 0.0,
            "train_loss": math.nan,
            "data_wait": 0.0,
            **self._evaluate(),
            "items_per_second": math.nan,
            "seconds": 0.0,
        }

    def _share_of(self, items: torch.utils.data.Dataset) -> Subset:
        """Return this process's share of the items."""
        return Subset(items, range(self.ranks.rank, len(items), self.ranks.world_size))

    def _make_learner(self) -> Learner:
        config, data = self.config, self.data
        set_determinism(config.deterministic)
        seed_everything(derive_seed(config.seed, data.fold))
        auxiliary_sizes = data.auxiliary_sizes if config.auxiliary_weight else ()
        model = build_model(config.model, data.vocabulary, auxiliary_sizes)
        if config.model.metadata:
            model.head.metadata.fit(data.training_set.metadata, data.training_set.images.cancer.to_numpy())
        return Learner(config, model, self.ranks, len(self.loader), auxiliary_sizes)

    def _make_bar(self) -> tqdm:
        items = len(self.loader) * self.config.batch_size
        return progress_bar(
            None,
            f"{self.config.model.architecture} fold {self.data.fold}",
            f"{self.config.model.item}s",
            self.config.epochs * items,
            initial=len(self.history) * items,
            disable=not self.ranks.is_first,
        )
