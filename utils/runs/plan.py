"""The plan of train.ipynb: its settings, data, configuration and folder, before anything is preprocessed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.core.devices import cpu_count
from utils.core.folders import resolve, runs_dir
from utils.images.inputs import Inputs, has_real_data, open_inputs
from utils.images.training_data import TrainingData
from utils.runs.config import TrainConfig
from utils.runs.execution import Execution
from utils.runs.folder import MAY_CHANGE
from utils.runs.settings import Settings, read_settings

SMOKE_TEST = {"n_folds": 2, "epochs": 1, "batch_size": 8}
SMOKE_REPLACES = (*SMOKE_TEST, "folds", "patch_epochs", "image_height", "image_width")
HASH_LENGTH = 6


@dataclass(frozen=True)
class Plan:
    """A requested training; ``extra_competition_dirs`` and ``boxes`` include those of the other sets."""

    settings: Settings
    inputs: Inputs
    extra_competition_dirs: str
    config: TrainConfig
    execution: Execution
    run_dir: Path
    boxes: pd.DataFrame | None

    def expected_data(self) -> TrainingData:
        """Return the run's training data if every image is readable."""
        return self.inputs.training_data(self.boxes, self.extra_competition_dirs)

    def table(self) -> pd.DataFrame:
        """Return the settings that differ from the defaults, and who set them."""
        used = vars(self.execution) | vars(self.config) | vars(self.config.model)
        rows = {}
        for name, asked in self.settings.values.items():
            value = used.get(name, asked)
            set_by = "you" if name in self.settings.changes else f"recipe {self.settings.name}"
            is_replaced = self.inputs.smoke_test and name in SMOKE_REPLACES and value != asked
            rows[name] = (value, "smoke_test" if is_replaced else set_by)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "set by"])

    def data(self, num_workers: int) -> TrainingData:
        """Preprocess what the caches lack, and return the run's training data; raise KitError if there is none."""
        return self.inputs.cached_training_data(num_workers, self.boxes, self.extra_competition_dirs)


def make_plan(parameters: Mapping[str, object], has_gpu: bool) -> Plan:
    """Read train.ipynb's parameters, find its data, and print both.

    Parameters
    ----------
    parameters : mapping of str to object
        From `utils.core.parameters.read_parameters`.
    has_gpu : bool
        Images are loaded by one process per CPU core if there is a GPU, and by the training process otherwise.

    Raises
    ------
    KitError
        If a value is unknown, out of range, or contradicts another one, or the data are not found.
    """
    smoke_test, competition_dir = parameters["smoke_test"], parameters["competition_dir"]
    settings = read_settings(parameters, is_trial=smoke_test or not has_real_data(competition_dir))
    values = settings.values
    sizes = settings.changes if smoke_test else values  # a smoke test's images are tiny, whatever the recipe says
    inputs = open_inputs(
        competition_dir,
        parameters["cache_dir"],
        sizes.get("image_height"),
        sizes.get("image_width"),
        smoke_test,
        values.get("exact", False),
    )
    if smoke_test:
        values |= SMOKE_TEST
        values["folds"] = tuple(fold for fold in values.get("folds", ()) if fold < SMOKE_TEST["n_folds"])
        values["patch_epochs"] = min(1, values.get("patch_epochs", 0))
    if values.get("weights_path"):
        values["weights_path"] = str(resolve(values["weights_path"]))
    config = TrainConfig.from_parameters(values, inputs.settings)
    extra = parameters["extra_competition_dirs"]
    return Plan(
        settings,
        inputs,
        extra,
        config,
        Execution.from_parameters({"num_workers": cpu_count() if has_gpu else 0} | values),
        resolve(parameters["run_dir"]) if parameters["run_dir"] else _default_run_dir(settings.name, config, inputs, extra),
        inputs.boxes(values.get("boxes_path"), extra) if config.needs_boxes else None,
    )


def _default_run_dir(recipe: str, config: TrainConfig, inputs: Inputs, extra_competition_dirs: str) -> Path:
    """Name a run's folder after the settings that determine its weights, so each experiment has its own and resumes there."""
    content = {name: value for name, value in config.to_json().items() if name not in MAY_CHANGE}
    content["model"]["weights_path"] = Path(config.model.weights_path).name
    sets = [inputs.competition_dir.name, *(Path(name).name for name in extra_competition_dirs.split(","))]
    digest = hashlib.sha256(json.dumps([content, sets], sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]
    size = f"{config.model.image_height}x{config.model.image_width}"
    folder = runs_dir(inputs.is_phantom, inputs.smoke_test)
    return folder / f"{recipe}-{config.model.architecture}-{size}-{digest}"
