"""Check that Kaggle's credentials are kept safe, and redact them from text. The official client finds and uses them."""

import base64
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from utils.core.errors import KitError
from utils.core.folders import PROJECT

SETTINGS_PAGE = "https://www.kaggle.com/settings/api"
PLACEHOLDERS = {"YOUR_KAGGLE_USERNAME", "YOUR_KAGGLE_API_KEY"}  # of kaggle.json.example
SHORTEST_SECRET = 6  # characters; Kaggle's secrets have at least 32, and redacting shorter ones would blot out words
SECRET_FIELDS = ("key", "refresh_token", "access_token")


class CredentialsError(KitError):
    """Credentials are missing or not kept safe; the message says what to do."""


def check_files() -> None:
    """Raise CredentialsError if others can read a file, git would add it, or it contains the example's placeholders."""
    problems = [problem for path in _files() for problem in _problems_of(path)]
    if problems:
        raise CredentialsError("\n".join(problems))


def find_username() -> str:
    """Return the credentials' username; raise CredentialsError if there is none or `check_files` refuses them."""
    suffices = 'To write the bundle, your username on Kaggle is enough: make kaggle BUNDLE="--username YOU"'
    try:
        check_files()
    except CredentialsError as error:
        raise CredentialsError(f"{error}\n{suffices}") from None
    stored = [_read_object(path).get("username") for path in (config_path(), _home("credentials.json"))]
    username = next((name for name in (os.environ.get("KAGGLE_USERNAME"), *stored) if name), "")
    if not username:
        raise CredentialsError(f"No username was found: a token does not contain it. {suffices}")
    return username


def describe_lack() -> str:
    """Return the text that valid credentials are missing, and how to get some."""
    text = (
        f"There are no credentials that Kaggle accepts. Make a token at {SETTINGS_PAGE} and save it in {_home('access_token')}"
        f" (chmod 600), or set KAGGLE_API_TOKEN to it. {config_path()} with username and key works too."
    )
    misplaced = PROJECT / "kaggle.json"
    if misplaced.exists() and misplaced != config_path():
        text += f" {misplaced} is not read: move it there."
    return text


def redact(text: str) -> str:
    """Replace each Kaggle secret found on this machine by ``[secret]``, whichever the client uses."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    return text


class RedactedStream(io.TextIOBase):
    """A text stream that redacts secrets and passes the rest on.

    Each write looks for secrets again, because the client may get a new access token and save it while it runs.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def config_path() -> Path:
    """Return the path of the kaggle.json that the client reads, whether or not it exists."""
    folder = os.environ.get("KAGGLE_CONFIG_DIR")
    home = _home("")
    if not folder and sys.platform.startswith("linux") and not home.exists():
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "kaggle"
    return Path(folder or home) / "kaggle.json"


def _files() -> list[Path]:
    """List the existing files that may contain credentials."""
    named = [Path(value) for value in _variables() if _exists(value)]
    usual = [_home(name) for name in ("access_token", "access_token.txt", "credentials.json", "kaggle.json")]
    return [path for path in dict.fromkeys([*named, config_path(), *usual]) if _exists(path)]


def _problems_of(path: Path) -> Iterator[str]:
    content = _read_object(path)
    if PLACEHOLDERS & {content.get("username"), content.get("key")}:
        yield f"{path} contains the example's placeholder: replace it by your own username and key, from {SETTINGS_PAGE}."
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # on Kaggle the files are Kaggle's own
        return
    if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield f"{path} can be read or changed by others on this machine: chmod 600 {path}"
    if _in_reach_of_git(path):
        yield f"{path} is in a git repository that does not ignore it: move it to {_home('')}."


def _in_reach_of_git(path: Path) -> bool:
    path = path.resolve()
    command = ["git", "-C", str(path.parent), "check-ignore", "--quiet", "--", path.name]
    try:  # 0: ignored and not tracked; 1: tracked, or would be; 128: no repository
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 1
    except (OSError, subprocess.TimeoutExpired):
        return False


def _variables() -> set[str]:
    """Return the environment variables' values that are secrets or paths of files with secrets."""
    return {value for name, value in os.environ.items() if name.startswith("KAGGLE_") and ("TOKEN" in name or "KEY" in name)}


def _secrets() -> set[str]:
    """Return all secrets, including base64 of ``username:key``, which requests send."""
    found = {value for value in _variables() if not _exists(value)}
    usernames, keys = {os.environ.get("KAGGLE_USERNAME", "")}, {os.environ.get("KAGGLE_KEY", "")}
    for path in _files():
        content = _read_object(path)
        found |= {str(content.get(name, "")) for name in SECRET_FIELDS} if content else {_read(path).strip()}
        usernames.add(str(content.get("username", "")))
        keys.add(str(content.get("key", "")))
    found |= {base64.b64encode(f"{name}:{key}".encode()).decode() for name in usernames for key in keys - {""}}
    return {secret for secret in found if len(secret) >= SHORTEST_SECRET}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_object(path: Path) -> dict:
    """Read a JSON object; return an empty one for anything else, as the client does."""
    try:
        content = json.loads(_read(path))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a token too long for a file name
        return False


def _home(name: str) -> Path:
    return Path("~/.kaggle").expanduser() / name
