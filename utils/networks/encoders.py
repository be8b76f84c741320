"""Image encoders (a plain CNN or any timm network) that return features and feature maps, and their weights.

Images are uint8, or float from 0 to 255 if two are mixed. They are normalised here, on the device.
"""

import contextlib
import pickle
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain
from statistics import fmean

import timm
import torch
from timm.models import adapt_input_conv, group_modules
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from utils.core.names import nearest_name
from utils.networks.weights import Tensors, find_weights, load_fitting, read_weights
from utils.runs.config import ModelConfig
from utils.runs.errors import ModelError

CNN_CHANNELS = (16, 32, 64, 128, 256)
RGB = 3  # channels
USUAL_STRIDE = 32  # pixels per cell of the last maps
STRIDES = (1, 2, 4, 8)  # multiples of the stride to which sides are rounded if a network refuses a size
POOLINGS = ("", "stages")
POOLED_STAGES = 3  # the last ones; strides 8, 16 and 32 in most networks


class PlainCnn(nn.Module):
    """Five blocks of convolution, normalisation, ReLU and pooling, then a fully connected layer; trained from scratch.

    After the CNN of Gudur et al. 2024. The mean and the maximum of the last maps are pooled, so that any image size works
    and a small lesion is not averaged away. Methods and attributes have timm's names.
    """

    pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}  # as in timm's networks

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
        """Return patterns that assign weights to stages, as in timm, for freezing the first ones."""
        return {"stem": r"^blocks\.0", "blocks": [(r"^blocks\.(\d+)", None), (r"^fully_connected", (len(CNN_CHANNELS),))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of storing them."""
        self.checkpointing = enable


def _conv_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Make a block that halves height and width."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


class Encoder(nn.Module):
    """A network that turns uint8 images into features, with the input normalisation that its weights expect.

    Parameters
    ----------
    backbone : Module
        Takes float (N, 1, H, W); has timm's ``forward_features``, ``forward_head`` and ``pretrained_cfg``.
    num_features : int
        Number of features per image.
    map_channels : int
        Channels of the last maps; 0 if they are not (N, C, h, w).
    pools_stages : bool
        Features are the mean and maximum of the maps of the last `POOLED_STAGES` stages instead of the network's own
        pooling.
    is_trained : bool
        True if the weights come from earlier training.
    """

    def __init__(self, backbone: nn.Module, num_features: int, map_channels: int, pools_stages: bool, is_trained: bool):
        super().__init__()
        self.backbone = backbone
        self.num_features = num_features
        self.map_channels = map_channels
        self.pools_stages = pools_stages
        self.is_trained = is_trained
        self.mean, self.std = (fmean(backbone.pretrained_cfg[key]) for key in ("mean", "std"))  # over RGB, on the [0, 1] scale
        self._at_rest: list[nn.Module] = []  # a plain list, since the backbone already owns these modules

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (N, F), and the last maps, (N, C, h, w) in convolutional networks."""
        x = (images.float() / 255 - self.mean) / self.std  # uint8 (N, 1, H, W) -> float
        x = x.contiguous(memory_format=torch.channels_last)
        if self.pools_stages:
            maps, stages = self.backbone.forward_intermediates(x, indices=POOLED_STAGES)
            pooled = [stage.mean(dim=(2, 3)) for stage in stages] + [stage.amax(dim=(2, 3)) for stage in stages]
            return torch.cat(pooled, dim=1), maps  # each (N, C, h, w) -> (N, C)
        maps = self.backbone.forward_features(x)
        features = self.backbone.forward_head(maps, pre_logits=True)
        return features, maps if isinstance(maps, torch.Tensor) else maps[-1]  # if there are several scales, the last

    def freeze(self, stages: int, norms: bool) -> None:
        """Freeze the weights of the first stages, and batch normalisation statistics there or everywhere.

        Parameters
        ----------
        stages : int
            In timm's coarse grouping of layers, in which the stem is the first stage.
        norms : bool
            Keep the loaded batch normalisation statistics in all stages.

        Raises
        ------
        ModelError
            If the network has fewer stages.
        """
        groups = list(group_modules(self.backbone, self.backbone.group_matcher(coarse=True), return_values=True).values())
        if stages > len(groups):
            raise ModelError(f"freeze_stages is {stages}, but the network has {len(groups)} stages.")
        frozen = [module for group in groups[:stages] for module in group]
        for module in frozen:
            module.requires_grad_(False)
        batch_norms = [module for module in self.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self._at_rest = frozen + batch_norms if norms else frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> "Encoder":
        """Set training or evaluation mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        for module in self._at_rest:
            module.eval()
        return self


def build_encoder(config: ModelConfig) -> Encoder:
    """Build ``cnn``, or a timm network without its head.

    Parameters
    ----------
    config : ModelConfig
        Its ``architecture`` is ``cnn`` or a name of timm's. ``weights_path`` takes precedence over ``pretrained``.

    Raises
    ------
    ModelError
        If the network is unknown, does not support the size or the pooling, or the weights are unreadable or do not fit.
    """
    name, path = config.architecture, config.weights_path
    num_features, map_channels = find_shapes(name, config.image_height, config.image_width)
    if name == "cnn":
        backbone = PlainCnn(config.dropout)
    else:
        pretrained = config.pretrained and not path
        backbone = _create_timm(name, config.image_height, config.image_width, pretrained, config.drop_path)
    if path:  # if a file lacks some weights, timm would silently keep random ones; `load_fitting` raises
        weights = find_weights(read_weights(path), backbone.state_dict(), path)
        load_fitting(backbone, _as_timm_has_them(backbone, weights), path, name)
    if config.pooling:
        num_features = _count_stage_features(backbone, name, config.pooling, map_channels)
    return Encoder(backbone, num_features, map_channels, bool(config.pooling), bool(path or config.pretrained))


def _count_stage_features(backbone: nn.Module, name: str, pooling: str, map_channels: int) -> int:
    """Return the number of features from pooling by stages; raise ModelError if the network does not support it."""
    has_stages = map_channels > 0 and hasattr(backbone, "forward_intermediates")
    if pooling not in POOLINGS or not has_stages or len(backbone.feature_info) < POOLED_STAGES:
        raise ModelError(
            f"{name} has no pooling {pooling!r}: leave pooling empty, or take a convolutional network of timm's with"
            f" {', '.join(POOLINGS[1:])}."
        )
    return 2 * sum(info["num_chs"] for info in list(backbone.feature_info)[-POOLED_STAGES:])


def find_shapes(architecture: str, image_height: int, image_width: int) -> tuple[int, int]:
    """Return the number of features and the channels of the last maps (0 if not (N, C, h, w)), without computing if possible.

    Raise ModelError if the network does not take the size; the message names a near size that works.
    """
    asked = (image_height, image_width)
    # Some networks, and many in older versions of timm, compute while they are built, which needs real numbers.
    for device in ("meta", "cpu"):
        for size in chain([asked], _other_sizes(architecture, *asked)):
            shapes = _shapes_at(architecture, *size, device)
            if shapes and size == asked:
                return shapes
            if shapes:
                raise ModelError(
                    f"{architecture} does not take images of {image_height} x {image_width}. image_height={size[0]},"
                    f" image_width={size[1]} would do."
                )
    raise ModelError(
        f"{architecture} does not take grey images of {image_height} x {image_width}, nor of any other size that was tried."
        " Choose another architecture."
    )


def _other_sizes(architecture: str, image_height: int, image_width: int) -> Iterator[tuple[int, int]]:
    """Yield sizes that a network may take: multiples of its stride near the requested size, squares, and its own size."""
    stride, own = _stride_and_size(architecture)
    multiples = [factor * stride for factor in STRIDES]
    for multiple in multiples:
        yield tuple(max(multiple, round(side / multiple) * multiple) for side in (image_height, image_width))
    for multiple in multiples:
        side = max(multiple, round(max(image_height, image_width) / multiple) * multiple)
        yield side, side
    yield own


def _stride_and_size(architecture: str) -> tuple[int, tuple[int, int]]:
    """Return the stride of a network's last maps in pixels, and the image size that it was made for."""
    if architecture == "cnn":
        return 2 ** len(CNN_CHANNELS), (2 ** len(CNN_CHANNELS),) * 2
    own = tuple(_pretrained_cfg(architecture)["input_size"][1:])
    stages = getattr(_skeleton(architecture, *own), "feature_info", None) or [{"reduction": USUAL_STRIDE}]
    return max(stage["reduction"] for stage in stages), own


def takes_any_size(architecture: str) -> bool:
    """True if a network's weights are the same for all image sizes."""
    return architecture == "cnn" or not _pretrained_cfg(architecture).get("fixed_input_size", False)


@cache
def _pretrained_cfg(architecture: str) -> dict:
    """Return timm's metadata on a network's weights; for an old name timm must build the network first."""
    known = timm.get_pretrained_cfg(architecture)
    return known.to_dict() if known else timm.create_model(architecture).pretrained_cfg


def _create_timm(name: str, image_height: int, image_width: int, pretrained: bool = False, drop_path: float = 0.0) -> nn.Module:
    """Build a timm network for one-channel images, without its head.

    Raise ModelError if timm has no such network, or its weights are unreadable.
    """
    if not timm.is_model(name):
        nearest = nearest_name(name, ["cnn", "rnn", *timm.list_models()])
        hint = f" The nearest name is {nearest}." if nearest else ""
        raise ModelError(f"{name!r} is neither cnn, rnn nor a network of timm's.{hint}")
    try:
        return timm.create_model(
            name,
            pretrained=pretrained,
            in_chans=1,
            num_classes=0,
            drop_path_rate=drop_path or None,  # timm leaves out None, since not every network has these
            img_size=None if takes_any_size(name) else (image_height, image_width),  # of tables of positions
        )
    except (pickle.UnpicklingError, RuntimeError) as error:
        if not isinstance(error.__cause__ or error, pickle.UnpicklingError):
            raise
        # "from None" since the texts of torch and timm advise unsafe loading.
        raise ModelError(
            f"timm's weights of {name} are damaged or hold more than weights. Delete them from the hub's cache (HF_HOME),"
            " or set weights_path to another file."
        ) from None
    except TypeError as error:
        if drop_path and "drop_path_rate" in str(error):
            raise ModelError(f"{name} has no residual branches to leave out: set drop_path to 0.") from error
        raise


def _as_timm_has_them(model: nn.Module, weights: Tensors) -> Tensors:
    """Let timm rename old layouts, resize position tables, and sum the stem's RGB filters, as its ``pretrained`` does."""
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename:
        with contextlib.suppress(Exception):  # it expects names that another network's weights lack
            weights = rename(dict(weights), model)
    stems = model.pretrained_cfg.get("first_conv") or ()
    for stem in (stems,) if isinstance(stems, str) else stems:
        filters = weights.get(f"{stem}.weight")
        if filters is not None and filters.ndim == 4 and filters.shape[1] == RGB:
            weights = weights | {f"{stem}.weight": adapt_input_conv(1, filters)}
    return weights


def _skeleton(name: str, image_height: int, image_width: int) -> nn.Module:
    """Build a network only for its names and shapes, on the meta device if possible."""
    try:
        with torch.device("meta"):
            return _create_timm(name, image_height, image_width)
    except RuntimeError:  # the network computes while it is built
        return _create_timm(name, image_height, image_width)


def _shapes_at(architecture: str, image_height: int, image_width: int, device: str) -> tuple[int, int] | None:
    """Return features and last maps' channels for an image size, or None if the network does not take it."""
    if architecture == "cnn":
        return (CNN_CHANNELS[-1], CNN_CHANNELS[-1]) if min(image_height, image_width) >= 2 ** len(CNN_CHANNELS) else None
    try:
        with torch.device(device), torch.inference_mode():
            model = _create_timm(architecture, image_height, image_width).eval()
            maps = model.forward_features(torch.zeros(1, 1, image_height, image_width))
            num_features = model.forward_head(maps, pre_logits=True).shape[1]
            is_map = isinstance(maps, torch.Tensor) and maps.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW"
            return num_features, maps.shape[1] if is_map else 0
    except ModelError:
        raise
    except Exception:  # each network raises its own types
        return None
