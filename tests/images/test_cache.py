import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from tests.helpers import TINY
from utils.core.parallel import StopRunError
from utils.dicom.file import DicomFile, read_dicom
from utils.images import cache
from utils.images.cache import attached_cache_dir, build_cache, default_cache_dir, summarise
from utils.images.cached import load_picture, manifest_path, picture_path
from utils.images.manifest import MANIFEST_COLUMNS, read_rows
from utils.images.preprocessing import preprocess
from utils.images.settings import CacheError, CacheSettings
from utils.tables.competition import image_paths

PROJECT = Path(__file__).resolve().parents[2]


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
    assert list(manifest.columns) == MANIFEST_COLUMNS
    assert (manifest.error == "").all() and (manifest.settings_hash == settings.hash).all()
    assert not manifest.source.str.startswith("/").any()


@pytest.mark.parametrize("column", ["patient_id", "image_id"])
@pytest.mark.parametrize("bad", ["9" * 300, "../train_images", "", "é"])
def test_image_whose_ids_can_not_name_a_file_has_an_error_in_its_row(few, settings, tmp_path, column, bad):
    data, rows = few
    build_cache(rows, data, "train", tmp_path / "cache", settings)  # its other id may be that of a cached picture
    rows = rows.assign(**{column: rows[column].where(rows.index != rows.index[2], bad)})
    manifest = build_cache(rows, data, "train", tmp_path / "cache", settings)
    assert manifest.image_id.tolist() == rows.image_id.tolist() and list(manifest.columns) == MANIFEST_COLUMNS
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


BAD_ROW = ',,,,,,,,,,,,,,,"DicomError: a/9.dcm: it can not be read, header, ""quoted"" and ü'  # cut inside its quotes
DAMAGES = {
    "cut inside quotes": lambda text: text + b"9,train_images/1/9.dcm" + BAD_ROW.encode(),
    "cut behind a doubled quote": lambda text: text + b'9,train_images/1/9.dcm,,,,,,,,,,,,,,,"he said ""',
    "cut inside a character": lambda text: text + b"9,train_images/1/9.dcm" + BAD_ROW.encode()[:-1],
    "cut inside a row": lambda text: text[:-9],
    "cut inside the header": lambda text: text[:20],
    "NUL bytes at the end": lambda text: text + bytes(4096),
    "NUL bytes over the beginning": lambda text: bytes(300) + text[300:],
    "nothing but NUL bytes": lambda text: bytes(len(text)),
    "empty": lambda text: b"",
    "two writers, cut inside quotes": lambda text: text + b"9,train_images/1/9.dcm" + BAD_ROW.encode() + text.split(b"\n")[1],
    "two writers, cut inside the id": lambda text: text[: -len(text.split(b"\n")[-2])] + text.split(b"\n")[-2] + b"\n",
    "two headers": lambda text: text + text,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_manifest_that_was_damaged_anywhere_costs_its_rows_alone(few, settings, tmp_path, monkeypatch, damage):
    data, rows = few
    rows = rows.head(3)
    whole = build_cache(rows, data, "train", tmp_path / "cache", settings)
    path = manifest_path(tmp_path / "cache", "train")
    path.write_bytes(damage(path.read_bytes()))
    manifest = build_cache(rows, data, "train", tmp_path / "cache", settings)
    assert manifest.equals(whole)
    monkeypatch.setattr(cache, "preprocess", None)  # nothing is left to do
    assert build_cache(rows, data, "train", tmp_path / "cache", settings).equals(manifest)


def test_row_behind_the_beginning_of_another_is_not_taken_for_an_image(tmp_path):
    row = b"12,train_images/1/12.dcm" + b"," * 15 + b",abc\n"
    for beginning in (b"7", b"7,train_images/1/7", b"7,train_images/1/7.dcm,,,", b'7,train_images/1/7.dcm,"a'):
        (tmp_path / "manifest.csv").write_bytes(b",".join(map(str.encode, MANIFEST_COLUMNS)) + b"\n" + row + beginning + row)
        assert read_rows(tmp_path / "manifest.csv", "abc").image_id.tolist() == ["12"]


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG"], ids=["missing", "empty", "short"])
def test_picture_that_is_not_what_its_row_says_is_made_again(few, settings, tmp_path, content):
    data, rows = few
    build_cache(rows, data, "train", tmp_path / "cache", settings)
    path = picture_path(tmp_path / "cache", "train", rows.image_id.iloc[2])
    whole = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    build_cache(rows, data, "train", tmp_path / "cache", settings)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG"], ids=["missing", "empty", "short"])
def test_read_only_cache_whose_rows_and_pictures_disagree_is_refused(few, settings, tmp_path, monkeypatch, content):
    data, rows = few
    build_cache(rows, data, "train", tmp_path / "cache", settings)
    path = picture_path(tmp_path / "cache", "train", rows.image_id.iloc[2])
    path.unlink() if content is None else path.write_bytes(content)
    monkeypatch.setattr(cache.os, "access", lambda path, mode: False)
    with pytest.raises(
        CacheError, match=rf"is read-only, and 1 of 6 images .* missing or truncated, first {path.name}. Copy it again"
    ):
        build_cache(rows, data, "train", tmp_path / "cache", settings)
    others = rows[rows.image_id != path.stem]
    assert (build_cache(others, data, "train", tmp_path / "cache", settings).error == "").all()


def test_manifest_of_an_older_version_is_read_and_gets_todays_columns(few, settings, tmp_path, monkeypatch):
    data, rows = few
    build_cache(rows, data, "train", tmp_path / "cache", settings)
    path = manifest_path(tmp_path / "cache", "train")
    older = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="picture_bytes")
    older.to_csv(path, index=False)
    lost = rows.image_id.iloc[0]
    picture_path(tmp_path / "cache", "train", lost).unlink()
    done = []
    monkeypatch.setattr(cache, "preprocess", lambda path, *sizes: done.append(path.stem) or preprocess(path, *sizes))
    manifest = build_cache(rows, data, "train", tmp_path / "cache", settings)
    assert done == [lost] and (manifest.picture_bytes != "").tolist() == [True] + [False] * 5
    assert build_cache(rows, data, "train", tmp_path / "cache", settings).equals(manifest) and len(done) == 1


def test_error_of_any_text_is_one_row(few, settings, tmp_path, monkeypatch):
    data, rows = few

    def fail(path, *sizes):
        raise ValueError('a\nb\r\0c\udcfc \u2028 Zürich, "quoted"')

    monkeypatch.setattr(cache, "preprocess", fail)
    for _ in range(2):
        manifest = build_cache(rows, data, "train", tmp_path / "cache", settings)
        assert (manifest.error == 'ValueError: a b c Zürich, "quoted"').all()


def test_folder_whose_name_is_not_unicode_has_a_cache():
    assert default_cache_dir("/data/Z\udcfcrich", TINY) != default_cache_dir("/data/Z\udce4rich", TINY)


LOCALE = """
import sys
from utils.images.cache import CacheSettings, build_cache
from utils.tables.competition import read_images
data, folder = sys.argv[1:]
for _ in range(2):
    manifest = build_cache(read_images(data, "train"), data, "train", folder, CacheSettings(64, 48), quiet=True)
    print((manifest.error != "").tolist())
"""


def test_locale_that_is_not_utf_8_is_no_obstacle(few, tmp_path):
    data, rows = few
    rows.to_csv(data / "train.csv", index=False)
    image_paths(rows, data, "train")[1].write_bytes(b"broken")
    data = data.rename(tmp_path / "Zürich ’23")
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", LOCALE, data, tmp_path / "cache"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines() == [str([False, True, False, False, False, False])] * 2


def test_pictures_that_a_kill_left_half_written_are_deleted(few, settings, tmp_path):
    data, rows = few
    build_cache(rows[1:], data, "train", tmp_path / "cache", settings)
    half, own = tmp_path / "cache/train/.17-0123abcd-part.png", tmp_path / "cache/train/.17-original.png"
    half.write_bytes(b"half")
    own.write_bytes(b"a user's")
    build_cache(rows, data, "train", tmp_path / "cache", settings)
    assert own.exists() and not half.exists()


@pytest.mark.parametrize("content", ["", "{", "3", "[1]"])
def test_broken_settings_are_named(few, settings, tmp_path, content):
    data, rows = few
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(CacheError, match="settings.json is not valid JSON.*delete it if"):
        build_cache(rows, data, "train", tmp_path, settings)


def test_cache_that_can_not_be_made_is_said_so(few, settings, tmp_path):
    data, rows = few
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="can't be used as a cache .*choose another cache_dir"):
        build_cache(rows, data, "train", tmp_path / "file" / "cache", settings)


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

    def no_space(path, sync):
        raise OSError(cache.errno.ENOSPC, os.strerror(cache.errno.ENOSPC))

    monkeypatch.setattr(cache, "write_atomic", no_space)
    jobs = list(zip(rows.image_id, image_paths(rows, data, "train"), strict=True))
    with pytest.raises(StopRunError, match="is full"):
        cache.Cache(tmp_path, "train", settings).make(jobs[0])


def test_run_on_a_full_disk_stops_and_is_completed_later(few, settings, tmp_path, monkeypatch):
    data, rows = few
    written, write = [], cache._write_picture

    def full_after_three(path, picture):
        if len(written) == 3:
            monkeypatch.setattr(cache, "write_atomic", full_disk)
        write(path, picture)
        written.append(path)

    def full_disk(path, sync=True):
        raise OSError(cache.errno.ENOSPC, os.strerror(cache.errno.ENOSPC))

    monkeypatch.setattr(cache, "_write_picture", full_after_three)
    with pytest.raises(StopRunError, match="is full: free some space and run again"):
        build_cache(rows, data, "train", tmp_path / "cache", settings)
    monkeypatch.undo()
    assert len(list((tmp_path / "cache" / "train").glob("*.png"))) == 3
    assert (build_cache(rows, data, "train", tmp_path / "cache", settings).error == "").all()


FILL = """
import sys
from utils.images.cache import CacheSettings, build_cache
from utils.tables.competition import read_images
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


@pytest.mark.parametrize("folder", ["Zürich", "Z\udcfcrich"])
def test_picture_is_read_from_a_folder_of_any_name(tmp_path, folder):
    path = picture_path(tmp_path / folder, "train", "1")
    path.parent.mkdir(parents=True)
    path.write_bytes(cv2.imencode(".png", np.full((2, 3), 7, dtype=np.uint8))[1])
    assert load_picture(tmp_path / folder, "train", "1").tolist() == [[7] * 3] * 2


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


@pytest.mark.parametrize("name", [".train.lock", "train_manifest.csv", "train"])
def test_what_is_in_the_way_of_a_cache_file_is_told_and_left_alone(images, competition, settings, tmp_path, name):
    (tmp_path / "precious").write_text("mine")
    if name == "train_manifest.csv":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(CacheError, match="can't be used as a cache .*Delete what is in the way, or choose another cache_dir"):
        build_cache(images.head(1), competition, "train", tmp_path, settings, quiet=True)
    assert (tmp_path / "precious").read_text() == "mine"
