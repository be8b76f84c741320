"""Maps of the image parts that a network's logit rests on (HiResCAM or Grad-CAM), and how they map to the stored image.

A map is float32 of shape (image_height, image_width) in [0, 1], on the cached image. 1 is the strongest part of that
image, so maps of different images are not comparable. A map of zeros means that nothing in the image speaks for cancer.
`utils.evaluation.pointing` tests maps on images with true boxes.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn

from utils.core.devices import pick_device
from utils.core.errors import KitError
from utils.images.boxes import CROP
from utils.images.cached import read_manifest
from utils.images.resample import fitted_size
from utils.images.settings import CacheSettings
from utils.metrics.scores import decide
from utils.networks.encoders import CNN_CHANNELS, Encoder, PlainCnn, build_encoder
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.run import Run
from utils.training.dataset import ImageDataset, make_dataset
from utils.training.fold_weights import load_fold
from utils.training.inference import forward
from utils.training.loading import Batch, make_loader

Maps = dict[str, np.ndarray]  # by image_id

KINDS = ("true positive", "false positive", "miss", "true negative")
HIRESCAM, GRAD_CAM = "HiResCAM (Draelos and Carin 2020)", "Grad-CAM (Selvaraju et al. 2017)"
FINER = 1  # share of hits of Grad-CAM in the pointing game on the phantom at 160 x 96: 0.85 with 1, 0.40 with 0, 0.15 with 2
SHOWN_IMAGES = 3


class ExplanationError(KitError):
    """Images or a network that cannot be explained; the message says what to do."""


def explain_run(
    run_dir: str | Path,
    images: pd.DataFrame,
    cache_dir: str | Path,
    image_ids: Iterable[str] | None = None,
) -> Maps:
    """Explain a run's out-of-fold predictions: each image by the network that never saw its patient.

    ``images`` is the complete training table, as a breast is explained with all images that it was predicted from. An
    image that ``max_views`` left out has no map. Raise ExplanationError if an image is not in the table, the cache or
    the run, and `utils.runs.config.TrainingError` if the run or a needed fold is unfinished.
    """
    config = Run(run_dir).config
    wanted = set(images.image_id if image_ids is None else image_ids)
    images = images.assign(fold=Run(run_dir).fold_of(images.patient_id))
    _check_images(wanted, images, read_manifest(cache_dir, "train", config.preprocessing), cache_dir)
    item = images.prediction_id if config.model.item == "breast" else images.image_id
    needed = images[item.isin(item[images.image_id.isin(wanted)])]
    maps, device = {}, pick_device()
    for fold, rows in needed.groupby("fold"):
        model, vocabulary = load_fold(config, Path(run_dir) / f"fold{int(fold)}")
        dataset = make_dataset(config, rows, cache_dir, "train", vocabulary)
        maps |= explain(model.to(device), dataset, config, device)
    return {image_id: heat for image_id, heat in maps.items() if image_id in wanted}


def explain(model: nn.Module, dataset: ImageDataset, config: TrainConfig, device: torch.device, finer: int = FINER) -> Maps:
    """Explain the logit of each item on late maps of its encoders, by HiResCAM or, before layer normalisation, Grad-CAM.

    HiResCAM sums the logit's gradient times the value over all channels of a cell, which is the cell's contribution to
    the logit, to first order (Draelos and Carin 2020, arXiv:2011.08891). Layer normalisation undoes any scaling of its
    input, so the products before it sum to zero: in each cell (ConvNeXt), or over cells that are normalised together
    (Swin). Ali et al. (ICML 2022) give this as a reason why such products mislead in Transformers. Batch normalisation
    has a fixed scale here. Grad-CAM averages the gradient over all cells first (Selvaraju et al., ICCV 2017).

    Times its number of cells, an encoder's map is in units of the logit. Maps of several encoders (``rnn``) are
    resized to the image and added, so each counts as much as it moves the logit. Evidence against cancer is then set
    to zero. ``test_time_flip`` adds the mirrored image's map.

    Cells are ``2 ** finer`` times smaller than those of the last maps. 0 takes the last maps, as both papers do, but
    their cells of mostly 32 x 32 pixels are larger than a small lesion. In a ViT all cells have the same size.

    Raise ExplanationError if an encoder has no maps or tokens, or none that are fine enough. It runs in float32, as
    gradients vanish in half precision, and needs a training step's memory.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.train()  # cuDNN has no gradient of recurrent cells in eval mode; without dropout the modes agree
    maps = {}
    for batch in make_loader(dataset, config.micro_batch_size or config.batch_size):
        heats = _heats(model, batch, config, device, finer)
        maps |= zip(dataset.images.image_id.iloc[batch["rows"].tolist()], heats, strict=True)
    model.eval()
    return maps


def check_network(config: TrainConfig) -> None:
    """Check by shapes that a network can be explained; raise ExplanationError if not."""
    for encoder in _untrained_encoders(config):
        device = next(encoder.parameters()).device
        images = torch.zeros(1, 1, config.model.image_height, config.model.image_width, device=device)
        layer = _layer(encoder, FINER)
        with device, torch.no_grad(), _kept_outputs({encoder: layer}) as outputs:
            encoder(images)
        _as_maps(outputs.get(encoder), encoder, layer, images)


def name_method(config: TrainConfig) -> str:
    """Return which method explains a network, for each encoder if they differ."""
    methods = [_method(encoder, _layer(encoder, FINER)) for encoder in _untrained_encoders(config)]
    if len(set(methods)) == 1:
        return methods[0]
    return ", ".join(f"{method} of {name}" for name, method in zip(config.model.encoder_names, methods, strict=True))


def to_source_map(heat: np.ndarray, row: pd.Series, settings: CacheSettings) -> np.ndarray:
    """Map heat from the cached image to the stored one, as `utils.images.boxes.to_source` does boxes.

    ``row`` is the image's row of the manifest. Return float32 (source_height, source_width), zero outside the crop.
    """
    top, left, bottom, right = (int(float(row[name])) for name in CROP)
    height, width = fitted_size((bottom - top, right - left), settings.image_height, settings.image_width)
    above = (settings.image_height - height) // 2
    part = heat[above : above + height, :width]
    part = part[:, ::-1] if int(row.flipped) else part
    source = np.zeros((int(row.source_height), int(row.source_width)), dtype=np.float32)
    resized = cv2.resize(np.ascontiguousarray(part), (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    source[top:bottom, left:right] = resized
    return source


def choose_examples(breasts: pd.DataFrame, images: pd.DataFrame, threshold: float, count: int = 4) -> pd.DataFrame:
    """Choose the ``count`` surest breasts of each kind of decision, each by its first image, CC before MLO.

    Return rows of ``images`` with the columns kind and probability, in the order of `KINDS`.
    """
    decided = decide(breasts.probability, threshold) == 1
    kinds = np.select([decided & (breasts.cancer == 1), decided, breasts.cancer == 1], KINDS[:3], KINDS[3])
    first = images.sort_values(["view", "image_id"]).drop_duplicates("prediction_id")
    table = first.merge(breasts.assign(kind=kinds)[["prediction_id", "kind", "probability"]], on="prediction_id")
    surest = table.sort_values("probability", kind="stable")
    parts = [surest[surest.kind == kind] for kind in KINDS]
    parts = [part[::-1] if kind.endswith("positive") else part for kind, part in zip(KINDS, parts, strict=True)]
    return pd.concat([part.head(count) for part in parts], ignore_index=True)


# Maps


def _heats(model: nn.Module, batch: Batch, config: TrainConfig, device: torch.device, finer: int) -> np.ndarray:
    """Return the maps of a batch's images: (N, H, W), float32 in [0, 1]."""
    images = batch["images"].to(device)
    evidence = _evidence(model, batch, images, finer)
    if config.test_time_flip:
        evidence = evidence + _evidence(model, batch, images.flip(-1), finer).flip(-1)
    evidence = evidence.clamp(min=0)
    highest = evidence.amax(dim=(1, 2), keepdim=True)
    return (evidence / highest.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1).cpu().numpy()


class _Layer(NamedTuple):
    """A layer whose output is explained."""

    module: nn.Module
    stride: int  # side of a cell, px
    channels: int  # 0 if unknown


def _evidence(model: nn.Module, batch: Batch, images: torch.Tensor, finer: int) -> torch.Tensor:
    """Return the contribution of each image part to its item's logit, from the maps of all encoders: (N, H, W)."""
    images = images.float().requires_grad_()  # so that gradients exist even if an encoder's weights are frozen
    layers = {encoder: _layer(encoder, finer) for encoder in model.modules() if isinstance(encoder, Encoder)}
    with _kept_outputs(layers) as outputs:
        logit = forward(model, batch, images.device, images).logit  # items are independent, so one pass serves all
    evidence = torch.zeros(len(images), 1, *images.shape[2:], device=images.device)
    for encoder, layer in layers.items():
        maps = _as_maps(outputs.get(encoder), encoder, layer, images)  # (N, C, h, w)
        (gradient,) = torch.autograd.grad(logit.sum(), outputs[encoder], retain_graph=True)
        gradient = _as_maps(gradient, encoder, layer, images)
        if outputs[encoder].ndim == 3 and not gradient.any():
            _refuse(encoder)  # only the class token is pooled, and it has no place in the image
        if _method(encoder, layer) == GRAD_CAM:
            gradient = gradient.mean(dim=(2, 3), keepdim=True)
        cam = (gradient * maps.detach()).sum(dim=1, keepdim=True)  # (N, 1, h, w)
        cells = cam.shape[2] * cam.shape[3]
        evidence += nn.functional.interpolate(cam * cells, tuple(images.shape[2:]), mode="bilinear")
    return evidence.squeeze(1)


@contextmanager
def _kept_outputs(layers: dict[Encoder, _Layer]) -> Iterator[dict[Encoder, torch.Tensor]]:
    """Keep the outputs of the explained layers while their networks run."""
    outputs: dict[Encoder, torch.Tensor] = {}
    with ExitStack() as hooks:
        for encoder, layer in layers.items():
            hooks.enter_context(layer.module.register_forward_hook(partial(_keep, outputs, encoder)))
        yield outputs


def _keep(outputs: dict, encoder: Encoder, module: nn.Module, inputs: tuple, output: object) -> torch.Tensor | None:
    """Keep a layer's output; the network continues with a copy, since later layers may change it in place."""
    if isinstance(output, torch.Tensor):
        outputs[encoder] = output
        return output.clone()
    if module is encoder:
        outputs[encoder] = output[1]  # features and maps
    return None


def _untrained_encoders(config: TrainConfig) -> Iterator[Encoder]:
    """Build a network's encoders, without values if possible."""
    for name in config.model.encoder_names:
        model = ModelConfig(name, config.model.image_height, config.model.image_width)
        try:
            with torch.device("meta"):
                encoder = build_encoder(model)
        except RuntimeError:  # its constructor computes with values, which meta tensors lack
            encoder = build_encoder(model)
        yield encoder.eval()


def _method(encoder: Encoder, layer: _Layer) -> str:
    """Return HiResCAM if the first normalisation after a layer is batch normalisation, or there is none; else Grad-CAM."""
    modules, inside = list(encoder.modules()), set(layer.module.modules())  # listed in the order in which timm runs them
    last = max(number for number, module in enumerate(modules) if module in inside)
    first = next((type(module).__name__ for module in modules[last + 1 :] if _is_norm(module)), None)
    return HIRESCAM if first is None or "BatchNorm" in first else GRAD_CAM


def _is_norm(module: nn.Module) -> bool:
    """True for a normalisation of any kind, by its name; not for a block that is named after its normalisation."""
    is_block = any(list(child.parameters()) for child in module.children())
    return "Norm" in type(module).__name__ and not is_block


def _layer(encoder: Encoder, finer: int) -> _Layer:
    """Find the layer whose cells are ``2 ** finer`` times smaller than the last maps'; 0 gives the encoder itself.

    If all layers have cells of one size (ViT), it is the last but one: after the last, the logit may rest on the class
    token alone.
    """
    layers = _layers(encoder.backbone)
    strides = {layer.stride for layer in layers}
    if len(layers) > 1 and len(strides) == 1:
        return layers[-2]
    if not finer:
        return _Layer(encoder, max(strides, default=1), 0)
    if not layers:
        _refuse(encoder)
    wanted = max(strides) / 2**finer
    if wanted not in strides:
        name = type(encoder.backbone).__name__
        raise ExplanationError(f"{name} has no maps {2**finer} times finer than its last: lower finer.")
    return [layer for layer in layers if layer.stride == wanted][-1]


def _layers(backbone: nn.Module) -> list[_Layer]:
    """List the layers that give maps, from first to last."""
    if isinstance(backbone, PlainCnn):
        numbered = enumerate(zip(backbone.blocks, CNN_CHANNELS, strict=True), start=1)
        return [_Layer(block, 2**number, channels) for number, (block, channels) in numbered]
    modules = dict(backbone.named_modules())
    stages = [stage for stage in getattr(backbone, "feature_info", None) or [] if stage["module"] in modules]
    return [_Layer(modules[stage["module"]], stage["reduction"], stage["num_chs"]) for stage in stages]


def _as_maps(values: torch.Tensor | None, encoder: Encoder, layer: _Layer, images: torch.Tensor) -> torch.Tensor:
    """Return a layer's output as maps (N, C, h, w); it may be maps, maps with channels last (Swin), or tokens (ViT)."""
    if values is None:
        _refuse(encoder)
    if values.ndim == 4:
        says_last = getattr(encoder.backbone, "output_fmt", "NCHW") == "NHWC"
        shows_last = values.shape[3] == layer.channels != values.shape[1]
        return values.permute(0, 3, 1, 2) if says_last or shows_last else values  # (N, h, w, C) -> (N, C, h, w)
    # Only timm's ViTs state how many class and register tokens precede the image's tokens, which follow row by row.
    others = getattr(encoder.backbone, "num_prefix_tokens", None)
    height, width = (side // layer.stride for side in images.shape[2:])
    if values.ndim != 3 or others is None or values.shape[1] - height * width not in (0, others):
        _refuse(encoder)
    tokens = values[:, values.shape[1] - height * width :]  # (N, others + h * w, C) -> (N, h * w, C)
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def _refuse(encoder: Encoder) -> NoReturn:
    """Raise ExplanationError for a network without known maps."""
    raise ExplanationError(
        f"{type(encoder.backbone).__name__} gives neither maps nor a token for each part of the image, which a map needs:"
        " explain another network, such as maxvit_nano_rw_256."
    )


def _check_images(wanted: set[str], images: pd.DataFrame, manifest: pd.DataFrame, cache_dir: str | Path) -> None:
    """Raise ExplanationError if an image cannot be explained out of fold from this cache."""
    cached = set(manifest.image_id[manifest.error == ""])
    reasons = {
        "not in the training table": (set(images.image_id), "take them from its column image_id"),
        "of patients that the run did not have": (
            set(images.image_id[images.fold.notna()]),
            "use the table that it was trained on",
        ),
        f"not in the cache {cache_dir} at the run's settings": (cached, "use the cache_dir that it was trained on"),
    }
    for reason, (known, remedy) in reasons.items():
        if unknown := sorted(wanted - known):
            shown = ", ".join(unknown[:SHOWN_IMAGES]) + (", …" if len(unknown) > SHOWN_IMAGES else "")
            raise ExplanationError(f"Images {reason}: {len(unknown)} of {len(wanted)} ({shown}); {remedy}.")
