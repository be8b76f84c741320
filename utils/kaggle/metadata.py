"""Names and metadata by which Kaggle's client knows a bundle's folders."""

import re
import unicodedata
from pathlib import Path

from utils.core.files import write_json

DATASET_FILE, KERNEL_FILE = "dataset-metadata.json", "kernel-metadata.json"
MARKER = "bundle.json"  # only a folder that contains it is replaced
RUNS, PRETRAINED = "weights-", "pretrained-"  # beginnings of the names of folders with a run, and with weights to start from
LONGEST_NAME = 50  # characters of a title or a slug
# The client's name for two T4 (kagglesdk, ApiSaveKernelRequest). For an unknown name Kaggle silently gives a P100.
T4_TWICE = "NvidiaTeslaT4"


def slug_of(title: str) -> str:
    """Return the slug that Kaggle makes of a title: a-z, 0-9 and single hyphens."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")


def describe_dataset(folder: Path, username: str, title: str, subtitle: str) -> None:
    """Write the metadata of a dataset's folder."""
    metadata = {"title": title, "id": f"{username}/{slug_of(title)}", "subtitle": subtitle, "licenses": [{"name": "other"}]}
    write_json(folder / DATASET_FILE, metadata)
