"""One step of training: forward, loss, backward, and the update of the weights."""

from contextlib import nullcontext

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.networks.encoders import Encoder
from utils.networks.losses import auxiliary_loss, box_loss, cancer_loss
from utils.networks.models import Outputs
from utils.runs.config import TrainConfig
from utils.runs.errors import TrainingError
from utils.training.inference import forward
from utils.training.loading import Batch, split_batch
from utils.training.mixing import mix
from utils.training.optimisation import autocast, is_out_of_memory, make_optimizer, pick_precision, warmup_cosine
from utils.training.ranks import Ranks

EMA_WARMUP_POWER = 2 / 3  # the average forgets its random start early, even in a short run


class Learner:
    """A network with its optimizer, schedule and running average.

    ``auxiliary_sizes`` is the number of classes of each auxiliary target, empty if none is learned.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, ranks: Ranks, steps_per_epoch: int, auxiliary_sizes: tuple[int, ...]
    ):
        self.config = config
        self.ranks = ranks
        self.device = ranks.device
        self.auxiliary_sizes = auxiliary_sizes
        self.micro_batch_size = config.micro_batch_size or config.batch_size
        if ranks.world_size > 1 and self.device.type == "cuda":
            model = convert_sync_batchnorm(model)  # statistics of the entire step; torch supports GPUs only
        for encoder in encoders_of(model):
            if encoder.is_trained:
                encoder.freeze(config.freeze_stages, config.freeze_norms)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.ema = ModelEmaV3(self.model, decay=config.ema_decay, use_warmup=True, warmup_power=EMA_WARMUP_POWER)
        if config.activation_checkpointing:
            checkpoint_activations(self.model)
        self.network = self.model
        if ranks.world_size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=devices)
        self.optimizer = make_optimizer(self.model, config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, warmup_cosine(config, steps_per_epoch))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=pick_precision(config, self.device) == torch.float16)

    def step(self, batch: Batch, number: int) -> torch.Tensor:
        """Do step ``number`` of the training with a batch; return its mean loss, on the device."""
        loss = self._backward_within_memory(batch)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.config.ema_decay:
            self.ema.update(self.model, step=number)
        return loss

    def _backward(self, batch: Batch) -> torch.Tensor:
        """Accumulate the gradients of a batch's parts; return their mean loss."""
        parts = split_batch(batch, self.micro_batch_size)
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, start=1):
            # Processes exchange gradients once a step.
            waits = self.network.no_sync() if self.network is not self.model and number < len(parts) else nullcontext()
            with waits:
                loss = self._loss(part) * (len(part["label"]) / len(batch["label"]))
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _loss(self, batch: Batch) -> torch.Tensor:
        images = batch["images"].to(self.device, non_blocking=True)
        targets = {key: batch[key].to(self.device, non_blocking=True) for key in ("label", "auxiliary", "box")}
        share = 1.0
        if self.config.mixup:
            images, share = mix(images, self.config.mixup)
        with autocast(self.config, self.device):
            outputs = forward(self.network, batch, self.device, images)
        loss = self._total_loss(outputs, targets)
        if share == 1:
            return loss
        partners = {key: value.flip(0) for key, value in targets.items()}
        return share * loss + (1 - share) * self._total_loss(outputs, partners)

    def _total_loss(self, outputs: Outputs, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        config = self.config
        loss = cancer_loss(outputs.logit.float(), targets["label"], config.label_smoothing, config.positive_weight)
        if outputs.auxiliary is not None:
            auxiliary = auxiliary_loss(outputs.auxiliary, targets["auxiliary"], self.auxiliary_sizes)
            loss = loss + config.auxiliary_weight * auxiliary
        if outputs.box is not None:
            loss = loss + config.box_weight * box_loss(outputs.box, targets["box"])
        return loss

    # Memory

    def _backward_within_memory(self, batch: Batch) -> torch.Tensor:
        """Compute a step's gradients; if memory runs out, in smaller parts from now on."""
        before = self.micro_batch_size
        while True:
            try:
                loss = self._backward(batch)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            self._free_memory(len(batch["label"]), reason)  # out here, as the error keeps the memory alive
        if self.micro_batch_size != before:
            twice = ", activations computed twice" if self._checkpoints() else ""
            print(
                f"Memory ran out: {self.micro_batch_size} items at a time from now on{twice}; a step stays"
                f" {self.config.batch_size} items. Set micro_batch_size={self.micro_batch_size} to start like this."
            )
        return loss

    def _free_memory(self, items: int, reason: str) -> None:
        """Halve the part that is computed at once, then compute activations twice, then raise TrainingError."""
        size = min(self.micro_batch_size, items)
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.ranks.world_size > 1:
            advice = f"micro_batch_size={size // 2}" if size > 1 else "activation_checkpointing=True, or choose smaller images"
            raise TrainingError(f"{reason} Several processes can't adapt to this during training: set {advice}.")
        if size > 1:
            self.micro_batch_size = -(-size // 2)
        elif not self._checkpoints() and checkpoint_activations(self.model):
            self.micro_batch_size = 1
        else:
            raise TrainingError(f"{reason} Even one {self.config.model.item} is too much: choose smaller images.")

    def _checkpoints(self) -> bool:
        return getattr(self.model, "checkpoints_activations", False)

    # What is evaluated, kept and restored

    @property
    def averaged(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.ema.module if self.config.ema_decay else self.model

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[-1]["lr"]

    def parts(self) -> dict:
        """Return the objects whose state a checkpoint keeps, by name."""
        return {
            "model": self.model,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }

    def state(self) -> dict:
        """Return a checkpoint's part: the state of `parts`, and what was learned about memory."""
        parts = {name: part.state_dict() for name, part in self.parts().items()}
        return parts | {"micro_batch_size": self.micro_batch_size, "checkpoints": self._checkpoints()}

    def restore(self, state: dict) -> None:
        """Undo `state`."""
        for name, part in self.parts().items():
            if state[name]:  # empty for a scaler that was not needed
                part.load_state_dict(state[name])
        self.micro_batch_size = min(self.micro_batch_size, state["micro_batch_size"])
        if state["checkpoints"]:
            checkpoint_activations(self.model)


def encoders_of(model: nn.Module) -> list[Encoder]:
    """Return the encoders inside a network."""
    return [module for module in model.modules() if isinstance(module, Encoder)]


def checkpoint_activations(model: nn.Module) -> bool:
    """Recompute a network's activations instead of keeping them; return False if none of its encoders can.

    Batch normalisation then updates its running statistics twice a step, with the same images.
    """
    able = [_checkpoint(encoder.backbone) for encoder in encoders_of(model)]
    model.checkpoints_activations = any(able)
    return any(able)


def _checkpoint(backbone: nn.Module) -> bool:
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # raised by timm's networks without it
        return False
    return True
