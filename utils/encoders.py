"""Image encoders: a plain CNN or any timm network, pictures in, features and feature maps out; and their weights.

Pictures come as uint8 (or float on the same scale, where two are mixed), and are normalised here, on the device.
"""

from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import adapt_input_conv
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from utils.environment import KitError

CNN_CHANNELS = (16, 32, 64, 128, 256)
SHOWN_KEYS = 6
WRAPPERS = ("state_dict_ema", "state_dict", "model")  # where checkpoints of common training scripts keep the weights
MULTIPLES = (1, 32, 64, 128, 256)  # of an image side, tried in this order when a network refuses a size
POOLINGS = ("", "avg", "max", "gem")


class ModelError(KitError, ValueError):
    """A network that can't be built, or weights that do not fit it; the message says what to change."""


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
        self.checkpointing = False
        self.fully_connected = nn.Sequential(
            nn.Linear(2 * CNN_CHANNELS[-1], self.num_features), nn.ReLU(inplace=True), nn.Dropout(dropout)
        )

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and self.training:
            return checkpoint_sequential(self.blocks, len(self.blocks), x, use_reentrant=False)
        return self.blocks(x)  # (N, 1, H, W) -> (N, 256, H/32, W/32)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
        x = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)  # (N, 512)
        return self.fully_connected(x)  # (N, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Which layer each weight is of, as in timm: for learning rates that fall from the last layer to the first."""
        return {"stem": r"^blocks\.0", "blocks": [(r"^blocks\.(\d+)", None), (r"^fully_connected", (len(CNN_CHANNELS),))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again on the way back instead of keeping them; named as in timm."""
        self.checkpointing = enable


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
        Takes float (N, 1, H, W); ``forward_features`` and ``forward_head`` are those of timm.
    num_features : int
        That it gives for a picture.
    mean, std : float
        Of the input on the [0, 1] scale.
    """

    def __init__(self, backbone: nn.Module, num_features: int, mean: float, std: float):
        super().__init__()
        self.backbone, self.num_features = backbone, num_features
        self.mean, self.std = mean, std

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give features (N, F), and the maps that they were pooled from, (N, C, h, w) in convolutional networks."""
        x = (images.float() / 255 - self.mean) / self.std  # uint8 (N, 1, H, W) -> float
        maps = self.backbone.forward_features(x.contiguous(memory_format=torch.channels_last))
        return self.backbone.forward_head(maps, pre_logits=True), maps


class GeneralisedMean(nn.Module):
    """Pooling between mean and maximum, with a learned power (GeM).

    References
    ----------
    Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation, 2018.
    """

    def __init__(self, power: float = 3.0):
        super().__init__()
        self.power = nn.Parameter(torch.tensor([power]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # powers of small numbers leave half precision
            x = x.float().clamp(min=1e-6).pow(self.power)
            return x.mean(dim=(2, 3), keepdim=True).pow(1 / self.power)  # (N, C, h, w) -> (N, C, 1, 1)


def build_encoder(
    name: str,
    image_height: int,
    image_width: int,
    pretrained: bool = False,
    weights_path: str = "",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    pooling: str = "",
) -> Encoder:
    """Build an encoder: ``cnn``, or a network of timm's without its head.

    Parameters
    ----------
    name : str
    image_height, image_width : int
    pretrained : bool
        Fetch timm's weights, which needs a network.
    weights_path : str
        A local file instead; see `load_weights`.
    dropout : float
        Of ``cnn``.
    drop_path : float
        Of residual branches, where the network has them.
    pooling : {"", "avg", "max", "gem"}
        Of the last maps; empty for the network's own.

    Raises
    ------
    ModelError
        If the network is unknown, does not take the size or the pooling, or the weights do not fit.
    """
    if name == "cnn":
        if pooling:
            raise ModelError("cnn pools by mean and maximum together: leave pooling empty.")
        backbone, mean, std = PlainCnn(dropout), 0.5, 0.5
        num_features = backbone.num_features
    else:
        num_features = check_image_size(name, image_height, image_width)
        use_hub = pretrained and not weights_path
        backbone = _create_timm(name, image_height, image_width, pretrained=use_hub, drop_path=drop_path)
        mean, std = (sum(backbone.pretrained_cfg[key]) / len(backbone.pretrained_cfg[key]) for key in ("mean", "std"))
    if weights_path:
        load_weights(backbone, weights_path)
    if pooling:
        _set_pooling(backbone, name, pooling)
    return Encoder(backbone, num_features, mean, std)


def _set_pooling(backbone: nn.Module, name: str, pooling: str) -> None:
    found = [(path, module) for path, module in backbone.named_modules() if isinstance(module, SelectAdaptivePool2d)]
    if pooling not in POOLINGS or not found or getattr(backbone, "output_fmt", "NCHW") != "NCHW":
        raise ModelError(
            f"{name} has no pooling {pooling!r}: leave pooling empty, or take a convolutional network with"
            f" one of {', '.join(POOLINGS[1:])}."
        )
    for path, module in found:
        flattens = module(torch.zeros(1, 1, 2, 2)).ndim == 2
        pool = SelectAdaptivePool2d(pool_type="max" if pooling == "max" else "avg", flatten=flattens)
        if pooling == "gem":
            pool.pool = GeneralisedMean()
        backbone.set_submodule(path, pool)


def check_image_size(architecture: str, image_height: int, image_width: int) -> int:
    """Check that a network takes images of a size, by running its shapes alone, without computing or allocating.

    Returns
    -------
    int
        Number of features that it gives for an image.

    Raises
    ------
    ModelError
        Naming the nearest size that the network does take.
    """
    num_features = _features_at(architecture, image_height, image_width)
    if num_features:
        return num_features
    for multiple in MULTIPLES:
        height, width = (max(multiple, round(side / multiple) * multiple) for side in (image_height, image_width))
        if _features_at(architecture, height, width):
            hint = f"image_height={height}, image_width={width} would do."
            break
    else:
        size = timm.get_pretrained_cfg(architecture).input_size[1:]
        hint = f"It was made for {size[0]} x {size[1]}."
    raise ModelError(f"{architecture} does not take images of {image_height} x {image_width}. {hint}")


def takes_any_size(architecture: str) -> bool:
    """Whether a network's weights are the same for every size of its images."""
    return architecture == "cnn" or not getattr(timm.get_pretrained_cfg(architecture), "fixed_input_size", False)


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


def _create_timm(name: str, image_height: int, image_width: int, pretrained: bool = False, drop_path: float = 0.0) -> nn.Module:
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:SHOWN_KEYS])
        raise ModelError(f"{name!r} is neither cnn, rnn nor a network of timm's{f'; did you mean {close}?' if close else '.'}")
    options = {"in_chans": 1, "num_classes": 0}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if not takes_any_size(name):  # transformers whose positions are tied to a size
        options["img_size"] = (image_height, image_width)
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        if drop_path and "drop_path_rate" in str(error):
            raise ModelError(f"{name} has no residual branches to leave out: set drop_path to 0.") from error
        raise


def _features_at(architecture: str, image_height: int, image_width: int) -> int | None:
    """Features for an image of a size; None where the network does not take it."""
    if architecture == "cnn":
        return CNN_CHANNELS[-1] if min(image_height, image_width) >= 2 ** len(CNN_CHANNELS) else None
    try:
        with torch.device("meta"):
            model = _create_timm(architecture, image_height, image_width).eval()
        maps = model.forward_features(torch.empty(1, 1, image_height, image_width, device="meta"))
        return model.forward_head(maps, pre_logits=True).shape[1]
    except ModelError:
        raise
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError, IndexError):
        return None


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
    return key.startswith(tuple(f"{name}." for name in (*names, "head", "fc", "classifier"))) or _is_pooling(key)


def _is_pooling(key: str) -> bool:
    return key.endswith("pool.power")  # of GeM, which a file may have where the network has not


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN_KEYS]) + (", …" if len(keys) > SHOWN_KEYS else "")
