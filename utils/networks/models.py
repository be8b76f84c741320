"""The networks: one per image, one that combines a breast's images, and a recurrent hybrid that reads them in sequence.

All take a batch from `utils.training.loading` and return one logit per item, and more in training or on request.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from utils.networks.encoders import build_encoder
from utils.networks.metadata import MetadataEmbedding, MetadataLogit
from utils.runs.config import ModelConfig
from utils.runs.errors import ModelError
from utils.tables.vocabulary import Vocabulary

RECURRENT_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
ATTENTION_SIZE = 128


class Outputs(NamedTuple):
    """A network's outputs for a batch of B items."""

    logit: torch.Tensor  # (B,), cancer
    auxiliary: torch.Tensor | None = None  # (B, sum of classes), logits of the auxiliary targets; only in training
    box: torch.Tensor | None = None  # (B, 4): x_min, y_min, x_max, y_max as shares of the image's sides


def build_model(config: ModelConfig, vocabulary: Vocabulary, auxiliary_sizes: tuple[int, ...] = ()) -> nn.Module:
    """Build a network.

    Parameters
    ----------
    config : ModelConfig
    vocabulary : Vocabulary
        Sizes the embedding tables for metadata.
    auxiliary_sizes : tuple of int
        Number of classes of each auxiliary target; empty for no auxiliary head.

    Returns
    -------
    Module
        ``model(images, metadata, lengths) -> Outputs``, with tensors from `utils.training.loading`.

    Raises
    ------
    ModelError
        If the architecture is unknown or does not support the image size, or the weights do not fit.
    """
    if config.architecture == "rnn":
        return RecurrentHybrid(vocabulary, config, auxiliary_sizes)
    network = ImageModel if config.level == "image" else MultiViewModel
    return network(vocabulary, config, auxiliary_sizes)


class ImageModel(nn.Module):
    """An encoder and a linear head: one logit per image."""

    def __init__(self, vocabulary: Vocabulary, config: ModelConfig, auxiliary_sizes: tuple[int, ...]):
        super().__init__()
        self.encoder = build_encoder(config)
        self.head = Head(self.encoder.num_features, config, vocabulary, auxiliary_sizes)
        if config.box_head and not self.encoder.map_channels:
            raise ModelError(
                "box_head needs a network whose last maps are (channels, height, width), unlike those of"
                f" {config.architecture}: choose a convolutional one."
            )
        self.box = BoxHead(self.encoder.map_channels) if config.box_head else None

    def forward(self, images: torch.Tensor, metadata: torch.Tensor, lengths: torch.Tensor) -> Outputs:
        features, maps = self.encoder(images)
        return self.head(features, metadata, lengths)._replace(box=self.box(maps) if self.box else None)


class MultiViewModel(nn.Module):
    """A shared encoder for all images of a breast, whose features are combined to one logit."""

    def __init__(self, vocabulary: Vocabulary, config: ModelConfig, auxiliary_sizes: tuple[int, ...]):
        super().__init__()
        self.encoder = build_encoder(config)
        self.attention = GatedAttention(self.encoder.num_features)
        self.head = Head(self.encoder.num_features, config, vocabulary, auxiliary_sizes)

    def forward(self, images: torch.Tensor, metadata: torch.Tensor, lengths: torch.Tensor) -> Outputs:
        features, _ = self.encoder(images)  # (N, F)
        with torch.autocast(images.device.type, enabled=False):
            features = pad_sequence(features.float().split(lengths.tolist()), batch_first=True)  # (B, V, F)
            present = torch.arange(features.shape[1]) < lengths.cpu().unsqueeze(1)  # (B, V), bool
            joined = self.attention(features, present.to(features.device))  # (B, F)
        return self.head(joined, metadata, lengths)


class GatedAttention(nn.Module):
    """A weighted mean of the features that the mask selects, with learned weights.

    Source: Ilse et al., Attention-based Deep Multiple Instance Learning, 2018.
    """

    def __init__(self, num_features: int):
        super().__init__()
        self.value, self.gate = nn.Linear(num_features, ATTENTION_SIZE), nn.Linear(num_features, ATTENTION_SIZE)
        self.score = nn.Linear(ATTENTION_SIZE, 1)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = self.score(torch.tanh(self.value(features)) * torch.sigmoid(self.gate(features))).squeeze(2)  # (B, V)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)  # (B, V)
        return (weights.unsqueeze(2) * features).sum(dim=1)  # (B, V, 1) * (B, V, F) -> (B, F)


class RecurrentHybrid(nn.Module):
    """Several encoders per image, joined with its metadata, and a recurrent cell over a breast's images.

    After Gudur et al. 2024: CNN features, ResNet50 features and metadata of each image are concatenated. A recurrent
    network reads a breast's images in view order, however many, and its last state gives one logit per breast.
    """

    def __init__(self, vocabulary: Vocabulary, config: ModelConfig, auxiliary_sizes: tuple[int, ...]):
        super().__init__()
        self.encoders = nn.ModuleList(build_encoder(self._encoder_config(name, config)) for name in config.encoders)
        self.metadata = MetadataEmbedding(vocabulary)
        num_features = sum(encoder.num_features for encoder in self.encoders) + self.metadata.num_features
        # Encoders differ in scale; without this the largest would dominate.
        self.norm = nn.LayerNorm(num_features)
        self.recurrent = RECURRENT_CELLS[config.recurrent_cell](num_features, config.hidden_size, batch_first=True)
        self.head = Head(config.hidden_size, config, vocabulary, auxiliary_sizes)

    @staticmethod
    def _encoder_config(name: str, config: ModelConfig) -> ModelConfig:
        """Return an encoder's config; weights and pooling are for timm's encoders, so the plain CNN starts from scratch."""
        if name == "cnn":
            return replace(config, architecture=name, weights_path="", pooling="")
        return replace(config, architecture=name)

    def forward(self, images: torch.Tensor, metadata: torch.Tensor, lengths: torch.Tensor) -> Outputs:
        features = [encoder(images)[0].float() for encoder in self.encoders]  # each (N, F)
        features = torch.cat([*features, self.metadata(metadata)], dim=1)  # (N, F1 + F2 + M)
        with torch.autocast(images.device.type, enabled=False):  # few numbers, and recurrent cells need float32
            features = self.norm(features)
            sequences = pad_sequence(features.split(lengths.tolist()), batch_first=True)  # (B, V, F)
            packed = pack_padded_sequence(sequences, lengths.cpu(), batch_first=True, enforce_sorted=False)
            _, state = self.recurrent(packed)
            state = state[0] if isinstance(state, tuple) else state  # an LSTM has a cell state too
        return self.head(state[-1], metadata, lengths)  # (1, B, hidden) -> (B, hidden)


class Head(nn.Module):
    """Dropout and a linear layer to the cancer logit, plus a metadata logit if metadata is read.

    A second linear layer gives the auxiliary logits, in training only.
    """

    def __init__(self, num_features: int, config: ModelConfig, vocabulary: Vocabulary, auxiliary_sizes: tuple[int, ...]):
        super().__init__()
        self.dropout, self.cancer = nn.Dropout(config.dropout), nn.Linear(num_features, 1)
        self.auxiliary = nn.Linear(num_features, sum(auxiliary_sizes)) if auxiliary_sizes else None
        self.metadata = MetadataLogit(vocabulary) if config.metadata else None

    def forward(self, features: torch.Tensor, metadata: torch.Tensor, lengths: torch.Tensor) -> Outputs:
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 has few values: logits would tie
            features = self.dropout(features.float())
            auxiliary = self.auxiliary(features) if self.auxiliary and self.training else None
            logit = self.cancer(features).squeeze(1)  # (B, 1) -> (B,)
            if self.metadata:
                logit = logit + self.metadata(metadata, lengths)
            return Outputs(logit, auxiliary)


class BoxHead(nn.Module):
    """One box per image: its centre is the mean position under a learned heat map, its size depends on the features there."""

    def __init__(self, channels: int):
        super().__init__()
        self.heat, self.size = nn.Conv2d(channels, 1, kernel_size=1), nn.Linear(channels, 2)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.float()
            weights = self.heat(maps).flatten(1).softmax(dim=1)  # (N, h * w)
            centre = weights @ _cell_centres(*maps.shape[2:], maps.device)  # (N, h * w) @ (h * w, 2) -> (N, 2)
            there = torch.einsum("np,ncp->nc", weights, maps.flatten(2))  # (N, C)
            half = torch.sigmoid(self.size(there)) / 2  # (N, 2)
            return torch.cat([centre - half, centre + half], dim=1)


def _cell_centres(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return x and y of each cell's centre as shares of the sides, (height * width, 2), row by row."""
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)
