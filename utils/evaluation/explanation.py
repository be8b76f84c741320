"""Which parts of an image a network's logit rests on: Grad-CAM, and its way back to the stored picture.

A map is a float32 array (image_height, image_width) in [0, 1] that lies on the cached picture; 1 is the image's strongest part,
so two images' maps do not compare. A map of zeros says that nothing in the image speaks for cancer.
`utils.evaluation.pointing` puts maps to the test where true boxes are known.
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
from torch.utils.data import Subset

from utils.core.environment import KitError
from utils.images.boxes import CROP
from utils.images.cache import read_manifest
from utils.images.resample import fitted_size
from utils.images.settings import CacheSettings
from utils.metrics.scores import decide
from utils.networks.encoders import CNN_CHANNELS, Encoder, PlainCnn, build_encoder
from utils.runs.config import TrainConfig
from utils.runs.run import Run
from utils.training.dataset import ImageDataset
from utils.training.folds import load_fold, make_dataset
from utils.training.inference import forward
from utils.training.loading import Batch, make_loader

Maps = dict[str, np.ndarray]  # by image_id

KINDS = ("true positive", "false positive", "miss", "true negative")
FINER = 1  # on the phantom at 160 x 96 the pointing game finds 0.85 of the boxes' images with 1, 0.40 with 0, 0.15 with 2
SHOWN_IMAGES = 3


class ExplanationError(KitError):
    """Images or a network that can't be explained; the message says what to do."""


def explain_run(
    run_dir: str | Path,
    images: pd.DataFrame,
    cache_dir: str | Path,
    image_ids: Iterable[str] | None = None,
    device: torch.device | None = None,
    finer: int = FINER,
) -> Maps:
    """Explain a run's out-of-fold predictions: each image by the network that never saw its patient.

    Parameters
    ----------
    run_dir : path
    images : DataFrame
        The run's training table, whole: a breast is explained with all the images that it was predicted from.
    cache_dir : path
        The one that the run was trained on.
    image_ids : iterable of str, optional
        What to explain; by default everything.
    device : device, optional
        The CPU by default.
    finer : int
        As in `explain`.

    Returns
    -------
    dict
        Map of each image. Where ``max_views`` limits a breast's images, those that were not drawn have none.

    Raises
    ------
    ExplanationError
        If an image is not in the table or the cache, or its patient was not in the run.
    utils.runs.config.TrainingError
        If the run, or a fold that is needed, is not finished.
    """
    config = Run(run_dir).config
    wanted = set(images.image_id if image_ids is None else image_ids)
    images = images.assign(fold=_folds_of(run_dir, images))
    _check_images(wanted, images, read_manifest(cache_dir, "train", config.preprocessing), cache_dir)
    maps = {}
    for fold in sorted(images.fold[images.image_id.isin(wanted)].unique().astype(int)):
        model, vocabulary = load_fold(config, Path(run_dir) / f"fold{fold}")
        # The whole fold, as it was predicted: what is drawn of a breast depends on its number.
        dataset = make_dataset(config, images[images.fold == fold], cache_dir, "train", vocabulary)
        device = device or torch.device("cpu")
        maps |= explain(model.to(device), dataset, config, device, wanted, finer)
    return {image_id: heat for image_id, heat in maps.items() if image_id in wanted}


def explain(
    model: nn.Module,
    dataset: ImageDataset,
    config: TrainConfig,
    device: torch.device,
    image_ids: Iterable[str] | None = None,
    finer: int = FINER,
) -> Maps:
    """Explain the logit of each item by Grad-CAM on late maps of its encoders.

    An encoder's map is the sum of its feature maps, each weighted by the logit's mean gradient. Times the number of its cells,
    it is in units of the logit, spread over the picture. So where a network has several encoders (``rnn``), their maps are
    resized to the picture and added, and each counts for as much as it moves the logit. What speaks against cancer is then
    set to zero. With ``test_time_flip`` the mirrored picture's map is added likewise.

    Parameters
    ----------
    model : Module
        From `utils.networks.models.build_model` or `utils.training.folds.load_fold`, on ``device``.
    dataset : ImageDataset
        From `utils.training.folds.make_dataset`, without augmentation.
    config : TrainConfig
    device : device
    image_ids : iterable of str, optional
        Only items with one of these images are explained, but with all their images.
    finer : int
        How many times finer than an encoder's last maps, by factors of two: 0 takes the last maps, as the paper does, whose
        cells of mostly 32 x 32 pixels are larger than a small lesion; 1 those before the last halving. In ViT all cells have
        the same size.

    Returns
    -------
    dict
        Map of each image of those items.

    Raises
    ------
    ExplanationError
        If an encoder gives neither maps nor tokens, or has none so fine.

    Notes
    -----
    In float32 whatever the configuration says, since gradients vanish in half precision. It takes a training step's memory.

    References
    ----------
    Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.train()  # cuDNN has no gradient of recurrent cells in eval mode; without dropout the two modes are the same
    maps = {}
    items = _items_with(dataset, image_ids)
    for batch in make_loader(Subset(dataset, items), config.micro_batch_size or config.batch_size):
        heats = _heats(model, batch, config, device, finer)
        maps |= zip(dataset.images.image_id.iloc[batch["rows"].tolist()], heats, strict=True)
    model.eval()
    return maps


def check_network(config: TrainConfig, finer: int = FINER) -> None:
    """Check that a configuration's network can be explained, by its shapes alone: within a second, without weights.

    Raises
    ------
    ExplanationError
        As `explain` does.
    """
    names = config.model.encoders if config.model.architecture == "rnn" else (config.model.architecture,)
    size = config.model.image_height, config.model.image_width
    with torch.device("meta"):
        images = torch.zeros(1, 1, *size)
        for name in names:
            try:
                encoder = build_encoder(name, *size).eval()
            except RuntimeError:  # it computes while it is built, and is not built a second time for this
                continue
            layer = _layer(encoder, finer)
            with _kept_outputs({encoder: layer}) as outputs:
                encoder(images)
            _as_maps(outputs.get(encoder), encoder, layer, images)


def to_source_map(heat: np.ndarray, row: pd.Series, settings: CacheSettings) -> np.ndarray:
    """Carry a map from the cached picture back to the stored one, as `utils.images.boxes.to_source` does boxes.

    Parameters
    ----------
    heat : ndarray of shape (image_height, image_width), float32
    row : Series
        The image's row of the manifest.
    settings : CacheSettings

    Returns
    -------
    ndarray of shape (source_height, source_width), float32
        Zero outside the crop.
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
    """Choose images worth a look: of each kind of right and wrong decision those that the run was surest of.

    Parameters
    ----------
    breasts : DataFrame
        One row per breast with prediction_id, cancer and probability, as from `utils.runs.oof.oof_of_runs`.
    images : DataFrame
        The training table.
    threshold : float
    count : int
        Breasts of each kind; each is shown by its first image, CC before MLO.

    Returns
    -------
    DataFrame
        Rows of ``images``, kind by kind in the order of `KINDS`, with the columns kind and probability.
    """
    decided = decide(breasts.probability, threshold) == 1
    kinds = np.select([decided & (breasts.cancer == 1), decided, breasts.cancer == 1], KINDS[:3], KINDS[3])
    first = images.sort_values(["view", "image_id"]).drop_duplicates("prediction_id")
    table = first.merge(breasts.assign(kind=kinds)[["prediction_id", "kind", "probability"]], on="prediction_id")
    surest = table.sort_values("probability", kind="stable")
    parts = [surest[surest.kind == kind] for kind in KINDS]
    parts = [part[::-1] if kind.endswith("positive") else part for kind, part in zip(KINDS, parts, strict=True)]
    return pd.concat([part.head(count) for part in parts], ignore_index=True)


# Grad-CAM


def _heats(model: nn.Module, batch: Batch, config: TrainConfig, device: torch.device, finer: int) -> np.ndarray:
    """Maps of a batch's pictures: (N, H, W), float32 in [0, 1]."""
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
    stride: int  # pixels to a cell's side
    channels: int  # 0 where they are not known


def _evidence(model: nn.Module, batch: Batch, images: torch.Tensor, finer: int) -> torch.Tensor:
    """What each part of a picture adds to its item's logit, by Grad-CAM of all encoders: (N, H, W)."""
    images = images.float().requires_grad_()  # so that there is a way back from the logit where an encoder's weights are frozen
    layers = {encoder: _layer(encoder, finer) for encoder in model.modules() if isinstance(encoder, Encoder)}
    with _kept_outputs(layers) as outputs:
        logit = forward(model, batch, images.device, images).logit  # items do not depend on each other, so one pass serves all
    evidence = torch.zeros(len(images), 1, *images.shape[2:], device=images.device)
    for encoder, layer in layers.items():
        maps = _as_maps(outputs.get(encoder), encoder, layer, images)  # (N, C, h, w)
        (gradient,) = torch.autograd.grad(logit.sum(), outputs[encoder], retain_graph=True)
        gradient = _as_maps(gradient, encoder, layer, images)
        if outputs[encoder].ndim == 3 and not gradient.any():
            _refuse(encoder)  # a class token alone is pooled, and holds no place
        cam = (gradient.mean(dim=(2, 3), keepdim=True) * maps.detach()).sum(dim=1, keepdim=True)  # (N, 1, h, w)
        cells = cam.shape[2] * cam.shape[3]
        evidence += nn.functional.interpolate(cam * cells, tuple(images.shape[2:]), mode="bilinear")
    return evidence.squeeze(1)


@contextmanager
def _kept_outputs(layers: dict[Encoder, _Layer]) -> Iterator[dict[Encoder, torch.Tensor]]:
    """Keep what the explained layers give while their networks run."""
    outputs: dict[Encoder, torch.Tensor] = {}
    with ExitStack() as hooks:
        for encoder, layer in layers.items():
            hooks.enter_context(layer.module.register_forward_hook(partial(_keep, outputs, encoder)))
        yield outputs


def _keep(outputs: dict, encoder: Encoder, module: nn.Module, inputs: tuple, output: object) -> torch.Tensor | None:
    """Keep what a layer gives; the network continues with a copy, since later layers may change it in place."""
    if isinstance(output, torch.Tensor):
        outputs[encoder] = output
        return output.clone()
    if module is encoder:
        outputs[encoder] = output[1]  # features and maps
    return None


def _layer(encoder: Encoder, finer: int) -> _Layer:
    """Find the layer of an encoder whose output is explained.

    Its cells are ``2 ** finer`` times smaller than those of the last maps; 0 gives the encoder itself. If all layers have
    cells of one size (ViT), it is the last but one: after the last, the logit may rest on the class token alone.
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
    """List the layers that give maps, from the first to the last."""
    if isinstance(backbone, PlainCnn):
        numbered = enumerate(zip(backbone.blocks, CNN_CHANNELS, strict=True), start=1)
        return [_Layer(block, 2**number, channels) for number, (block, channels) in numbered]
    modules = dict(backbone.named_modules())
    stages = [stage for stage in getattr(backbone, "feature_info", None) or [] if stage["module"] in modules]
    return [_Layer(modules[stage["module"]], stage["reduction"], stage["num_chs"]) for stage in stages]


def _as_maps(values: torch.Tensor | None, encoder: Encoder, layer: _Layer, images: torch.Tensor) -> torch.Tensor:
    """Give a layer's output as maps (N, C, h, w), if it has maps, maps with channels last (Swin), or tokens (ViT)."""
    if values is None:
        _refuse(encoder)
    if values.ndim == 4:
        says_last = getattr(encoder.backbone, "output_fmt", "NCHW") == "NHWC"
        shows_last = values.shape[3] == layer.channels != values.shape[1]
        return values.permute(0, 3, 1, 2) if says_last or shows_last else values  # (N, h, w, C) -> (N, C, h, w)
    # Only timm's ViTs say how many class and register tokens come before those of the picture, which are in order, row by row.
    others = getattr(encoder.backbone, "num_prefix_tokens", None)
    height, width = (side // layer.stride for side in images.shape[2:])
    if values.ndim != 3 or others is None or values.shape[1] - height * width not in (0, others):
        _refuse(encoder)
    tokens = values[:, values.shape[1] - height * width :]  # (N, others + h * w, C) -> (N, h * w, C)
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def _refuse(encoder: Encoder) -> NoReturn:
    raise ExplanationError(
        f"{type(encoder.backbone).__name__} gives neither maps nor a token for each part of the picture, which Grad-CAM needs:"
        " explain another network, such as maxvit_nano_rw_256."
    )


def _items_with(dataset: ImageDataset, image_ids: Iterable[str] | None) -> list[int]:
    """Numbers of the items that read one of the images."""
    if image_ids is None:
        return list(range(len(dataset)))
    wanted = dataset.images.image_id.isin(set(image_ids)).to_numpy()
    return [index for index in range(len(dataset)) if wanted[dataset._rows(index)].any()]


def _folds_of(run_dir: str | Path, images: pd.DataFrame) -> pd.Series:
    return Run(run_dir).fold_of(images.patient_id)


def _check_images(wanted: set[str], images: pd.DataFrame, manifest: pd.DataFrame, cache_dir: str | Path) -> None:
    """Refuse images that can't be explained out of fold from this cache."""
    cached = set(manifest.image_id[manifest.error == ""])
    reasons = {
        "are not in the training table: take them from its column image_id": set(images.image_id),
        "are of patients that the run did not have: use the table that it was trained on": set(
            images.image_id[images.fold.notna()]
        ),
        f"are not in the cache {cache_dir} at the run's settings: use the cache_dir that it was trained on": cached,
    }
    for reason, known in reasons.items():
        if unknown := sorted(wanted - known):
            shown = ", ".join(unknown[:SHOWN_IMAGES]) + (", …" if len(unknown) > SHOWN_IMAGES else "")
            raise ExplanationError(f"{len(unknown)} of {len(wanted)} images ({shown}) {reason}.")
