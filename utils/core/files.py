"""Files and folders that are written completely or not at all, and JSON and CSV files."""

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils.core.errors import KitError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LONGEST_STEM = 40  # characters of a file's stem that its temporary name repeats
TEMPORARY_NAME = re.compile(r"\.(?P<stem>.*)-[0-9a-f]{8}-part(\.[^.]*)?", re.DOTALL)


@contextlib.contextmanager
def write_atomic(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, and rename it to ``path`` if the block succeeds.

    Readers see the old file or the complete new one, even after a power cut. The file gets the usual permissions (umask).
    If the process is killed in the block, its temporary file stays until the next write to ``path`` or `remove_leftovers`.

    Parameters
    ----------
    path : path
    sync : bool
        Delete leftovers first, and wait until the file is on disk. Set it to False for many small files whose reader checks
        their size: a power cut may then truncate them.

    Yields
    ------
    Path
        Where to write; same suffix as ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.stem[:LONGEST_STEM]  # file systems limit a name's length
    if sync:
        remove_leftovers(path.parent, stem)
    temporary = path.with_name(f".{stem}-{secrets.token_hex(4)}-part{path.suffix}")
    try:
        with open(temporary, "xb") as file:
            _mark_as_in_use(file)
            yield temporary
            if sync:
                with open(temporary, "r+b") as written:
                    os.fsync(written)
            if fcntl is None:
                file.close()  # Windows can't rename an open file
            temporary.replace(path)
        if sync:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(folder: str | Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield an empty folder next to ``folder``, and move it to ``folder`` if the block succeeds.

    ``folder`` is then replaced if it exists; if the block fails, it stays as it was. Without ``overwrite``, raise OSError if it
    contains anything.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        complete = Path(temporary) / folder.name
        complete.mkdir()
        yield complete
        if overwrite and folder.exists():
            shutil.rmtree(folder)
        complete.replace(folder)


def remove_leftovers(folder: str | Path, stem: str = "") -> None:
    """Delete temporary files that `write_atomic` left behind when its process was killed.

    A living process holds a lock on its file, and the system releases the lock when the process ends. On systems without
    such locks (Windows, some network drives) leftovers stay.

    Parameters
    ----------
    folder : path
    stem : str
        Stem of the intended file; empty for all files.
    """
    if fcntl is None:
        return
    for path in Path(folder).glob(".*-part*"):
        name = TEMPORARY_NAME.fullmatch(path.name)
        if name and stem in ("", name["stem"]):
            with contextlib.suppress(OSError), open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _mark_as_in_use(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # some network drives have no locks
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Wait until the folder's directory entries are on disk."""
    with contextlib.suppress(OSError):  # Windows can't open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def link_or_copy(file: Path, target: Path, copy: bool = False) -> None:
    """Link or copy a file to ``target``, replacing what is there; raise KitError if the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        with write_atomic(target) as temporary:
            shutil.copyfile(file, temporary)
        return
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(file)
    except OSError as error:
        raise KitError(f"{target} can't be linked to {file} ({error.strerror}): copy instead (--copy).") from error


def write_json(path: str | Path, content: dict) -> None:
    """Write a dictionary as indented JSON, atomically; raise ValueError on NaN or infinity."""
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: str | Path, table) -> None:
    """Write a DataFrame as CSV without its index, atomically."""
    with write_atomic(path) as temporary:
        table.to_csv(temporary, index=False, errors="backslashreplace")  # a folder's name may not be valid Unicode


def read_json(path: str | Path) -> dict:
    """Read a JSON file.

    Raises
    ------
    ValueError
        If it is not JSON, or a field occurs twice in an object, which ``json`` would accept silently.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, object]]) -> dict:
    content = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the field {name} occurs twice")
        content[name] = value
    return content
