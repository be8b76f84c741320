"""The facts about the notebooks that are told of nowhere else: their order, what they import, and what their kernels take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Modules that are imported, and their packages; tests/kaggle/test_packages.py follows the imports and holds this to them.
READING = {
    "numpy": "numpy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
    "joblib": "joblib",
    "filelock": "filelock",
    "pebble": "pebble",  # DICOMs are decoded in processes that may die
    "pydicom": "pydicom",
    "imagecodecs": "imagecodecs",
    "cv2": "opencv-python-headless",
}
LEARNING = READING | {"torch": "torch", "timm": "timm", "safetensors": "safetensors", "albumentations": "albumentations"}
EXPORTING = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Notebook:
    """A notebook and its kernel on Kaggle.

    Parameters
    ----------
    name : str
    next : str
        The notebook that follows; empty after the last one.
    needs, optional : mapping of str to str
        Package by the module that is imported; without the optional ones it is slower.
    is_on_gpu : bool
    takes : tuple of str
        Notebooks whose kernels' output it takes, whatever is in the bundle.
    takes_for_runs : tuple of str
        Further ones where no run is in the bundle, so that they are trained on Kaggle.
    reads_runs : bool
        Whether it takes the runs that are in the bundle.
    """

    name: str
    next: str
    needs: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    is_on_gpu: bool = False
    takes: tuple[str, ...] = ()
    takes_for_runs: tuple[str, ...] = ()
    reads_runs: bool = False


NOTEBOOKS = {
    notebook.name: notebook
    for notebook in (
        Notebook("explore", "preprocess", READING),
        Notebook("preprocess", "train", READING),
        Notebook("train", "tune_threshold", LEARNING, is_on_gpu=True, takes=("preprocess",)),
        Notebook("tune_threshold", "submit", LEARNING, takes_for_runs=("train",), reads_runs=True),
        Notebook(
            "report",
            "submit",
            LEARNING,
            is_on_gpu=True,
            takes_for_runs=("preprocess", "train", "tune_threshold"),
            reads_runs=True,
        ),
        Notebook(
            "submit", "", LEARNING, EXPORTING, is_on_gpu=True, takes_for_runs=("train", "tune_threshold"), reads_runs=True
        ),
    )
}
