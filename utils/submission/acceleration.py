"""Make one loaded network faster: several ways are tried on a real batch, and the fastest that says the same is taken.

Only the encoders are replaced, since they do nearly all the work; heads, attention and recurrent cells stay in float32.
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
# A pF1 threshold lies on a plateau wider than this. Half precision, in which a run is validated, stays well within.
PROBABILITY_TOLERANCE = 0.01  # also of a box's corners, as shares of a side
# Small probabilities must keep their order too: two items whose logits lie more than twice as far apart can't change places.
LOGIT_TOLERANCE = 0.1
LEAST_GAIN = 1.05  # less than that is the noise of a machine
ROUNDS, MEASURE_S = 5, 10.0  # most rounds, and the seconds after which none is begun
PREPARE_SHARE = 0.15  # of the work, which preparing may take: what it prepares saves 0.3 to 0.6 of it
EXPORT_S = 10.0  # for one encoder; measured on two cores
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

MakeEncoder = Callable[[Encoder, torch.Tensor], nn.Module]


@dataclass(frozen=True)
class Candidate:
    """A way to make an encoder faster.

    Parameters
    ----------
    make : callable
        Takes an encoder, which it leaves as it is, and uint8 pictures (N, 1, H, W); gives a module that is called alike.
    prepare_s : float
        Seconds that this takes, about.
    """

    make: MakeEncoder
    prepare_s: float = 0.0


class Accelerated:
    """A network's faster form, called as the network is; whatever fails or overflows later is done by the network itself.

    Attributes
    ----------
    name : str
        Of what was chosen; ``float32`` for the network itself.
    speed_up : float
        Over the network in float32, on the batch that it was measured on.
    difference : float
        Largest one of a probability to the network's in float32, there.
    speed_ups : dict of str to float
        Of all that agreed, by name.
    refused : dict of str to str
        Why each of the others was not taken.
    """

    def __init__(self, reference: nn.Module):
        self.reference = self.model = reference
        self.name, self.speed_up, self.difference = REFERENCE, 1.0, 0.0
        self.speed_ups: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    def __call__(self, images: torch.Tensor, metadata: torch.Tensor, lengths: torch.Tensor) -> Outputs:
        """Pass a batch through.

        Raises
        ------
        RuntimeError
            If the memory does not suffice (`utils.training.optimisation.is_out_of_memory`): halve the batch.
        """
        batch = (images, metadata, lengths)
        with torch.autocast(images.device.type, enabled=False):  # an encoder that wants half precision says so itself
            if self.name != REFERENCE:
                try:
                    outputs = self.model(*batch)
                    if outputs.logit.isfinite().all():
                        return outputs
                except Exception as error:  # a backend may fail in any way, and the network itself still works
                    self._give_up(error)
            return self.reference(*batch)

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise error
        self.refused[self.name] = _reason(error)
        print(f"{self.name} failed ({_reason(error)}): going on in {REFERENCE}.")
        self.model, self.name, self.speed_up, self.difference = self.reference, REFERENCE, 1.0, 0.0

    def __str__(self) -> str:
        chosen = f"{self.name}, {self.speed_up:.2f} times as fast as {REFERENCE}"
        agreed = f"probabilities within {self.difference:.1e}"
        others = [f"{name} {speed_up:.2f} times" for name, speed_up in self.speed_ups.items() if name != self.name]
        return "; ".join([chosen, agreed, *others, *(f"{name} refused: {why}" for name, why in self.refused.items())])


def accelerate(
    model: nn.Module,
    batch: Batch,
    config: TrainConfig,
    device: torch.device,
    work_seconds: float = 0.0,
    candidates: Mapping[str, Candidate] | None = None,
) -> Accelerated:
    """Choose the fastest form of a network that agrees with it on a batch.

    Parameters
    ----------
    model : Module
        From `utils.training.folds.load_fold`, on the device; it is put into evaluation mode and else left as it is.
    batch : dict
        Of `utils.training.loading`, as those that come: every candidate sees it a few times.
    config : TrainConfig
        Its ``precision`` says whether half precision may be tried.
    device : torch.device
    work_seconds : float
        That the network itself would take for all that is to be predicted. What takes long to prepare is tried only where this
        pays; 0 tries what takes no time.
    candidates : mapping of str to Candidate, optional
        By default `offered`.

    Returns
    -------
    Accelerated
        The network itself where nothing is faster and agrees.

    Raises
    ------
    RuntimeError
        If the network itself fails, as on too large a batch (`utils.training.optimisation.is_out_of_memory`): halve it.
    """
    batch = {key: value if key == "lengths" else value.to(device) for key, value in batch.items()}
    chosen = Accelerated(model.eval())
    expected = _outputs(model, batch, device)
    for name, candidate in (offered(config, device) if candidates is None else candidates).items():
        if candidate.prepare_s > PREPARE_SHARE * work_seconds:
            chosen.refused[name] = f"takes about {candidate.prepare_s:.0f} s to prepare, for {work_seconds:.0f} s of work"
            continue
        try:
            _try(chosen, name, candidate.make, batch, expected, device)
        except Exception as error:  # compilers and exporters raise many kinds
            chosen.refused[name] = _reason(error)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return chosen


def _try(chosen: Accelerated, name: str, make: MakeEncoder, batch: Batch, expected: Outputs, device: torch.device) -> None:
    """Take a candidate if it agrees, and is faster than what was chosen so far."""
    made = with_encoders(chosen.reference, lambda encoder: make(encoder, batch["images"]))
    outputs = _outputs(made, batch, device)
    problem = disagreement(outputs, expected)
    if problem:
        chosen.refused[name] = problem
        return
    speed_up = _race(chosen.reference, made, batch, device)
    chosen.speed_ups[name] = speed_up
    if speed_up > max(LEAST_GAIN, chosen.speed_up):
        chosen.name, chosen.model, chosen.speed_up = name, made, speed_up
        chosen.difference = _largest(outputs.logit.sigmoid(), expected.logit.sigmoid())


def offered(config: TrainConfig, device: torch.device) -> dict[str, Candidate]:
    """Give the candidates for a device, by name; on a CPU ONNX Runtime was the fastest for every network."""
    half = half_precision(config, device)
    found = {}
    if half:
        found[str(half).removeprefix("torch.")] = Candidate(partial(HalfEncoder, dtype=half))
    if device.type == "cpu" and all(importlib.util.find_spec(package) for package in ONNX_PACKAGES):
        found["onnx"] = Candidate(OnnxEncoder, EXPORT_S)
    return found


def half_precision(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Pick the half precision to try: the configuration's; None where it wants float32, or the device gains nothing by it."""
    dtype = pick_precision(config, device)
    # With AVX512-BF16 alone it was as slow as float32. Versions of torch that lack the function are taken for such a CPU.
    if config.precision == "auto" and device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        dtype = torch.bfloat16
    return None if dtype == torch.float32 else dtype


def with_encoders(model: nn.Module, make: Callable[[Encoder], nn.Module]) -> nn.Module:
    """Copy a network, with what ``make`` gives in the place of each encoder; the encoders themselves are not copied."""
    with torch.inference_mode(False), torch.no_grad():
        made = {id(module): make(module).eval() for module in model.modules() if isinstance(module, Encoder)}
        return copy.deepcopy(model, made)


def disagreement(outputs: Outputs, expected: Outputs) -> str:
    """Say how outputs differ from the expected ones by more than the tolerances; empty where they do not."""
    pairs = {
        "logit": (outputs.logit, expected.logit, LOGIT_TOLERANCE),
        "probability": (outputs.logit.sigmoid(), expected.logit.sigmoid(), PROBABILITY_TOLERANCE),
    }
    if expected.box is not None:
        pairs["corner of a box"] = (outputs.box, expected.box, PROBABILITY_TOLERANCE)
    for what, (found, wanted, tolerance) in pairs.items():
        if found is None or found.shape != wanted.shape:  # else one value would be held against all
            return f"its {what} is of shape {None if found is None else tuple(found.shape)}, not {tuple(wanted.shape)}"
        difference = _largest(found, wanted)
        if not difference <= tolerance:  # NaN is refused so
            return f"a {what} differs by {difference:.2g}, and may by {tolerance}"
    return ""


def _largest(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return (found.float() - wanted.float()).abs().max().item()


def _outputs(model: nn.Module, batch: Batch, device: torch.device) -> Outputs:
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        return forward(model, batch, device)


def _race(reference: nn.Module, candidate: nn.Module, batch: Batch, device: torch.device) -> float:
    """How many times as fast as the reference a candidate is: the median of interleaved rounds."""
    ratios, start = [], time.perf_counter()
    while not ratios or (len(ratios) < ROUNDS and time.perf_counter() - start < MEASURE_S):
        ratios.append(_seconds(reference, batch, device) / _seconds(candidate, batch, device))
    return median(ratios)


def _seconds(model: nn.Module, batch: Batch, device: torch.device) -> float:
    start = time.perf_counter()
    _outputs(model, batch, device).logit.cpu()  # waits for a GPU
    return time.perf_counter() - start


def _reason(error: Exception) -> str:
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return "the memory does not suffice for it"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class HalfEncoder(nn.Module):
    """An encoder that computes in half precision as in training, by autocast; its large weights are stored so too."""

    def __init__(self, encoder: Encoder, images: torch.Tensor, dtype: torch.dtype):
        super().__init__()
        self.encoder, self.dtype = copy.deepcopy(encoder).eval(), dtype
        for module in self.encoder.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(dtype)  # or autocast would do it in every batch

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(images.device.type, dtype=self.dtype):
            features, maps = self.encoder(images)
        return features.float(), maps


class OnnxEncoder(nn.Module):
    """An encoder exported to ONNX, in memory, and run by ONNX Runtime on the CPU, for any number of pictures of one size."""

    def __init__(self, encoder: Encoder, images: torch.Tensor):
        super().__init__()
        import onnxruntime

        self.encoder, self.takes = encoder, (images.dtype, *images.shape[1:])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin while they wait take the cores from those that decode files.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(_export(encoder, images), options, providers=["CPUExecutionProvider"])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if (images.dtype, *images.shape[1:]) != self.takes:
            return self.encoder(images)
        features, maps = self.session.run(None, {self.session.get_inputs()[0].name: images.numpy()})
        return torch.from_numpy(features), torch.from_numpy(maps)


def _export(encoder: Encoder, images: torch.Tensor) -> bytes:
    import onnxscript  # noqa: F401  (torch's exporter needs it, and what is imported here gets into the bundle for Kaggle)

    two = torch.zeros(2, *images.shape[1:], dtype=images.dtype)  # an axis of 1 would be taken for a constant
    for_any = ({0: torch.export.Dim("pictures")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(encoder, (two,), dynamo=True, dynamic_shapes=for_any, verbose=False)
    return program.model_proto.SerializeToString()
