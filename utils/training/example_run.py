"""Runs for a notebook: existing ones, or a small example that is trained on the phantom."""

from collections.abc import Sequence
from pathlib import Path

from utils.core.devices import cpu_count
from utils.core.folders import runs_dir
from utils.decision.tuning import tuned_runs
from utils.images.inputs import has_real_data, open_inputs
from utils.runs.code import warn_of_other_code
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.errors import PredictionError
from utils.runs.found import find_runs, runs_under


def find_or_train_runs(
    run_dirs: str | Sequence[str] | None = None,
    smoke_test: bool = False,
    competition_dir: str | Path = "",
    may_train: bool = True,
) -> list[Path]:
    """Find finished runs; if there are none and no real competition's data either, train a small one on the phantom.

    Print a warning if runs were trained with other code than today's.

    Parameters
    ----------
    may_train : bool
        False raises instead of training.

    Raises
    ------
    PredictionError
        If there is no finished run, and real data or not ``may_train``.
    """
    runs = find_runs(run_dirs) if run_dirs or not smoke_test else []
    for_show = smoke_test or not has_real_data(competition_dir)
    if not runs and for_show:
        runs = runs_under(runs_dir(is_phantom=True, smoke_test=smoke_test))
    if runs:
        warn_of_other_code(runs)
        return runs
    if not for_show or not may_train:
        raise PredictionError(f"No finished run under {runs_dir()}: run train.ipynb first, or set run_dirs.")
    from utils.training.folds import train_run

    print("No finished run found: training a small CNN on the phantom competition as an example.")
    inputs = open_inputs(None, smoke_test=smoke_test)
    data = inputs.cached_training_data(cpu_count())
    model = ModelConfig("cnn", inputs.settings.image_height, inputs.settings.image_width)
    config = TrainConfig(
        model,
        inputs.settings,
        n_folds=2,
        epochs=1 if smoke_test else 5,
        batch_size=8,
        learning_rate=1e-3,
        positive_share=0.5,
    )
    run_dir = runs_dir(inputs.is_phantom, smoke_test) / "cnn-example"
    train_run(config, data, run_dir)
    return [run_dir]


def runs_to_submit(
    run_dirs: str = "", threshold_path: str = "", smoke_test: bool = False, competition_dir: str | Path = ""
) -> list[Path]:
    """Return the named runs; else those that a threshold was tuned on, wherever they are now; else all."""
    tuned = [] if run_dirs else tuned_runs(threshold_path, smoke_test, competition_dir)
    if tuned:
        warn_of_other_code(tuned)
    return tuned or find_or_train_runs(run_dirs, smoke_test, competition_dir)
