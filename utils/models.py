"""The networks: a plain CNN, any timm network, and the recurrent hybrid that reads a breast's images and metadata in sequence.

All take a batch of `utils.dataset` and give one logit per item: pictures come as uint8, and are normalised here.
"""

from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import adapt_input_conv
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from utils.dataset import CATEGORIES, METADATA, Vocabulary
from utils.environment import KitError

CNN_CHANNELS = (16, 32, 64, 128, 256)
SHOWN_KEYS = 6
HIDE_METADATA = 0.1  # share of codes shown as "unseen" in training, so that an unseen machine meets a trained embedding
RECURRENT_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
WRAPPERS = ("state_dict_ema", "state_dict", "model")  # where checkpoints of common training scripts keep the weights
MULTIPLES = (1, 32, 64, 128, 256)  # of an image side, tried in this order when a network refuses a size


class ModelError(KitError, ValueError):
    """A network that can't be built, or weights that do not fit it; the message says what to change."""


@dataclass(frozen=True)
class ModelConfig:
    """What a network is made of.

    Parameters
    ----------
    architecture : str
        ``cnn``, ``rnn``, or a timm name such as ``resnet50``, ``efficientnet_b0`` or ``maxvit_nano_rw_256``.
    image_height, image_width : int
        In pixels.
    pretrained : bool
        Load timm's weights, which need a network; of ``rnn``, into its timm encoders.
    weights_path : str
        Load a local file instead; see `load_weights`. Empty for none.
    dropout, drop_path : float
        Before the head, and of residual branches where the network has them.
    encoders : tuple of str
        Image encoders of ``rnn``.
    recurrent_cell : {"gru", "lstm", "rnn"}
    hidden_size : int
        Of the recurrent cell.
    """

    architecture: str
    image_height: int
    image_width: int
    pretrained: bool = False
    weights_path: str = ""
    dropout: float = 0.2
    drop_path: float = 0.0
    encoders: tuple[str, ...] = ("cnn", "resnet50")
    recurrent_cell: str = "gru"
    hidden_size: int = 128

    @property
    def breast_level(self) -> bool:
        """Whether an item is a breast (`BreastDataset`) rather than an image."""
        return self.architecture == "rnn"


def build_model(config: ModelConfig, vocabulary: Vocabulary) -> nn.Module:
    """Build a network.

    Parameters
    ----------
    config : ModelConfig
    vocabulary : Vocabulary
        Sizes the metadata embeddings of ``rnn``.

    Returns
    -------
    Module
        ``model(images, metadata, lengths) -> logits (B,)``, with the tensors of `utils.dataset`.

    Raises
    ------
    ModelError
        If the architecture is unknown, the image size does not suit it, or the weights do not fit.
    """
    if config.architecture != "rnn":
        return ImageModel(_build_encoder(config.architecture, config), config.dropout)
    if config.recurrent_cell not in RECURRENT_CELLS:
        raise ModelError(f"recurrent_cell is {config.recurrent_cell!r}; choose from {', '.join(RECURRENT_CELLS)}.")
    encoders = [_build_encoder(name, config) for name in config.encoders]
    return RecurrentHybrid(encoders, vocabulary, config)


class PlainCnn(nn.Module):
    """Five blocks of convolution, normalisation, ReLU and pooling, then a fully connected layer; trained from scratch.

    After the CNN of Gudur et al. 2024. The last feature map is pooled by its mean and its maximum, so that images of any size
    are taken and a small lesion is not averaged away.
    """

    def __init__(self, dropout: float):
        super().__init__()
        channels = (1, *CNN_CHANNELS)
        self.blocks = nn.Sequential(*[_conv_block(a, b) for a, b in zip(channels, channels[1:], strict=False)])
        self.num_features = CNN_CHANNELS[-1]
        self.fully_connected = nn.Sequential(
            nn.Linear(2 * CNN_CHANNELS[-1], self.num_features), nn.ReLU(inplace=True), nn.Dropout(dropout)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x)  # (N, 1, H, W) -> (N, 256, H/32, W/32)
        x = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)  # (N, 512)
        return self.fully_connected(x)  # (N, 256)


def _conv_block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


class Encoder(nn.Module):
    """A network that turns uint8 pictures into features, with the input normalisation that its weights expect.

    Parameters
    ----------
    backbone : Module
        Takes float (N, 1, H, W), gives (N, num_features).
    mean, std : float
        Of the input on the [0, 1] scale.
    """

    def __init__(self, backbone: nn.Module, mean: float, std: float):
        super().__init__()
        self.backbone, self.num_features = backbone, backbone.num_features
        self.mean, self.std = mean, std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (images.float() / 255 - self.mean) / self.std  # uint8 (N, 1, H, W) -> float
        return self.backbone(x.contiguous(memory_format=torch.channels_last))  # (N, F)


class ImageModel(nn.Module):
    """An encoder and a linear head: one logit per image. Metadata is ignored."""

    def __init__(self, encoder: Encoder, dropout: float):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.num_features, 1)

    def forward(self, images: torch.Tensor, metadata: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        features = self.encoder(images).float()
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 has few values: logits would tie
            return self.head(self.dropout(features)).squeeze(1)  # (B, 1) -> (B,)


class RecurrentHybrid(nn.Module):
    """Every image of a breast through several encoders, joined with its metadata, and a recurrent cell over the images.

    After Gudur et al. 2024: CNN and ResNet50 features and the metadata of each image are concatenated, and a recurrent network
    reads the breast's images in view order, any number of them; its last state gives one logit per breast.
    """

    def __init__(self, encoders: list[Encoder], vocabulary: Vocabulary, config: ModelConfig):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.metadata = MetadataEmbedding(vocabulary)
        num_features = sum(encoder.num_features for encoder in encoders) + self.metadata.num_features
        # Encoders differ in scale; without this the loudest would drown the others.
        self.norm = nn.LayerNorm(num_features)
        self.recurrent = RECURRENT_CELLS[config.recurrent_cell](num_features, config.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, images: torch.Tensor, metadata: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        features = [encoder(images).float() for encoder in self.encoders]  # each (N, F)
        features = torch.cat([*features, self.metadata(metadata)], dim=1)  # (N, F1 + F2 + M)
        with torch.autocast(images.device.type, enabled=False):  # few numbers, and recurrent cells want float32
            features = self.norm(features)
            sequences = pad_sequence(features.split(lengths.tolist()), batch_first=True)  # (B, V, F)
            packed = pack_padded_sequence(sequences, lengths.cpu(), batch_first=True, enforce_sorted=False)
            _, state = self.recurrent(packed)
            state = state[0] if isinstance(state, tuple) else state  # an LSTM has a cell state too
            return self.head(self.dropout(state[-1])).squeeze(1)  # (1, B, hidden) -> (B, hidden) -> (B,)


class MetadataEmbedding(nn.Module):
    """Embed the test-time metadata of an image: numbers as they are, categories by a table whose entry 0 is "unseen"."""

    def __init__(self, vocabulary: Vocabulary, size: int = 8):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(len(getattr(vocabulary, column)) + 1, size) for column in CATEGORIES)
        self.num_numbers = len(METADATA) - len(CATEGORIES)
        self.num_features = self.num_numbers + size * len(CATEGORIES)

    def forward(self, metadata: torch.Tensor) -> torch.Tensor:
        numbers, codes = metadata[:, : self.num_numbers], metadata[:, self.num_numbers :].long()  # (N, 3), (N, 3)
        if self.training:
            codes = codes * (torch.rand(codes.shape, device=codes.device) >= HIDE_METADATA)
        embedded = [table(codes[:, column]) for column, table in enumerate(self.tables)]  # each (N, size)
        return torch.cat([numbers, *embedded], dim=1)


def check_image_size(architecture: str, image_height: int, image_width: int) -> None:
    """Check that a network takes images of a size, by running its shapes alone, without computing or allocating.

    Raises
    ------
    ModelError
        Naming the nearest size that the network does take.
    """
    if _takes_size(architecture, image_height, image_width):
        return
    for multiple in MULTIPLES:
        height, width = (max(multiple, round(side / multiple) * multiple) for side in (image_height, image_width))
        if _takes_size(architecture, height, width):
            hint = f"image_height={height}, image_width={width} would do."
            break
    else:
        size = timm.get_pretrained_cfg(architecture).input_size[1:]
        hint = f"It was made for {size[0]} x {size[1]}."
    raise ModelError(f"{architecture} does not take images of {image_height} x {image_width}. {hint}")


def load_weights(model: nn.Module, path: str | Path) -> list[str]:
    """Load an encoder's weights from a local file: safetensors, or a state dict that torch loads with ``weights_only``.

    Strict apart from the head, which is left as it is, and the stem, whose RGB filters are summed for the one input channel.
    A state dict with other names but the same shapes in the same order (another implementation of the same network) is
    matched by position.

    Parameters
    ----------
    model : Module
        A timm network with one input channel and no head, or a `PlainCnn`.
    path : path

    Returns
    -------
    list of str
        Names in the file that were left out: the head's.

    Raises
    ------
    ModelError
        If the file can't be read safely or its tensors do not fit; lists which.
    """
    found = _strip(_read_state(Path(path)))
    wanted = model.state_dict()
    if not set(found) & set(wanted):
        found = _match_by_position(found, wanted, path)
    head = [key for key in found if key not in wanted and _is_head(key, model)]
    state = {key: _adapt_stem(value, wanted.get(key)) for key, value in found.items() if key not in head}
    problems = {
        "missing in the file": [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")],
        "not in the network": [key for key in state if key not in wanted],
        "of another shape": [key for key in state if key in wanted and state[key].shape != wanted[key].shape],
    }
    listed = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if listed:
        raise ModelError(f"{path} does not fit {type(model).__name__}. {'; '.join(listed)}. Is it the same architecture?")
    model.load_state_dict(state, strict=False)
    return head


def _build_encoder(name: str, config: ModelConfig) -> Encoder:
    if name == "cnn":
        backbone, mean, std = PlainCnn(config.dropout), 0.5, 0.5
    else:
        check_image_size(name, config.image_height, config.image_width)
        use_hub = config.pretrained and not config.weights_path
        backbone = _create_timm(name, config.image_height, config.image_width, pretrained=use_hub, drop_path=config.drop_path)
        cfg = backbone.pretrained_cfg
        mean, std = (sum(cfg[key]) / len(cfg[key]) for key in ("mean", "std"))
    # The hybrid's file is meant for its timm encoders; its plain CNN is trained from scratch.
    if config.weights_path and not (config.breast_level and name == "cnn"):
        load_weights(backbone, config.weights_path)
    return Encoder(backbone, mean, std)


def _create_timm(name: str, image_height: int, image_width: int, pretrained: bool = False, drop_path: float = 0.0) -> nn.Module:
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:SHOWN_KEYS])
        raise ModelError(f"{name!r} is neither cnn, rnn nor a network of timm's{f'; did you mean {close}?' if close else '.'}")
    options = {"in_chans": 1, "num_classes": 0}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):  # transformers whose positions are tied to a size
        options["img_size"] = (image_height, image_width)
    return timm.create_model(name, pretrained=pretrained, **options)


def _takes_size(architecture: str, image_height: int, image_width: int) -> bool:
    if architecture == "cnn":
        return min(image_height, image_width) >= 2 ** len(CNN_CHANNELS)
    try:
        with torch.device("meta"):
            model = _create_timm(architecture, image_height, image_width).eval()
        model(torch.empty(1, 1, image_height, image_width, device="meta"))
    except ModelError:
        raise
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError, IndexError):
        return False
    return True


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ModelError(f"weights_path {path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            _warn_of_own_weights(path)
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds on a broken or unsafe file
        raise ModelError(f"{path} can't be read as plain weights ({type(error).__name__}: {error}).") from error
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict; save model.state_dict() or use safetensors.")
    return state


def _warn_of_own_weights(path: Path) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        if "vocabulary" in (file.metadata() or {}):
            print(f"{path} was trained by this kit: patients that it saw are not out of fold in what follows.")


def _strip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop the prefixes that wrappers add: DataParallel's, and this kit's own where the file is one of its runs."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own = {key.removeprefix("encoder.backbone."): value for key, value in state.items() if key.startswith("encoder.backbone.")}
    return own or state


def _match_by_position(found: dict, wanted: dict, path: str | Path) -> dict[str, torch.Tensor]:
    # Counters of batches (0-dimensional) are absent from older files, and no result depends on them.
    values = [value for value in found.values() if value.ndim]
    names = [key for key, value in wanted.items() if value.ndim]
    adapted = [_adapt_stem(value, wanted[name]) for name, value in zip(names, values, strict=False)]
    if len(values) < len(names) or any(value.shape != wanted[n].shape for n, value in zip(names, adapted, strict=True)):
        return found
    print(f"{path}: other names, same shapes in the same order: matched by position.")
    return dict(zip(names, adapted, strict=True))


def _adapt_stem(value: torch.Tensor, wanted: torch.Tensor | None) -> torch.Tensor:
    """Sum RGB filters for one input channel, which is what timm does: a grey picture then gives what its RGB copy would."""
    is_stem = wanted is not None and value.ndim == 4 and (value.shape[1], wanted.shape[1]) == (3, 1)
    return adapt_input_conv(1, value) if is_stem else value


def _is_head(key: str, model: nn.Module) -> bool:
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return key.startswith(tuple(f"{name}." for name in (*names, "head", "fc", "classifier")))


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (", …" if len(keys) > SHOWN_KEYS else "")
