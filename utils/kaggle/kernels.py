"""The kernels of a bundle: one per notebook, or several that train, each with its parameters and inputs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from utils.core.errors import KitError
from utils.core.files import read_json
from utils.core.folders import COMPETITION
from utils.core.names import suggest
from utils.core.parameters import ParameterError
from utils.images.inputs import REAL_SIZE
from utils.images.settings import CacheSettings
from utils.kaggle.metadata import LONGEST_NAME, MARKER, PRETRAINED, RUNS, T4_TWICE, slug_of
from utils.kaggle.notebooks import NOTEBOOKS, Notebook
from utils.kaggle.parameter_cells import (
    convert_values,
    default_values,
    is_parameters,
    parameters_source,
    read_values,
    write_values,
)
from utils.kaggle.pretrained import Pretrained
from utils.runs.config import TrainConfig
from utils.runs.execution import Execution
from utils.runs.settings import choose_settings

TRAIN = "train"
TRAIN_KERNEL = rf"{TRAIN}(-[a-z0-9]+)*"
LONGEST_KERNEL = 12.0  # hours, on Kaggle


class SettingError(KitError):
    """A value for a kernel's parameter can't be understood; the message says how to write it."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of a bundle, with its parameters."""

    name: str  # the notebook's, or train-NAME
    notebook: Notebook
    usual: dict[str, object] = field(default_factory=dict)  # the notebook's defaults, and values that the bundle sets
    carried: dict[str, object] = field(default_factory=dict)  # from the earlier bundle's kernel
    given: dict[str, object] = field(default_factory=dict)  # from --set

    @property
    def values(self) -> dict[str, object]:
        """Its parameters."""
        return self.usual | self.carried | self.given

    @property
    def file(self) -> str:
        """Name of its notebook's file."""
        return f"{self.notebook.name}.ipynb"

    @property
    def title(self) -> str:
        """Title on Kaggle, of which Kaggle makes the slug."""
        return f"Mammography kit {re.sub('[_-]', ' ', self.name)}"

    @property
    def slug(self) -> str:
        """Last part of its id on Kaggle."""
        return slug_of(self.title)

    def fill(self, notebook: dict) -> dict:
        """Return the notebook with this kernel's parameters."""
        cells = [_with_values(cell, self.values) if is_parameters(cell) else cell for cell in notebook["cells"]]
        return notebook | {"cells": cells}


def _with_values(cell: dict, values: Mapping[str, object]) -> dict:
    source = "".join(cell["source"])
    changed = _differing(values, default_values(source))
    return cell | {"source": write_values(source, changed).splitlines(keepends=True)}


def _differing(values: Mapping[str, object], usual: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name not in usual or repr(value) != repr(usual[name])}


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read ``KERNEL:NAME=VALUE`` texts into values by kernel and name; raise SettingError if one has another form."""
    settings: dict[str, dict[str, str]] = {}
    for text in texts:
        parts = re.fullmatch(r"([\w-]+):(\w+)=(.*)", text, re.DOTALL)
        if not parts:
            raise SettingError(
                f"--set {text!r} is not KERNEL:NAME=VALUE, such as train:epochs=12."
                " Quote a value with spaces: --set 'train:recipe=strong mixup=0.4'."
            )
        kernel, name, value = parts.groups()
        settings.setdefault(kernel, {})[name] = value
    return settings


def kernel_names(former: Path | None, train_kernels: Sequence[str]) -> list[str]:
    """List a bundle's kernels: those that train are the earlier bundle's and the named ones, else ``train``."""
    kept = [path.name for path in sorted(former.glob("kernels/*")) if re.fullmatch(TRAIN_KERNEL, path.name)] if former else []
    training = list(dict.fromkeys([*kept, *train_kernels])) or [TRAIN]
    return [name for notebook in NOTEBOOKS for name in (training if notebook == TRAIN else [notebook])]


def name_problems(names: Sequence[str], train_kernels: Sequence[str], settings: Mapping[str, object]) -> Iterator[str]:
    """Yield problems with the names of additional ``train_kernels``, and with those that ``settings`` are for."""
    for name in train_kernels:
        if not re.fullmatch(TRAIN_KERNEL, name):
            yield f"--kernel {name} must be train or train-NAME, with a NAME of a-z, 0-9 and single hyphens."
        elif len(Kernel(name, NOTEBOOKS[TRAIN]).title) > LONGEST_NAME:
            yield f"--kernel {name} is too long: its title on Kaggle may have {LONGEST_NAME} characters."
    for name in settings:
        if name not in names:
            yield f"--set {name}:…: there is no kernel {name}. {suggest(name, names)} --kernel adds one that trains."


def plan_kernel(
    name: str, notebook: dict, settings: Mapping[str, str], former: Path | None, weights: Sequence[Pretrained]
) -> Kernel:
    """Choose a kernel's parameters: those of ``settings``, else the edits in the earlier bundle's kernel.

    A kernel that trains starts from the ``weights`` of its architecture, unless its ``weights_path`` was chosen.
    Raise ParameterError, which begins with the place, if a name or a value does not fit the notebook.
    """
    source = parameters_source(notebook)
    with _naming(f"--set {name}:…"):
        given = convert_values(source, settings)
    changed = _changed(former, name, source) if former else {}
    with _naming(f"{former}/kernels/{name} can't be carried over, so correct its parameters cell or delete it"):
        carried = convert_values(source, {key: value for key, value in changed.items() if key not in given})
    defaults = default_values(source)
    chosen = carried | given
    if "recipe" in defaults:
        with _naming(f"kernels/{name}"):
            architecture = _check_training(defaults | chosen).model.architecture
        fitting = [one for one in weights if architecture in (one.architecture, one.architecture.partition(".")[0])]
        if fitting and "weights_path" not in chosen:
            defaults["weights_path"] = str(fitting[0].mounted)
    return Kernel(name, notebook_of(name), defaults, carried, given)


def _check_training(values: Mapping[str, object]) -> TrainConfig:
    """Return the configuration that train.ipynb would make of the values; raise KitError if it would refuse them."""
    settings = choose_settings(values, is_trial=False).values
    Execution.from_parameters(settings)
    return TrainConfig.from_parameters(settings, CacheSettings(*_size(settings)))


def _changed(former: Path, name: str, source: str) -> dict[str, object]:
    """Return the parameters of an earlier kernel that differ from those that the bundle wrote."""
    path = former / "kernels" / name / f"{notebook_of(name).name}.ipynb"
    if not path.is_file():
        return {}
    with _naming(str(path)):
        try:
            edited = parameters_source(read_json(path))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ParameterError(f"it is not a notebook ({error!r}): delete its folder.") from None
        usual = read_json(former / MARKER).get("parameters", {}).get(name)  # an earlier kit did not keep it
        return _differing(read_values(edited), default_values(source) if usual is None else usual)


@contextmanager
def _naming(place: str) -> Iterator[None]:
    try:
        yield
    except KitError as error:
        raise ParameterError(f"{place}: {error}") from None


def notebook_of(kernel: str) -> Notebook:
    """Return the notebook that a kernel runs."""
    return NOTEBOOKS[kernel if kernel in NOTEBOOKS else TRAIN]


def notebook_of_slug(slug: str) -> Notebook | None:
    """Return the notebook that a kernel with this slug runs; None if it is not the kit's."""
    by_slug = {Kernel(name, notebook).slug: notebook for name, notebook in NOTEBOOKS.items()}
    train = Kernel(TRAIN, NOTEBOOKS[TRAIN]).slug
    return by_slug.get(train if slug.startswith(f"{train}-") else slug)


def kernel_metadata(kernel: Kernel, kernels: Sequence[Kernel], username: str, datasets: Mapping[str, str]) -> dict:
    """Return a kernel's metadata for Kaggle's client; ``datasets`` gives the id of each of the bundle's datasets."""
    notebook = kernel.notebook
    runs = [dataset for part, dataset in datasets.items() if part.startswith(RUNS)]
    weights = [dataset for part, dataset in datasets.items() if part.startswith(PRETRAINED)]
    sources = [dataset for dataset in datasets.values() if dataset not in (*runs, *weights)]
    sources += runs if notebook.reads_runs else weights if notebook.name == TRAIN else []
    before = notebook.takes if runs else notebook.takes + notebook.takes_for_runs
    return {
        "id": f"{username}/{kernel.slug}",
        "title": kernel.title,
        "code_file": kernel.file,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": notebook.is_on_gpu,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": T4_TWICE if notebook.is_on_gpu else "",
        "dataset_sources": sources,
        "competition_sources": [COMPETITION],
        "kernel_sources": [f"{username}/{one.slug}" for one in kernels if one.notebook.name in before],
        "model_sources": [],
    }


def describe(kernels: Sequence[Kernel], weights: Sequence[Pretrained]) -> Iterator[str]:
    """Yield a line on the parameters that were carried over, and one on each kernel or weights that start a training."""
    given = [f"{kernel.name}:{name}={value}" for kernel in kernels for name, value in kernel.given.items()]
    if given:
        yield f"Set: {'; '.join(given)}."
    carried = [f"{kernel.name}:{name}={value}" for kernel in kernels for name, value in kernel.carried.items()]
    if carried:
        yield f"Carried over from the earlier bundle: {'; '.join(carried)}."
    training = [kernel for kernel in kernels if kernel.notebook.name == TRAIN]
    cached = next((kernel.values for kernel in kernels if kernel.name == "preprocess"), {})
    for kernel in training:
        yield from _training_warnings(kernel, cached)
    for one in weights:
        starting = [kernel.name for kernel in training if kernel.values.get("weights_path") == str(one.mounted)]
        if starting:
            yield f"{', '.join(starting)} will start from {one.folder.name} (weights_path)."
        else:
            example = f"--set {training[0].name}:weights_path={one.mounted}"
            yield f"No training starts from {one.folder.name} ({one.architecture}). To start from it: {example}"


def _size(values: Mapping[str, object]) -> tuple[int, int]:
    sizes = dict(zip(("image_height", "image_width"), REAL_SIZE, strict=True))
    height, width = (usual if values.get(side) is None else values[side] for side, usual in sizes.items())
    return height, width


def _training_warnings(kernel: Kernel, cached: Mapping[str, object]) -> Iterator[str]:
    """Yield what a training would lack, or waste its GPU's hours on; ``cached`` has the parameters of preprocess."""
    settings = choose_settings(kernel.values, is_trial=False)
    values, hours = settings.values, settings.recipe.hours
    if values.get("pretrained") and not values.get("weights_path"):
        yield (
            f"Warning: {kernel.name} starts from pretrained weights, and its kernel has no internet. Run"
            f" python -m utils.kaggle weights {values['architecture']}, then write the bundle again."
        )
    made, wanted = _size(cached), _size(values)
    if made != wanted:
        yield (
            f"Warning: {kernel.name} reads images of {wanted[0]} x {wanted[1]} px, and preprocess makes {made[0]} x {made[1]}."
            f" Add --set preprocess:image_height={wanted[0]} preprocess:image_width={wanted[1]}."
        )
    if hours and hours > LONGEST_KERNEL and "folds" not in settings.changes:
        yield (
            f"Warning: {kernel.name} is estimated to train for {hours:g} h, and a kernel may run {LONGEST_KERNEL:g} h. Train a"
            f" few folds at a time: --set {kernel.name}:folds=0."
        )
