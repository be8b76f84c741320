"""Facts about files and folders that are written completely or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from utils.core import files, folders
from utils.core.files import read_json, remove_leftovers, replace_folder, write_atomic, write_csv, write_json


@pytest.mark.parametrize("name", ["table.csv", "weights.pt", "archive.tar.gz", "plain"])
def test_new_file_appears_only_after_the_block(tmp_path, name):
    path = tmp_path / "new" / "folder" / name
    with write_atomic(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
        assert temporary.suffix == path.suffix  # writers choose the format by it
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_old_file_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with write_atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_block_keeps_the_old_file_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), write_atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_block_makes_no_file(tmp_path):
    with pytest.raises(ValueError, match="broken"), write_atomic(tmp_path / "file.txt"):
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)])
def test_written_file_has_the_permissions_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with write_atomic(str(tmp_path / "file.txt")) as temporary:
            temporary.write_text("text")
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode


def test_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append("sync") or fsync(file))
    monkeypatch.setattr(Path, "replace", lambda path, target: done.append("rename") or replace(path, target))
    write_json(tmp_path / "file.json", {})
    assert done == ["sync", "rename", "sync"]  # the last one is the folder's


KILLED = """
import os, signal, sys
from utils.core.files import write_atomic
with write_atomic(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_leaves_is_deleted_by_the_next(tmp_path):
    path = tmp_path / "file.txt"
    subprocess.run([sys.executable, "-c", KILLED, path], cwd=folders.PROJECT)
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    with write_atomic(path) as temporary:
        temporary.write_text("whole")
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_are_deleted_and_no_other_file(tmp_path):
    own = [".file-original.txt", ".file-0123abcd.txt", "file-0123abcd-part.txt", ".file-0123abcd-part.txt.bak", ".part", "x"]
    left = [".file-0123abcd-part.txt", ".weights-89abcdef-part.safetensors", ".plain-00000000-part"]
    for name in own + left:
        (tmp_path / name).write_text("")
    with write_atomic(tmp_path / "other.txt") as temporary:
        temporary.write_text("of a living writer")
        remove_leftovers(tmp_path, "file")
        assert {path.name for path in tmp_path.iterdir()} == {*own, *left[1:], temporary.name}
        remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*own, temporary.name}
    remove_leftovers(tmp_path / "nowhere")


def test_long_name_leaves_room_for_its_temporary(tmp_path):
    path = tmp_path / ("ü" * 125 + ".json")  # 255 bytes
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}


def test_table_with_text_that_is_not_unicode_is_written(tmp_path):
    write_csv(tmp_path / "table.csv", pd.DataFrame({"run": ["Z\udcfcrich", "Zürich"]}))
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines() == ["run", "Z\\udcfcrich", "Zürich"]


def test_system_without_locks_writes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    write_json(tmp_path / "file.json", {"a": 1})
    assert read_json(tmp_path / "file.json") == {"a": 1}
    remove_leftovers(tmp_path)


@pytest.mark.parametrize("is_old", [True, False])
def test_folder_is_replaced_only_after_the_block(tmp_path, is_old):
    folder = tmp_path / "deep" / "folder"
    if is_old:
        folder.mkdir(parents=True)
        (folder / "old").touch()
    with pytest.raises(KeyboardInterrupt), replace_folder(folder) as new:
        (new / "half").touch()
        raise KeyboardInterrupt
    assert [path.name for path in folder.parent.rglob("*")] == (["folder", "old"] if is_old else [])
    with replace_folder(folder) as new:
        (new / "new").touch()
        assert new.parent.parent == folder.parent  # a rename across file systems would not be atomic
    assert [path.name for path in folder.parent.rglob("*")] == ["folder", "new"]


def test_nested_writers_of_one_path_do_not_share_a_temporary(tmp_path):
    path = tmp_path / "file.txt"
    with write_atomic(path) as outer, write_atomic(path) as inner:
        outer.write_text("outer")
        inner.write_text("inner")
    assert outer != inner
    assert path.read_text() == "outer"  # the last to finish


def test_json_is_read_as_written(tmp_path):
    content = {"a": [1, 2.5, None], "b": {"c": "é"}}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_is_not_json_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"a": value})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ['{"a": 1, "a": 1}', '[{"b": 0, "a": {"c": 1, "b": 2, "c": 3}}]'])
def test_a_field_that_stands_twice_is_refused(tmp_path, content):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match="the field [ac] occurs twice"):
        read_json(tmp_path / "file.json")
