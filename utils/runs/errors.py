"""Errors of runs, in a module that every other one can import."""

from utils.core.errors import KitError

REMEDY = "Copy the run again from where it was trained, or train it again in a new run_dir."  # if a file of a run is broken


class ModelError(KitError, ValueError):
    """A network can't be built, or weights do not fit it; the message gives the remedy."""


class TrainingError(KitError):
    """A run can't be trained, resumed or read; the message gives the remedy."""


class PredictionError(KitError):
    """Runs or predictions can't be used together; the message gives the remedy."""
