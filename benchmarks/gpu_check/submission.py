"""Prediction: decoding at the same time, and the forms of a network that `submit` chooses from."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from benchmarks.gpu_check.agreement import Prediction, check_agreement
from benchmarks.gpu_check.check import CheckError
from benchmarks.gpu_check.small import Small, open_small
from utils.core.devices import cpu_count
from utils.decision.tuning import tune
from utils.runs.run import Run
from utils.submission import streaming
from utils.submission.acceleration import HalfEncoder, OnnxEncoder, with_encoders
from utils.submission.deadline import Pace, Work
from utils.submission.decoding import Decoder, Source
from utils.submission.ensemble import Variant
from utils.tables import read_images
from utils.training.dataset import make_dataset
from utils.training.fold_weights import load_fold
from utils.training.folds import train_run
from utils.training.inference import forward
from utils.training.loading import Batch, make_loader

CPU = torch.device("cpu")
COMPARED_IMAGES = 8

Span = tuple[float, float]  # begin and end, in seconds


def overlap_decoding(work: Path) -> dict:
    """Predict the test patients one by one, and note when each is decoded and predicted."""
    small = open_small(work)
    run = _trained_run(small, "cnn")
    images = read_images(small.competition, "test")
    source = Source(images, small.competition, work / "test-cache", 0 if small.is_toy else cpu_count())
    decoded: list[Span] = []
    predicted: list[Span] = []

    def make_pace(works: list[Work], overlaps: bool) -> Pace:
        return Pace(works, overlaps or small.is_toy)  # by itself the kit overlaps on a GPU only

    with (
        mock.patch.multiple(streaming, FIRST_CHUNK=1, LARGEST_CHUNK=1, Pace=make_pace),  # a chunk is one patient
        mock.patch.object(Decoder, "decode", _timed(Decoder.decode, decoded)),
        mock.patch.object(Variant, "predict", _timed(Variant.predict, predicted)),
    ):
        probabilities, _ = streaming.predict_runs([run], tune([run]), source)
    if set(probabilities.index) != set(images.prediction_id):
        raise CheckError(f"{len(probabilities)} of {images.prediction_id.nunique()} breasts were predicted.")
    overlapping = sum(any(_overlap(one, other) for other in decoded) for one in predicted)
    if overlapping < (len(predicted) - 1) / 2:  # the last one has nothing to overlap with
        raise CheckError(f"Only {overlapping} of {len(predicted)} patients were predicted while another was decoded.")
    numbers = {"patients": len(predicted), "predicted_during_decoding": overlapping}
    numbers |= {"decode_s": _total(decoded), "predict_s": _total(predicted), "both_s": predicted[-1][1] - decoded[0][0]}
    return numbers | {"busy": (numbers["decode_s"] + numbers["predict_s"]) / numbers["both_s"]}


def _timed(function: Callable, spans: list[Span]) -> Callable:
    def call(*arguments, **options):
        begin = time.perf_counter()
        result = function(*arguments, **options)
        spans.append((begin, time.perf_counter()))
        return result

    return call


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _total(spans: list[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def compare_forms(work: Path) -> dict:
    """Predict images in half precision on the device, and with ONNX Runtime on the CPU, and compare with float32 on the CPU."""
    small = open_small(work)
    numbers = {}
    for architecture in ("cnn",) if small.is_toy else ("cnn", "resnet50"):
        run = _trained_run(small, architecture)
        model, batch = _model_and_batch(small, run)
        expected = _predict(model, batch, CPU)
        for name, make, device in (
            ("bfloat16", partial(HalfEncoder, dtype=torch.bfloat16), small.device),
            ("float16", partial(HalfEncoder, dtype=torch.float16), small.device),
            ("onnx", OnnxEncoder, CPU),
        ):
            made = with_encoders(model.to(device), partial(make, images=batch["images"].to(device)))
            numbers[f"{architecture}_{name}"] = check_agreement(name, _predict(made, batch, device), expected)
    return {"features_differ_by": numbers}


def _model_and_batch(small: Small, run: Path) -> tuple[nn.Module, Batch]:
    """Return a run's network on the CPU, and a batch of training images."""
    config = Run(run).config
    model, vocabulary = load_fold(config, run / "fold0")
    items = make_dataset(config, small.images, small.data.cache_dir, "train", vocabulary)
    return model.eval(), next(iter(make_loader(items, COMPARED_IMAGES)))


def _predict(model: nn.Module, batch: Batch, device: torch.device) -> Prediction:
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):  # half precision enables its own
        features, _ = model.encoder(batch["images"].to(device))
        return Prediction(forward(model, batch, device).logit.float().cpu(), features.float().cpu())


def _trained_run(small: Small, architecture: str) -> Path:
    """Train two folds, or find them trained."""
    run = small.folder / f"submitted-{architecture}"
    train_run(small.config(architecture), small.data, run)
    return run
