"""Datasets with weights to start a training from, for kernels without internet."""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import KitError
from utils.core.files import read_json, replace_folder, write_json
from utils.core.folders import KAGGLE_INPUT, KIT, is_from_kit
from utils.kaggle.machine import HUB, check_hub
from utils.kaggle.metadata import LONGEST_NAME, PRETRAINED, describe_dataset, slug_of

FACTS = "weights.json"  # marks such a folder
LICENCE = """Weights of {architecture}.
Source: {source}
Licence: {licence}

This dataset is private. Read the licence at the source before you share the dataset, or use it in a competition
whose rules limit outside data.
"""


class PretrainedError(KitError):
    """Weights are unavailable or can't be written; the message says what to do."""


@dataclass(frozen=True)
class Pretrained:
    """A folder that is ready to be pushed as a dataset."""

    folder: Path
    architecture: str

    @property
    def file(self) -> str:
        """Name of the file with the weights."""
        return f"{self.architecture}.safetensors"

    @property
    def mounted(self) -> Path:
        """The file's path on Kaggle; `utils.core.folders.resolve` finds it at Kaggle's other mount point too."""
        return KAGGLE_INPUT / self.folder.name / self.file


def find_pretrained(root: Path) -> list[Pretrained]:
    """List the folders that `write_pretrained` wrote under ``root``."""
    folders = [path for path in sorted(root.glob(f"{PRETRAINED}*")) if is_from_kit(path, FACTS)]
    return [Pretrained(path, read_json(path / FACTS)["architecture"]) for path in folders]


def write_pretrained(root: Path, username: str, architecture: str, file: Path | None = None) -> Pretrained:
    """Write weights as a dataset: a safetensors file, a note on the licence, and metadata.

    Parameters
    ----------
    root : Path
        The dataset's folder in it is named after the architecture, and replaced if it exists.
    username : str
        Name of the Kaggle account.
    architecture : str
        A network of timm, perhaps with a tag that names its weights.
    file : Path or None
        Weights of this architecture, as `utils.networks.weights.read_weights` takes them; without, timm's own.

    Raises
    ------
    KitError
        If timm has no such network or weights, the hub does not answer, or the file is unreadable or does not fit.
    """
    import safetensors.torch  # late, with the networks: torch takes seconds

    _check_architecture(architecture)
    weights = _of_file(file, architecture) if file else _of_timm(architecture)
    folder = root / f"{PRETRAINED}{slug_of(architecture)}"[:LONGEST_NAME].strip("-")
    if folder.exists() and not is_from_kit(folder, FACTS):
        raise PretrainedError(f"{folder} is not from this kit: move it.")
    written = Pretrained(folder, architecture)
    with replace_folder(folder) as new:
        content = safetensors.torch.save(weights.tensors)
        (new / written.file).write_bytes(content)
        _try(file or new / written.file, architecture, weights.image_size)
        note = LICENCE.format(architecture=architecture, source=weights.source, licence=weights.licence)
        (new / "LICENCE.txt").write_text(note, encoding="utf-8")
        digest = hashlib.sha256(content).hexdigest()
        write_json(new / FACTS, {"name": KIT, "architecture": architecture, "source": weights.source, "sha256": digest})
        describe_dataset(new, username, folder.name.replace("-", " ").capitalize(), "Weights that a training starts from")
    return written


@dataclass(frozen=True)
class _Weights:
    tensors: dict  # by timm's names
    image_size: tuple[int, int]  # that they were made for
    source: str
    licence: str


def _check_architecture(name: str) -> None:
    import timm

    has_tag = "." in name  # is_model ignores tags
    if not timm.is_model(name) or (has_tag and not timm.models.is_model_pretrained(name)):
        nearest = difflib.get_close_matches(name, timm.list_models(pretrained=True if has_tag else None), n=3)
        hint = f"the nearest are {', '.join(nearest)}" if nearest else "timm.list_models() lists its networks"
        raise PretrainedError(f"{name!r} is neither a file nor a network of timm: {hint}.")


def _of_timm(architecture: str) -> _Weights:
    import timm

    config = timm.get_pretrained_cfg(architecture)  # None for an old name
    if config and not config.has_weights:
        raise PretrainedError(f"timm has no weights of {architecture}: choose another network, or give a file.")
    if not (config and config.file) and any(finding.is_fatal for finding in check_hub()):
        raise PretrainedError(
            "The hub of timm's weights does not answer: check the network, or give a file:"
            f" python -m utils.kaggle weights FILE --architecture {architecture}"
        )
    try:
        model = timm.create_model(architecture, pretrained=True)
    except Exception as error:  # timm's, the hub's and torch's
        raise PretrainedError(
            f"timm can't load the weights of {architecture} ({type(error).__name__}: {error}): try again, or give a file."
        ) from error
    known = model.pretrained_cfg
    hub = f"{HUB}/{known['hf_hub_id']}" if known.get("hf_hub_id") else ""
    source = f"{hub or known.get('url') or 'a local file'}, loaded by timm {timm.__version__}"
    licence = known.get("license") or "unknown to timm"
    return _Weights(_separate(model.state_dict()), known["input_size"][1:], source, licence)


def _of_file(file: Path, architecture: str) -> _Weights:
    import timm

    from utils.networks.weights import find_weights, is_of_kit, read_weights

    if (file / "config.json").is_file() or is_of_kit(file):
        raise PretrainedError(
            f"{file} is a run of this kit, and a record of the patients that it saw must be kept: upload the run's folder as"
            " a dataset, attach it to the kernel, and give its path as weights_path."
        )
    model = timm.create_model(architecture, num_classes=0)
    tensors = find_weights(read_weights(file), model.state_dict(), file)
    licence = "write it here, as the file's source states it"
    return _Weights(_separate(tensors), model.pretrained_cfg["input_size"][1:], f"the file {file.name}", licence)


def _separate(tensors: Mapping) -> dict:
    """Return copies, since safetensors refuses tensors that share memory."""
    return {name: value.contiguous().clone() for name, value in tensors.items()}


def _try(path: Path, architecture: str, image_size: tuple[int, int]) -> None:
    """Load weights as a training will, so that what does not fit is known now."""
    from utils.networks.encoders import build_encoder
    from utils.runs.config import ModelConfig

    height, width = image_size
    build_encoder(ModelConfig(architecture, height, width, weights_path=str(path)))
