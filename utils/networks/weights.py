"""Encoder weights from local files: read without running pickled code, found inside checkpoints, matched to a network."""

import argparse
import os
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from utils.runs.errors import ModelError

Tensors = dict[str, torch.Tensor]

SHOWN_KEYS = 6
HEAD_BYTES = 64  # enough to distinguish text from weights
NESTING = 3  # levels of nested dictionaries that are searched for weights
KNOWN_SHARE = 0.25  # share of a network's names; fewer are a coincidence, such as bn1.weight inside a block
MOST_LEFT_OVER = 4  # tensors of a two-layer head; a deeper network leaves more
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")  # have the same shape in a normalisation layer
AVERAGED = {"ema", "teacher"}  # words in the names of averaged weights, which timm prefers too
DAMAGED = "it is damaged or cut short. Copy or download it again"
SAVE_ALONE = "Where the file was made, save the weights alone: torch.save(model.state_dict(), path)"
# Training scripts save these next to weights, and unpickling them runs no code: options, paths and NumPy scalars.
HARMLESS = (
    argparse.Namespace,
    type(Path()),
    np.dtype,
    np.float64(0).__reduce__()[0],
    *{type(np.dtype(code)) for code in "?US" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]},
)


def read_weights(path: str | Path) -> dict:
    """Read a weights file: safetensors, or anything that torch loads with ``weights_only``.

    Returns
    -------
    dict
        As in the file: names and tensors, or dictionaries of them next to other things.

    Raises
    ------
    ModelError
        If the file is missing, damaged or text, or contains no tensors, or pickled objects. Pickled code never runs.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(
            f"weights_path {path} is a folder, but no run of this kit (it has no config.json). Name the file in it."
        )
    if not path.is_file():
        raise ModelError(f"weights_path {path} does not exist. Correct the path.")
    try:
        content = _read(path)
    except Exception as error:  # torch and safetensors raise many types on a broken or unsafe file
        # "from None" since torch's text advises unsafe loading.
        raise ModelError(f"weights_path {path} can't be read as plain weights: {_reason(path, error)}.") from None
    if not isinstance(content, dict):
        raise ModelError(f"weights_path {path} holds a {type(content).__name__}, not a state dict. {SAVE_ALONE}.")
    if not any(_parts(content)):
        raise ModelError(f"weights_path {path} holds no weights. {SAVE_ALONE}.")
    return content


def is_of_kit(path: str | Path) -> bool:
    """True if this kit wrote the weights file."""
    try:
        with safetensors.safe_open(path, framework="pt") as weights:
            return "vocabulary" in (weights.metadata() or {})
    except (OSError, safetensors.SafetensorError):  # missing, or another format: `read_weights` raises
        return False


def find_weights(content: Mapping, wanted: Mapping[str, torch.Tensor], path: str | Path) -> Tensors:
    """Find a network's weights in a checkpoint, under any keys and prefixes.

    Take the dictionary and prefix that contain most of the network's names, averaged weights (EMA) first, as timm does. If
    few names match, match tensors by position if their shapes do, as in another implementation of the same network.

    Return floating-point tensors as float32; a head, an RGB stem and old names stay as in the file. Raise ModelError if the
    file contains the network more than once. Only names and shapes of ``wanted`` are used; ``path`` is for messages.
    """
    parts = list(_parts(content))
    places = []  # (number of the network's names, where, tensors, prefix)
    for where, tensors in parts:
        known = Counter(prefix for key in tensors for prefix in _prefixes(key) if key.removeprefix(prefix) in wanted)
        places += [(count, where + prefix, tensors, prefix) for prefix, count in known.items()]
    most = max((count for count, *_ in places), default=0)
    if most < KNOWN_SHARE * len(wanted):
        _, tensors = max(parts, key=lambda part: len(part[1]))
        prefix = os.path.commonprefix(list(tensors)).rpartition(".")[0]
        found = _below(tensors, f"{prefix}." if prefix and len(tensors) > 1 else "")
        return _match_by_position(found, wanted, path)
    best = [place for place in places if place[0] == most]
    averaged = [place for place in best if AVERAGED & set(place[1].lower().replace("_", ".").split("."))]
    best = averaged or best
    if len(best) > 1:
        names = ", ".join(repr(where) for _, where, *_ in best)
        raise ModelError(f"weights_path {path} holds the network {len(best)} times, below {names}. Save one of them alone.")
    _, _, tensors, prefix = best[0]
    return _below(tensors, prefix)


def load_fitting(model: nn.Module, state: Tensors, path: str | Path, name: str) -> None:
    """Load weights into a network; strict except for the head and for integers, which are counters or indices.

    Raise ModelError with the counts and first names if tensors are missing, left over, of another shape or not finite.
    """
    wanted = model.state_dict()
    weights = {key for key, value in wanted.items() if value.is_floating_point()}
    state = {key: value for key, value in state.items() if key in weights or _is_loaded(key, value, wanted, model)}
    differing = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    broken = [key for key in state if key in weights and not _is_usable(state[key])]
    problems = {
        "missing in the file": [key for key in wanted if key in weights and key not in state],
        "not in the network": [key for key in state if key not in wanted],
        "of another shape": [f"{key} {_size(state[key])} instead of {_size(wanted[key])}" for key in differing],
        "not finite floating-point numbers (quantised or broken)": broken,
    }
    listed = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if listed:
        raise ModelError(
            f"weights_path {path} does not fit {name}, which has {len(weights)} tensors. {'; '.join(listed)}. Name the"
            " architecture that the weights were made for (and the size, if tables of positions differ), or other weights."
        )
    model.load_state_dict(state, strict=False)


def _is_usable(value: torch.Tensor) -> bool:
    """True if a tensor is floating-point and finite."""
    return value.is_floating_point() and bool(value.isfinite().all())


def _is_loaded(key: str, value: torch.Tensor, wanted: Tensors, model: nn.Module) -> bool:
    """True if a tensor that is not one of the network's weights is loaded or reported rather than ignored."""
    if key in wanted:
        return value.shape == wanted[key].shape
    return value.is_floating_point() and not _is_head(key, model)


def _is_head(key: str, model: nn.Module) -> bool:
    """True if a name belongs to a classifier head."""
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    root = key.partition(".")[0]
    return root.startswith("head") or root in {"fc", "classifier", "AuxLogits", *(name.partition(".")[0] for name in names)}


def _read(path: Path) -> object:
    """Read a file as safetensors or with torch, whatever its suffix."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head[8:9] == b"{":  # safetensors, whatever the suffix: eight bytes of length, then JSON
        return safetensors.torch.load_file(path)
    with torch.serialization.safe_globals(list(HARMLESS)):
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(path: Path, error: Exception) -> str:
    """Return in one line why a file is unreadable, and what to do."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return "it is empty. Copy or download it again"
    if head.isascii() and "".join(head.decode("ascii").split()).isprintable():
        return "it is text, such as a web page or a Git LFS pointer. Download the file itself"
    if not zipfile.is_zipfile(path):
        is_pickle = isinstance(error, pickle.UnpicklingError)
        return f"it holds pickled Python objects or is damaged. {SAVE_ALONE}" if is_pickle else DAMAGED
    with zipfile.ZipFile(path) as file:
        names = {name.rpartition("/")[2] for name in file.namelist()}
    if "data.pkl" not in names:
        return f"it is a zip file of something else. {SAVE_ALONE}"
    if "constants.pkl" in names:
        return f"it is a TorchScript program. {SAVE_ALONE}"
    if not isinstance(error, pickle.UnpicklingError):
        return DAMAGED
    return f"it holds pickled Python objects{_objects(path)}, and this kit never runs pickled code. {SAVE_ALONE}"


def _objects(path: Path) -> str:
    """Return the names of the pickled objects in parentheses, or "" if they are unknown."""
    try:
        with torch.serialization.safe_globals(list(HARMLESS)):
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the pickle protocol is newer than torch's
        return ""
    return f" ({_some(sorted(found))})" if found else ""


def _parts(content: object, where: str = "", nesting: int = NESTING) -> Iterator[tuple[str, Tensors]]:
    """Yield each dictionary in a checkpoint that contains tensors, with the path of keys to it."""
    if not isinstance(content, Mapping):
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield where, tensors
    if nesting:
        for key, value in content.items():
            yield from _parts(value, f"{where}{key}.", nesting - 1)


def _prefixes(key: str) -> Iterator[str]:
    """Yield each prefix of a name that ends in a dot, and the empty one."""
    yield ""
    for place, letter in enumerate(key):
        if letter == ".":
            yield key[: place + 1]


def _below(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors under a prefix, without it, floating-point ones as float32."""
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}


def _match_by_position(found: Tensors, wanted: Mapping[str, torch.Tensor], path: str | Path) -> Tensors:
    """Rename tensors to the network's names if shapes and order match; otherwise return them unchanged."""
    # Older files lack batch counters (0-dimensional), and no result depends on them.
    ordered = [(key, value) for key, value in found.items() if value.ndim]
    names = [key for key, value in wanted.items() if value.ndim]
    fits = 0 <= len(ordered) - len(names) <= MOST_LEFT_OVER and all(
        _grey_shape(value) == _grey_shape(wanted[name]) and _may_be(key, name)
        for name, (key, value) in zip(names, ordered, strict=False)
    )
    if not fits:
        return found
    print(f"{path}: other names, same shapes in the same order: matched by position.")
    return {name: value for name, (_, value) in zip(names, ordered, strict=False)}


def _may_be(key: str, name: str) -> bool:
    """True if two names may mean the same tensor, by their last parts: an alphabetical file has bias before weight."""
    parts = [text.rpartition(".")[2] for text in (key, name)]
    return parts[0] == parts[1] or not all(part in NORM_PARTS for part in parts)


def _grey_shape(value: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's shape as if a stem's RGB filters were summed, which timm does later."""
    is_rgb = value.ndim == 4 and value.shape[1] == 3
    return (value.shape[0], 1, *value.shape[2:]) if is_rgb else tuple(value.shape)


def _size(value: torch.Tensor) -> str:
    """Return a tensor's shape as text."""
    return " x ".join(map(str, value.shape)) or "scalar"


def _some(keys: list[str]) -> str:
    """Return the first `SHOWN_KEYS` names as text."""
    return ", ".join(keys[:SHOWN_KEYS]) + (", …" if len(keys) > SHOWN_KEYS else "")
