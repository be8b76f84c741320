"""Facts about the time that a hidden test would take."""

from dataclasses import replace

import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from utils.phantom.full_size import FULL_SIZES
from utils.rehearsal import projection
from utils.rehearsal.projection import (
    decode_seconds,
    describe_hardware,
    project,
    project_preprocessing,
    with_decode,
    write_full_sized,
)
from utils.tables.competition import image_paths

STAGES = {
    "start": {"images": 0, "seconds": 10.0},
    "decode": {"images": 20, "seconds": 4.0},
    "predict": {"images": 18, "seconds": 6.0},
    "total": {"seconds": 25.0},
}


@pytest.fixture
def small(monkeypatch):
    """Full-sized files that are small."""
    sizes = [replace(size, shape=shape) for size, shape in zip(FULL_SIZES, [(160, 120), (240, 200)], strict=True)]
    monkeypatch.setattr(projection, "FULL_SIZES", sizes)
    monkeypatch.setattr(projection, "DRAWN_ROWS", 80)
    monkeypatch.setattr(projection, "COPIES", 3)


def test_stages_grow_with_the_images_and_the_rest_comes_once():
    found = project(STAGES, 20, overlaps=False, images=2000)
    assert found.by_stage == {"decode": 400.0, "predict": 600.0}
    assert found.once == 10 + 5  # the start, and what no stage accounts for
    assert found.total == 15 + 400 + 600


def test_stages_that_overlap_take_as_long_as_the_longer_one():
    assert project(STAGES, 20, overlaps=True, images=2000).total == 15 + 600


def test_the_test_images_count_and_not_those_of_a_stage():
    twice = STAGES | {"decode": {"images": 40, "seconds": 8.0}}  # pictures of two sizes
    assert project(twice, 20, overlaps=False, images=2000).by_stage["decode"] == 800


def test_overlapping_measurements_leave_no_negative_rest():
    assert project(STAGES | {"total": {"seconds": 12.0}}, 20, overlaps=True).once == 10


def test_a_stage_may_be_absent():
    stages = {name: STAGES[name] for name in ("start", "predict")}
    assert project(stages, 20, overlaps=False, images=200).total == 10 + 60


def test_without_stages_the_whole_time_grows():
    assert project({"total": {"seconds": 30.0}}, 10, overlaps=True, images=100).total == 300


def test_the_longer_time_of_decoding_counts():
    found = project(STAGES, 20, overlaps=False, images=2000)  # decode 400 s
    assert with_decode(found, 300.0) == found
    assert with_decode(found, 500.0).total == 15 + 500 + 600


def test_a_time_that_was_not_measured_by_stages_stays():
    found = project({"total": {"seconds": 30.0}}, 10, overlaps=True, images=100)
    assert with_decode(found, 5000.0) == found


@pytest.mark.parametrize(("cores", "expected"), [(1, 100.0), (2, 100.0), (4, 50.0)])
def test_two_processes_are_scaled_to_the_cores(cores, expected):
    assert decode_seconds(100.0, sizes=1, cores=cores) == expected
    assert decode_seconds(100.0, sizes=3, cores=cores) == 3 * expected


def test_full_sized_files_have_the_sizes_and_codecs_in_turn(small, tmp_path):
    rows = write_full_sized(tmp_path)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in image_paths(rows, tmp_path, "test")]
    kinds = [(header.Rows, header.Columns, header.file_meta.TransferSyntaxUID) for header in headers]
    shapes = [(160, 120), (240, 200)]
    assert kinds == [(*shape, codec) for shape in shapes for codec in (JPEG2000Lossless, JPEGLosslessSV1)] * 3


def test_preprocessing_is_measured_on_all_of_them(small, tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "CORES", 1)
    seconds = project_preprocessing(tmp_path, images=1000)
    assert 0 < seconds < 1000 * 5
    assert len(list((tmp_path / "cache" / "test").glob("*.png"))) == 12


def test_hardware_names_cores_processor_and_gpus():
    found = describe_hardware()
    assert found.cores >= 1 and found.cpu and found.gpus
