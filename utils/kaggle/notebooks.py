"""The notebooks' order, the packages they import, and the inputs of their kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Package of each imported module; tests/kaggle/test_packages.py compares this with the imports.
READING = {
    "numpy": "numpy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
    "joblib": "joblib",
    "filelock": "filelock",
    "pebble": "pebble",  # decodes DICOMs in processes that may die
    "pydicom": "pydicom",
    "imagecodecs": "imagecodecs",
    "cv2": "opencv-python-headless",
}
LEARNING = READING | {"torch": "torch", "timm": "timm", "safetensors": "safetensors", "albumentations": "albumentations"}
EXPORTING = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Notebook:
    """A notebook and its kernel on Kaggle."""

    name: str
    next: str  # the notebook that follows; empty after the last one
    needs: Mapping[str, str]  # package of each imported module
    optional: Mapping[str, str] = field(default_factory=dict)  # the same; without them it is slower
    is_on_gpu: bool = False
    takes: tuple[str, ...] = ()  # notebooks whose kernels' output it always takes
    takes_for_runs: tuple[str, ...] = ()  # further ones if the bundle has no run, so that runs are trained on Kaggle
    reads_runs: bool = False  # takes the bundle's runs


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
