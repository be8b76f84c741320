"""What several test files need: small configurations, and made-up runs."""

import contextlib
import hashlib
from pathlib import Path

import numpy as np
import pytest

from utils.core.files import write_json
from utils.images.settings import CacheSettings

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
TINY = CacheSettings(image_height=64, image_width=48)
ESTIMATE = {"value": 0.4, "low": 0.3, "high": 0.5}
TUNED = {  # as in a threshold.json, of one run
    "threshold": 0.3,
    "choice": "plateau",
    "calibration": {"method": "platt", "slope": 0.5, "intercept": -1.0, "inputs": [], "outputs": []},
    "aggregation": "mean",
    "one_image": False,
    "pf1": 0.45,
    "pf1_nested": ESTIMATE,
    "pf1_patient_nested": ESTIMATE,
    "optimism": 0.05,
    "auc": ESTIMATE,
    "site_thresholds": {"1": 0.2, "2": 0.4},
    "site_gain": ESTIMATE,
    "breasts": 100,
    "positives": 2,
    "prevalence": 0.02,
    "runs": ["/runs/a"],
    "weights": [1.0],
    "oof_hashes": ["0123456789ab"],
}


def make_config(settings, architecture="cnn", model=None, **changes):
    """A configuration of few steps; ``model`` changes the network's part."""
    from utils.runs.config import (
        ModelConfig,
        TrainConfig,  # the oldest versions are tested without torch
    )

    network = ModelConfig(architecture, settings.image_height, settings.image_width, encoders=("cnn",), **model or {})
    values = {"n_folds": 2, "epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"}
    return TrainConfig(network, settings, **values | changes)


@contextlib.contextmanager
def killed_in_second_epoch(monkeypatch):
    """Let a training that happens inside be interrupted at the beginning of its second epoch."""
    from utils.training.fitting import Fitting  # the oldest versions are tested without torch

    train = Fitting.train_epoch

    def kill(self, epoch, bar):
        if epoch == 1:
            raise KeyboardInterrupt
        return train(self, epoch, bar)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fitting, "train_epoch", kill)
        yield


def write_run(run_dir, oof):
    """A made-up finished run; logits follow from the probabilities."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with np.errstate(invalid="ignore"):
        oof = oof.assign(logit=np.log(oof.probability / (1 - oof.probability)))
    oof.to_csv(run_dir / "oof.csv", index=False)
    oof[["patient_id", "fold"]].drop_duplicates().to_csv(run_dir / "folds.csv", index=False)
    write_json(run_dir / "config.json", {"prevalence": 0.25})
    return run_dir


def write_tuned(path, *runs):
    """A made-up threshold.json of runs, which need not be there."""
    tables = [Path(run) / "oof.csv" for run in runs]
    contents = [table.read_bytes() if table.is_file() else b"" for table in tables]
    hashes = [hashlib.sha256(content).hexdigest()[:12] for content in contents]
    of_runs = {"runs": [str(run) for run in runs], "weights": [1.0] * len(runs), "oof_hashes": hashes}
    write_json(path, TUNED | of_runs)
    return path
