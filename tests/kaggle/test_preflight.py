"""Facts about the preflight: what would fail after hours is found before the heavy work, all at once."""

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import TINY
from utils.images.inputs import Inputs
from utils.images.settings import CacheSettings
from utils.kaggle import machine
from utils.kaggle.findings import Finding, PreflightError, refusals, report
from utils.kaggle.preflight import IMAGE_BYTES, check_images, count_missing, preflight_images, room_for
from utils.tables import read_images


@pytest.fixture
def real(competition, tmp_path):
    """A competition that a test may break."""
    return shutil.copytree(competition, tmp_path / "real", ignore=shutil.ignore_patterns("phantom*"))


def inputs_of(folder: Path, cache_dir: Path, settings: CacheSettings = TINY) -> Inputs:
    return Inputs(folder, False, settings, cache_dir, False)


def image_files(folder: Path, split: str = "test") -> list[Path]:
    with open(folder / f"{split}.csv", newline="") as file:
        return [folder / f"{split}_images" / row["patient_id"] / f"{row['image_id']}.dcm" for row in csv.DictReader(file)]


def test_what_is_in_order_passes_without_a_warning(real, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "free_memory", lambda: 64 * 10**9)  # a full test machine is not the subject
    preflight_images(inputs_of(real, tmp_path / "cache"), ["train", "test"], 2)
    assert re.fullmatch(r"\d+ CPU cores; free: 64.0 GB of memory and .+ GB of disk in .+\n", capsys.readouterr().out)


def test_all_problems_are_told_at_once_each_with_its_remedy(real, tmp_path):
    shutil.rmtree(real / "test_images")
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError) as caught:
        preflight_images(inputs_of(real, tmp_path / "file" / "cache"), ["test"], 0, cluster="10.0.0.1")
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("Problems: 3.") and [line.partition(" ")[0] for line in lines] == ["1.", "2.", "3."]
    for line, what in zip(lines, ("can't be written", "test.csv", "10.0.0.1"), strict=True):
        assert what in line


def test_warnings_are_printed_and_end_nothing(capsys):
    report([Finding("It rains.", "take a coat.", is_fatal=False)], "A machine")
    assert capsys.readouterr().out == "A machine\nWarning: It rains. Remedy: take a coat.\n"


def test_error_of_another_package_is_fatal_too():
    (finding,) = refusals(lambda: [][0])
    assert finding.is_fatal and "IndexError" in finding.problem and finding.remedy


def test_images_that_the_cache_lacks_need_room(real, images, test_images, cache_dir, tmp_path):
    full, empty = inputs_of(real, cache_dir), inputs_of(real, tmp_path / "cache")
    assert count_missing(full, {"train": images}) == {"train": 0} and room_for(full, {"train": 0}) == {}
    missing = count_missing(empty, {"train": images, "test": test_images})
    assert missing == {"train": len(images), "test": len(test_images)}
    needed = (len(images) + len(test_images)) * TINY.image_height * TINY.image_width * IMAGE_BYTES
    assert room_for(empty, missing) == {tmp_path / "cache": pytest.approx(needed)}
    assert room_for(replace(empty, settings=CacheSettings(128, 96)), missing)[tmp_path / "cache"] == pytest.approx(4 * needed)


@pytest.mark.parametrize(
    "problem, damage",
    {
        "does not exist": Path.unlink,
        "does not begin like a DICOM file": lambda path: path.write_bytes(b"<html>" + bytes(200)),
    }.items(),
)
def test_one_bad_image_is_a_warning_and_all_are_fatal(problem, damage, real, tmp_path):
    files, inputs = image_files(real), inputs_of(real, tmp_path / "cache")
    damage(files[0])
    (first,) = check_images(inputs, {"test": inputs.images("test")})
    assert not first.is_fatal and str(files[0]) in first.problem and problem in first.problem
    assert "1 of 5 checked images" in first.problem
    for path in files[1:]:
        damage(path)
    (every,) = check_images(inputs, {split: inputs.images(split) for split in inputs.splits})
    assert every.is_fatal and "of test.csv" in every.problem


def test_images_are_not_needed_where_the_cache_is_complete(real, cache_dir, tmp_path):
    shutil.rmtree(real / "train_images")
    preflight_images(inputs_of(real, cache_dir), ["train"], 0)
    (finding,) = check_images(inputs_of(real, cache_dir), {"train": read_images(real, "train")})
    assert finding.is_fatal and f"{real / 'train_images'} does not exist" in finding.remedy
    with pytest.raises(PreflightError, match=r"of train\.csv can't be read"):
        preflight_images(inputs_of(real, tmp_path / "cache"), ["train"], 0)


def test_each_table_is_read_once(real, tmp_path, monkeypatch):
    read, images = [], Inputs.images
    monkeypatch.setattr(Inputs, "images", lambda inputs, split: read.append(split) or images(inputs, split))
    preflight_images(inputs_of(real, tmp_path / "cache"), ["train", "test"], 0)
    assert read == ["train", "test"]
