"""Facts about docs/architecture.md: the files that it names are there, and its examples train."""

import re
from pathlib import Path

import pytest

from tests.helpers import TINY, make_config
from utils.images.training_data import TrainingData
from utils.training import augment, learner
from utils.training.folds import train_run

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def example(after: str) -> dict:
    """Names that the first Python block after a heading defines."""
    names = {"__name__": "__main__"}  # as in a notebook
    exec(re.search(r"```python\n(.*?)```", TEXT[TEXT.index(f"**{after}.**") :], re.DOTALL)[1], names)
    return names


def test_files_and_functions_are_where_it_says():
    for file in set(re.findall(r"`((?!tests)\w+/\w+\.py)`", TEXT)):
        assert (ROOT / "utils" / file).is_file(), file
    for file, name in re.findall(r"`((?!tests)\w+/\w+\.py)`, `(?:\w+\.)?(\w+)(?:\(folder\))?`", TEXT):
        source = (ROOT / "utils" / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE), name


@pytest.mark.parametrize("part", ["A network", "A loss", "An augmentation"])
def test_own_part_trains(part, images, cache_dir, tmp_path, monkeypatch):
    names = example(part)
    if part == "A loss":
        monkeypatch.setattr(learner, "cancer_loss", names["cancer_loss"])
    if part == "An augmentation":
        monkeypatch.setattr(augment, "_list_transforms", names["_list_transforms"])
    config = make_config(TINY, names.get("architecture", "cnn"), epochs=1, folds=(0,))
    assert len(train_run(config, TrainingData(images, cache_dir), tmp_path / "run"))
