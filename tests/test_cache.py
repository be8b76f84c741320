import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import TINY

from utils import cache
from utils.cache import (
    CacheError,
    CacheSettings,
    attached_cache_dir,
    build_cache,
    default_cache_dir,
    load_picture,
    manifest_path,
    picture_path,
    summarise,
)
from utils.dicom import DicomFile, read_dicom
from utils.parallel import StopRunError
from utils.preprocessing import preprocess
from utils.tables import image_paths

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def few(competition, images, tmp_path):
    """A small competition of its own, to be broken: the first six training images."""
    rows = images.head(6)
    for source in image_paths(rows, competition, "train"):
        target = tmp_path / "data" / source.relative_to(competition)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return tmp_path / "data", rows


def fingerprint(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("[!.]*.*"))}


def test_cached_picture_is_the_cropped_resized_dicom(competition, images, cache_dir, settings):
    source = image_paths(images.head(1), competition, "train")[0]
    picture, row = preprocess(source, 64, 48)
    assert picture.dtype == np.uint8 and picture.shape == (64, 48)
    assert np.array_equal(load_picture(cache_dir, "train", images.image_id[0]), picture)
    assert (row["source_height"], row["source_width"]) == read_dicom(source).shape


def test_manifest_has_one_row_per_image_in_their_order(few, settings, tmp_path):
    data, rows = few
    rows = rows.iloc[::-1]
    manifest = build_cache(rows, data, "train", tmp_path / "cache", settings)
    assert manifest.image_id.tolist() == rows.image_id.tolist()
    assert list(manifest.columns) == cache.MANIFEST_COLUMNS
    assert (manifest.error == "").all() and (manifest.settings_hash == settings.hash).all()
    assert not manifest.source.str.startswith("/").any()


@pytest.mark.parametrize("column", ["patient_id", "image_id"])
@pytest.mark.parametrize("bad", ["9" * 300, "../train_images", "", "é"])
def test_image_whose_ids_can_not_name_a_file_has_an_error_in_its_row(few, settings, tmp_path, column, bad):
    data, rows = few
    build_cache(rows, data, "train", tmp_path / "cache", settings)  # its other id may be that of a cached picture
    rows = rows.assign(**{column: rows[column].where(rows.index != rows.index[2], bad)})
    manifest = build_cache(rows, data, "train", tmp_path / "cache", settings)
    assert manifest.image_id.tolist() == rows.image_id.tolist() and list(manifest.columns) == cache.MANIFEST_COLUMNS
    assert manifest.error[2] == "its patient_id or image_id can't name a file"
    assert (manifest.error.drop(2) == "").all() and "5 of 6 images in the cache, 1 failed" in summarise(manifest)


def test_processes_make_the_same_cache_as_none(few, settings, tmp_path):
    data, rows = few
    for name, workers in {"none": 0, "two": 2}.items():
        build_cache(rows, data, "train", tmp_path / name, settings, num_workers=workers)
    here, there = fingerprint(tmp_path / "none" / "train"), fingerprint(tmp_path / "two" / "train")
    assert here == there and len(here) == 6


def test_second_run_does_only_what_is_missing(few, settings, tmp_path, monkeypatch):
    data, rows = few
    build_cache(rows, data, "train", tmp_path / "cache", settings)
    lost = rows.image_id.iloc[2]
    picture_path(tmp_path / "cache", "train", lost).unlink()
    done = []
    monkeypatch.setattr(cache, "preprocess", lambda path, *sizes: done.append(path.stem) or preprocess(path, *sizes))
    manifest = build_cache(rows, data, "train", tmp_path / "cache", settings)
    assert done == [lost] and (manifest.error == "").all()


def test_run_that_was_killed_goes_on_to_the_same_cache(few, settings, tmp_path):
    data, rows = few
    build_cache(rows, data, "train", tmp_path / "whole", settings)
    build_cache(rows.head(3), data, "train", tmp_path / "killed", settings)
    path = manifest_path(tmp_path / "killed", "train")
    text = path.read_text()
    path.write_text(text[: len(text) - 9])  # a kill in the middle of a row
    build_cache(rows, data, "train", tmp_path / "killed", settings)
    whole, killed = fingerprint(tmp_path / "whole"), fingerprint(tmp_path / "killed")
    assert set(whole) == set(killed)
    assert all(whole[name] == killed[name] for name in whole if name.endswith(".png"))
    assert sorted(path.read_text().split()) == sorted(manifest_path(tmp_path / "whole", "train").read_text().split())


def test_bad_file_is_recorded_and_the_others_are_done(few, settings, tmp_path):
    data, rows = few
    bad = image_paths(rows, data, "train")[1]
    bad.write_bytes(b"no DICOM")
    manifest = build_cache(rows, data, "train", tmp_path / "cache", settings)
    failed = manifest[manifest.error != ""]
    assert failed.image_id.tolist() == [rows.image_id.iloc[1]]
    assert "DicomError" in failed.error.iloc[0] and bad.name in failed.error.iloc[0]
    assert "5 of 6 images in the cache, 1 failed" in summarise(manifest) and rows.image_id.iloc[1] in summarise(manifest)


def test_image_that_failed_is_tried_again(few, settings, tmp_path):
    data, rows = few
    bad = image_paths(rows, data, "train")[1]
    content = bad.read_bytes()
    bad.unlink()
    build_cache(rows, data, "train", tmp_path / "cache", settings)
    bad.write_bytes(content)
    assert (build_cache(rows, data, "train", tmp_path / "cache", settings).error == "").all()


def test_blank_image_is_flagged_not_fatal(few, settings, tmp_path, monkeypatch):
    data, rows = few
    monkeypatch.setattr(DicomFile, "grey", lambda self, values: np.zeros(values.shape, dtype=np.float32))
    manifest = build_cache(rows, data, "train", tmp_path / "cache", settings)
    assert (manifest["flags"] == "no_breast").all() and (manifest.error == "").all()
    assert "flagged no_breast: 6" in summarise(manifest)


def test_complete_cache_is_only_read(few, settings, tmp_path, monkeypatch):
    data, rows = few
    first = build_cache(rows, data, "train", tmp_path / "cache", settings)
    monkeypatch.setattr(cache, "write_atomic", None)  # as on a read-only disk
    monkeypatch.setattr(cache, "write_json", None)
    assert build_cache(rows, data, "train", tmp_path / "cache", settings).equals(first)


def test_cache_with_other_settings_is_refused(few, settings, tmp_path):
    data, rows = few
    build_cache(rows, data, "train", tmp_path / "cache", settings)
    with pytest.raises(CacheError, match="image_height is 64 there, 65 here.*choose another cache_dir"):
        build_cache(rows, data, "train", tmp_path / "cache", CacheSettings(65, 48))


def test_every_setting_changes_the_hash():
    settings = [CacheSettings(), CacheSettings(image_height=2), CacheSettings(image_width=2), CacheSettings(margin=0.5)]
    assert len({setting.hash for setting in [*settings, CacheSettings(version=99)]}) == 5


def test_full_disk_ends_the_run_and_says_so(few, settings, tmp_path, monkeypatch):
    data, rows = few

    def no_space(path):
        raise OSError(cache.errno.ENOSPC, os.strerror(cache.errno.ENOSPC))

    monkeypatch.setattr(cache, "write_atomic", no_space)
    jobs = list(zip(rows.image_id, image_paths(rows, data, "train"), strict=True))
    with pytest.raises(StopRunError, match="is full"):
        cache._cache_image(jobs[0], tmp_path, settings)


def test_run_on_a_full_disk_stops_and_is_completed_later(few, settings, tmp_path, monkeypatch):
    data, rows = few
    written, write = [], cache._write_picture

    def full_after_three(path, picture):
        if len(written) == 3:
            monkeypatch.setattr(cache, "write_atomic", full_disk)
        write(path, picture)
        written.append(path)

    def full_disk(path):
        raise OSError(cache.errno.ENOSPC, os.strerror(cache.errno.ENOSPC))

    monkeypatch.setattr(cache, "_write_picture", full_after_three)
    with pytest.raises(StopRunError, match="is full: free some space and run again"):
        build_cache(rows, data, "train", tmp_path / "cache", settings)
    monkeypatch.undo()
    assert len(list((tmp_path / "cache" / "train").glob("*.png"))) == 3
    assert (build_cache(rows, data, "train", tmp_path / "cache", settings).error == "").all()


FILL = """
import sys
from utils.cache import CacheSettings, build_cache
from utils.tables import read_images
if __name__ == "__main__":
    data, folder = sys.argv[1:]
    build_cache(read_images(data, "train"), data, "train", folder, CacheSettings(64, 48), num_workers=1)
"""


def fill(script, data, folder) -> subprocess.Popen:
    """Fill a cache in a process of its own."""
    script.write_text(FILL)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.Popen([sys.executable, script, data, folder], env=environment, stdout=subprocess.PIPE, text=True)


def wait_for_pictures(folder, count: int, process: subprocess.Popen) -> None:
    while len(list((folder / "train").glob("[!.]*.png"))) < count:
        assert process.poll() is None, "it ended before"
        time.sleep(0.005)


def assert_same_cache(first, second) -> None:
    """File by file; of the manifests' rows, which come as the images are ready, the set."""
    one, two = fingerprint(first), fingerprint(second)
    rows = (sorted(files.pop("train_manifest.csv").splitlines()) for files in (one, two))
    assert next(rows) == next(rows)
    assert one == two


def test_run_ended_by_kill_9_goes_on_to_the_same_cache(competition, images, cache_dir, settings, tmp_path):
    run = fill(tmp_path / "fill.py", competition, tmp_path / "killed")
    wait_for_pictures(tmp_path / "killed", 5, run)
    run.kill()
    run.wait()
    assert len(list((tmp_path / "killed/train").glob("[!.]*.png"))) < len(images)
    build_cache(images, competition, "train", tmp_path / "killed", settings)
    assert_same_cache(tmp_path / "killed", cache_dir)


def test_two_runs_on_one_cache_do_its_work_once(competition, images, cache_dir, tmp_path):
    first = fill(tmp_path / "fill.py", competition, tmp_path / "shared")
    wait_for_pictures(tmp_path / "shared", 1, first)
    second = fill(tmp_path / "fill.py", competition, tmp_path / "shared")
    outputs = [run.communicate(timeout=60)[0] for run in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "Another run is filling" in outputs[1] or outputs[1] == ""
    assert_same_cache(tmp_path / "shared", cache_dir)


def test_lossless_picture_survives_the_file(tmp_path, settings):
    picture = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
    path = picture_path(tmp_path, "train", "1")
    path.parent.mkdir()
    cv2.imwrite(str(path), picture)
    assert np.array_equal(load_picture(tmp_path, "train", "1"), picture)


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG broken"])
def test_missing_or_broken_picture_is_named_with_its_remedy(tmp_path, content):
    path = picture_path(tmp_path, "train", "17")
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    with pytest.raises(CacheError, match="17.png is missing or broken.*preprocess.ipynb"):
        load_picture(tmp_path, "train", "17")


def test_cache_that_another_kaggle_notebook_filled_is_found_and_only_read(few, tmp_path, monkeypatch):
    data, rows = few
    rows.to_csv(data / "train.csv", index=False)
    (image_paths(rows, data, "train")[0]).write_bytes(b"broken")
    filled = tmp_path / "input" / "mammography-kit-preprocess" / "cache" / default_cache_dir(data, TINY).name
    monkeypatch.setattr(cache, "KAGGLE_INPUT", tmp_path / "input")
    build_cache(rows[:5], data, "train", filled, TINY)
    assert attached_cache_dir(data, TINY) is None  # one image was never tried
    build_cache(rows, data, "train", filled, TINY)
    assert attached_cache_dir(data, TINY) == filled and attached_cache_dir(data, CacheSettings(32, 32)) is None
    before = {path: path.stat().st_mtime_ns for path in filled.rglob("*")}
    monkeypatch.setattr(cache.os, "access", lambda path, mode: False)  # as on a read-only mount
    manifest = build_cache(rows, data, "train", filled, TINY)
    assert manifest.error[0] and (manifest.error[1:] == "").all()
    assert {path: path.stat().st_mtime_ns for path in filled.rglob("*")} == before
    next((filled / "train").glob("*.png")).unlink()
    assert attached_cache_dir(data, TINY) is None


def test_image_that_a_read_only_cache_lacks_is_told(few, tmp_path, monkeypatch):
    data, rows = few
    build_cache(rows[1:], data, "train", tmp_path / "cache", TINY)
    monkeypatch.setattr(cache.os, "access", lambda path, mode: False)
    manifest = build_cache(rows, data, "train", tmp_path / "cache", TINY)
    assert "lacks it, and is read-only" in manifest.error[0] and (manifest.error[1:] == "").all()
