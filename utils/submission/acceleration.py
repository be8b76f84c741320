"""Make a loaded network faster: try several implementations on a real batch, and take the fastest whose outputs agree.

Only the encoders, which do nearly all the work, are replaced. Heads, attention and recurrent cells stay in float32.
"""

import copy
import importlib.util
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import nn

from utils.networks.encoders import Encoder
from utils.networks.models import Outputs
from utils.runs.config import TrainConfig
from utils.training.inference import forward
from utils.training.loading import Batch
from utils.training.optimisation import is_out_of_memory, pick_precision

REFERENCE = "float32"
# The plateau around a pF1 threshold is wider than this. Half precision, in which runs are validated, stays well within it.
PROBABILITY_TOLERANCE = 0.01  # also for a box's corners, as shares of a side
# Small probabilities must keep their order too: items can't swap places if their logits differ by more than twice this.
LOGIT_TOLERANCE = 0.1
LEAST_GAIN = 1.05  # less is measurement noise
ROUNDS, MEASURE_S = 5, 10.0  # maximum number of rounds, and seconds after which no round starts
PREPARE_SHARE = 0.15  # maximum share of the work's time for preparing, which saves 0.3 to 0.6 of that time
EXPORT_S = 10.0  # per encoder, measured on two cores
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

MakeEncoder = Callable[[Encoder, torch.Tensor], nn.Module]


@dataclass(frozen=True)
class Candidate:
    """A way to make an encoder faster: ``prepare_s`` is the approximate time in seconds that ``make`` takes.

    ``make`` takes an encoder, which it leaves unchanged, and uint8 images (N, 1, H, W), and returns a module with the
    encoder's signature.
    """

    make: MakeEncoder
    prepare_s: float = 0.0


class Accelerated:
    """A faster form of a network with the same signature; the network itself takes over if that fails or overflows.

    Attributes
    ----------
    name : str
        Chosen candidate; ``float32`` for the network itself.
    speed_up : float
        Relative to the network in float32, on the batch used for measuring.
    difference : float
        Largest difference in probability from the network in float32, on that batch.
    speed_ups : dict of str to float
        Speed-up of each candidate that agreed, by name.
    refused : dict of str to str
        Why each other candidate was refused.
    """

    def __init__(self, reference: nn.Module):
        self.reference = reference
        self.speed_ups: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        self._use(REFERENCE, reference)

    def _use(self, name: str, model: nn.Module, speed_up: float = 1.0, difference: float = 0.0) -> None:
        self.name = name
        self.model = model
        self.speed_up = speed_up
        self.difference = difference

    def consider(self, name: str, model: nn.Module, speed_up: float, difference: float) -> None:
        """Take a candidate that agrees with the network, if it is faster than the choice so far."""
        self.speed_ups[name] = speed_up
        if speed_up > max(LEAST_GAIN, self.speed_up):
            self._use(name, model, speed_up, difference)

    def __call__(self, images: torch.Tensor, metadata: torch.Tensor, lengths: torch.Tensor) -> Outputs:
        """Run a batch; raise RuntimeError if memory runs out (`utils.training.optimisation.is_out_of_memory`)."""
        batch = (images, metadata, lengths)
        with torch.autocast(images.device.type, enabled=False):  # a HalfEncoder enables its own
            if self.name != REFERENCE:
                try:
                    outputs = self.model(*batch)
                    if outputs.logit.isfinite().all():
                        return outputs
                except Exception as error:  # a backend may fail in any way; the network itself still works
                    self._give_up(error)
            return self.reference(*batch)

    def _give_up(self, error: Exception) -> None:
        """Return to the network itself for good; raise the error again if memory ran out."""
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise error
        self.refused[self.name] = _reason(error)
        print(f"{self.name} failed ({_reason(error)}); {REFERENCE} is used from now on.")
        self._use(REFERENCE, self.reference)

    def __str__(self) -> str:
        chosen = f"{self.name}, {self.speed_up:.2f} times as fast as {REFERENCE}"
        agreed = f"probabilities within {self.difference:.1e}"
        others = [f"{name} {speed_up:.2f} times" for name, speed_up in self.speed_ups.items() if name != self.name]
        return "; ".join([chosen, agreed, *others, *(f"{name} refused: {why}" for name, why in self.refused.items())])


def accelerate(
    model: nn.Module,
    batch: Batch,
    device: torch.device,
    candidates: Mapping[str, Candidate],
    work_seconds: float = 0.0,
) -> Accelerated:
    """Choose the fastest candidate that agrees with the network on a batch.

    Parameters
    ----------
    model : Module
        From `utils.training.fold_weights.load_fold`, on the device; it is set to evaluation mode and otherwise unchanged.
    batch : dict
        From `utils.training.loading`, typical of the work; every candidate runs it several times.
    device : torch.device
    candidates : mapping of str to Candidate
        From `offered`.
    work_seconds : float
        Estimated time that the network itself needs for all predictions. A candidate that is slow to prepare is tried only
        if it pays off; 0 tries only those that need no preparation.

    Returns
    -------
    Accelerated
        The network itself if nothing faster agrees.

    Raises
    ------
    RuntimeError
        If the network itself fails, for example because memory runs out (`utils.training.optimisation.is_out_of_memory`).
    """
    batch = {key: value if key == "lengths" else value.to(device) for key, value in batch.items()}
    chosen = Accelerated(model.eval())
    expected = _outputs(model, batch, device)
    for name, candidate in candidates.items():
        if candidate.prepare_s > PREPARE_SHARE * work_seconds:
            chosen.refused[name] = f"takes about {candidate.prepare_s:.0f} s to prepare, for {work_seconds:.0f} s of work"
            continue
        try:
            made = with_encoders(model, partial(candidate.make, images=batch["images"]))
            outputs = _outputs(made, batch, device)
            problem = disagreement(outputs, expected)
            if problem:
                chosen.refused[name] = problem
            else:
                difference = _largest(outputs.logit.sigmoid(), expected.logit.sigmoid())
                chosen.consider(name, made, _race(model, made, batch, device), difference)
        except Exception as error:  # exporters and backends raise many types
            chosen.refused[name] = _reason(error)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return chosen


def offered(config: TrainConfig, device: torch.device) -> dict[str, Candidate]:
    """Return a device's candidates by name; on a CPU, ONNX Runtime was the fastest for every network."""
    found = {}
    half = half_precision(config, device)
    if half:
        found[str(half).removeprefix("torch.")] = Candidate(partial(HalfEncoder, dtype=half))
    if device.type == "cpu" and all(importlib.util.find_spec(package) for package in ONNX_PACKAGES):
        found["onnx"] = Candidate(OnnxEncoder, EXPORT_S)
    return found


def half_precision(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Return the half precision to try, or None if the config asks for float32 or the device would not be faster."""
    dtype = pick_precision(config, device)
    # bfloat16 needs AMX: with AVX512-BF16 alone it was as slow as float32. A torch without the function counts as no AMX.
    if config.precision == "auto" and device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        dtype = torch.bfloat16
    return None if dtype == torch.float32 else dtype


def with_encoders(model: nn.Module, make: Callable[[Encoder], nn.Module]) -> nn.Module:
    """Copy a network with each encoder replaced by ``make(encoder)``; the encoders themselves are not copied."""
    with torch.inference_mode(False), torch.no_grad():
        made = {id(module): make(module).eval() for module in model.modules() if isinstance(module, Encoder)}
        return copy.deepcopy(model, made)


def disagreement(outputs: Outputs, expected: Outputs) -> str:
    """Describe the first output that differs by more than its tolerance, or return ""."""
    if outputs.logit.shape != expected.logit.shape:  # otherwise one value would broadcast against all
        return f"its logit has shape {tuple(outputs.logit.shape)}, not {tuple(expected.logit.shape)}"
    pairs = {
        "logit": (outputs.logit, expected.logit, LOGIT_TOLERANCE),
        "probability": (outputs.logit.sigmoid(), expected.logit.sigmoid(), PROBABILITY_TOLERANCE),
    }
    if expected.box is not None:  # the same head made both, so their shapes are the same
        pairs["corner of a box"] = (outputs.box, expected.box, PROBABILITY_TOLERANCE)
    for what, (found, wanted, tolerance) in pairs.items():
        difference = _largest(found, wanted)
        if not difference <= tolerance:  # also true for NaN
            return f"a {what} differs by {difference:.2g}, more than {tolerance}"
    return ""


def _largest(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return (found.float() - wanted.float()).abs().max().item()


def _outputs(model: nn.Module, batch: Batch, device: torch.device) -> Outputs:
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        return forward(model, batch, device)


def _race(reference: nn.Module, candidate: nn.Module, batch: Batch, device: torch.device) -> float:
    """Return a candidate's speed-up over the reference: the median of interleaved rounds."""
    ratios, start = [], time.perf_counter()
    while not ratios or (len(ratios) < ROUNDS and time.perf_counter() - start < MEASURE_S):
        ratios.append(_seconds(reference, batch, device) / _seconds(candidate, batch, device))
    return median(ratios)


def _seconds(model: nn.Module, batch: Batch, device: torch.device) -> float:
    """Return the seconds that a network takes for a batch."""
    start = time.perf_counter()
    _outputs(model, batch, device).logit.cpu()  # waits for a GPU
    return time.perf_counter() - start


def _reason(error: Exception) -> str:
    """Return an error's type and first line."""
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class HalfEncoder(nn.Module):
    """An encoder in half precision by autocast, as in training; large weights are stored so too."""

    def __init__(self, encoder: Encoder, images: torch.Tensor, dtype: torch.dtype):
        super().__init__()
        self.encoder, self.dtype = copy.deepcopy(encoder).eval(), dtype
        for module in self.encoder.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(dtype)  # otherwise autocast would convert them in every batch

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(images.device.type, dtype=self.dtype):
            features, maps = self.encoder(images)
        return features.float(), maps


class OnnxEncoder(nn.Module):
    """An encoder exported to ONNX in memory and run by ONNX Runtime on the CPU, for any number of images of one size.

    Images of another size or dtype go through the encoder itself.
    """

    def __init__(self, encoder: Encoder, images: torch.Tensor):
        super().__init__()
        import onnxruntime

        self.encoder, self.takes = encoder, (images.dtype, *images.shape[1:])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin while waiting would take cores from the decoding processes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(_export(encoder, images), options, providers=["CPUExecutionProvider"])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if (images.dtype, *images.shape[1:]) != self.takes:
            return self.encoder(images)
        features, maps = self.session.run(None, {self.session.get_inputs()[0].name: images.numpy()})
        return torch.from_numpy(features), torch.from_numpy(maps)


def _export(encoder: Encoder, images: torch.Tensor) -> bytes:
    """Export an encoder to ONNX bytes with a dynamic batch axis."""
    import onnxscript  # noqa: F401  (torch's exporter needs it, and imports decide what goes into the bundle for Kaggle)

    two = torch.zeros(2, *images.shape[1:], dtype=images.dtype)  # the exporter would treat an axis of 1 as a constant
    any_number = ({0: torch.export.Dim("images")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(encoder, (two,), dynamo=True, dynamic_shapes=any_number, verbose=False)
    return program.model_proto.SerializeToString()
