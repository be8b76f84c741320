"""weights.safetensors of a fold; header, vocabulary and tensor shapes are checked before any tensor is read."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from utils.core.files import write_atomic
from utils.core.formats import FormatError, build, check, check_types, naming
from utils.networks.models import build_model
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.errors import TrainingError
from utils.runs.tables import REMEDY
from utils.tables.vocabulary import CATEGORIES, Vocabulary

DTYPES = {  # as the header of a safetensors file names them
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
SHOWN = 3


def read_vocabulary(path: str | Path, remedy: str = REMEDY) -> Vocabulary:
    """Read the vocabulary from the header of a fold's weights.

    Raise TrainingError if the file is cut, not safetensors or not of this kit, or a value is unknown, missing or wrong.
    """
    with _opened(path, remedy) as file:
        metadata = file.metadata() or {}
        if "vocabulary" not in metadata:
            raise FormatError("it was not written by this kit (its header has no vocabulary).")
        vocabulary = build(Vocabulary, json.loads(metadata["vocabulary"]))
        check_types(vocabulary)
        check(vocabulary.age_std > 0, "age_std", vocabulary.age_std, "above 0")
        for name in CATEGORIES:
            values = getattr(vocabulary, name)
            check(len(set(values)) == len(values), name, values, "different values")
    return vocabulary


def check_tensors(path: str | Path, wanted: Mapping[str, torch.Tensor], remedy: str = REMEDY) -> None:
    """Raise TrainingError if names, shapes or number formats of a file's tensors differ from ``wanted``, a state dict.

    ``remedy`` is the last sentence of the message.
    """
    with _opened(path, remedy) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
        expected = {name: (tuple(tensor.shape), DTYPES.get(tensor.dtype)) for name, tensor in wanted.items()}
        wrong = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        if wrong:
            first = ", ".join(f"{name} is {_tensor(found, name)}, not {_tensor(expected, name)}" for name in wrong[:SHOWN])
            raise FormatError(f"{len(wrong)} of its tensors do not fit the network of config.json ({first}).")


def load_fold(config: TrainConfig, fold_dir: str | Path) -> tuple[nn.Module, Vocabulary]:
    """Load a fold's network and the vocabulary that it was trained with.

    Raises
    ------
    TrainingError
        If the weights are missing, broken, or of another network; names the file and the remedy.
    """
    path = Path(fold_dir) / "weights.safetensors"
    if not path.is_file():
        raise TrainingError(f"{path} is missing: let train.ipynb finish this run, or leave it out of run_dirs.")
    vocabulary = read_vocabulary(path)
    with naming(path.parent.parent / "config.json", TrainingError, REMEDY):
        model = build_empty(config.model, vocabulary)
    check_tensors(path, model.state_dict())
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.to(memory_format=torch.channels_last), vocabulary


def save_weights(path: Path, model: nn.Module, vocabulary: Vocabulary, epoch: int) -> None:
    """Write a fold's weights, with the vocabulary and the epoch in the header."""
    metadata = {"vocabulary": json.dumps(asdict(vocabulary)), "epoch": str(epoch)}
    with write_atomic(path) as temporary:
        # save_file would replace the file by its own, with other permissions.
        temporary.write_bytes(safetensors.torch.save(kept_state(model), metadata))


def kept_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict on the CPU, without the auxiliary head, which only training needs."""
    state = model.state_dict()
    return {key: value.detach().cpu().contiguous() for key, value in state.items() if not key.startswith("head.auxiliary.")}


def read_encoder(path: Path) -> dict[str, torch.Tensor]:
    """Read the encoder's state dict from a fold's weights; raise TrainingError if the file is broken."""
    read_vocabulary(path)
    state, prefix = safetensors.torch.load_file(path), "encoder."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def build_empty(config: ModelConfig, vocabulary: Vocabulary) -> nn.Module:
    """Build a run's network for its own weights; the weights that it started from need not exist."""
    return build_model(replace(config, pretrained=False, weights_path=""), vocabulary)


def _tensor(tensors: dict, name: str) -> str:
    if name not in tensors:
        return "missing"
    shape, dtype = tensors[name]
    return f"{dtype} {' x '.join(map(str, shape)) or 'scalar'}"


@contextmanager
def _opened(path: str | Path, remedy: str) -> Iterator:
    with naming(path, TrainingError, remedy):
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise FormatError(f"it is cut or not a safetensors file ({error}).") from error
