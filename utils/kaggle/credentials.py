"""Which of Kaggle's credentials the official client will use, whether they are kept safe, and text without any of them.

The order is that of `kaggle` 2.2: an access token (variable, then file), then a username with a key, then a browser's login.
"""

import base64
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from utils.core.environment import PROJECT, KitError

SETTINGS_PAGE = "https://www.kaggle.com/settings/api"
PLACEHOLDERS = {"YOUR_KAGGLE_USERNAME", "YOUR_KAGGLE_API_KEY"}  # of kaggle.json.example
SHORTEST_SECRET = 6  # characters; Kaggle's are 32 and more, and shorter ones would blot out words


class CredentialsError(KitError):
    """No credentials, or some that are not kept safe; the message says what to do."""


@dataclass(frozen=True)
class Credentials:
    """Where the client will find its credentials.

    ``kind`` is "token", "key" or "login"; ``username`` is empty where only Kaggle knows whose token it is; ``path`` is that of
    the file, if it is one.
    """

    kind: str
    source: str
    secret: str = field(repr=False)
    username: str = ""
    path: Path | None = None


def find_credentials() -> Credentials:
    """Find the credentials that the official client will use, and check how they are kept. Asks no server.

    Returns
    -------
    Credentials

    Raises
    ------
    CredentialsError
        If there are none, or those that the client would take are empty, the example's, readable by others or in git's reach;
        each with its remedy.

    References
    ----------
    ``KaggleApi.authenticate``, and ``get_access_token_from_env`` in kagglesdk.
    """
    found = _access_token() or _key() or _login()
    if not found:
        raise CredentialsError(_none_found())
    problems = [*_content_problems(found), *_file_problems(found)]
    if problems:
        raise CredentialsError("\n".join(problems))
    return found


def find_username() -> str:
    """Find the username that the credentials hold, which is all that a bundle needs of them.

    Raises
    ------
    CredentialsError
        If they hold none, or are as `find_credentials` refuses them.
    """
    suffices = 'To write the bundle, your username on Kaggle suffices: make kaggle BUNDLE="--username YOU"'
    try:
        username = find_credentials().username
    except CredentialsError as error:
        raise CredentialsError(f"{error}\n{suffices}") from None
    if not username:
        raise CredentialsError(f"A token does not say whose it is. {suffices}")
    return username


def redact(text: str) -> str:
    """Put ``[secret]`` in place of each of Kaggle's secrets that this machine knows, whichever the client uses."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    return text


class RedactedStream(io.TextIOBase):
    """A text stream that passes on what it gets without the secrets."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def config_path() -> Path:
    """Path of the kaggle.json that the client reads, whether it is there or not."""
    folder = os.environ.get("KAGGLE_CONFIG_DIR")
    home = _home("")
    if not folder and sys.platform.startswith("linux") and not home.exists():
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "kaggle"
    return Path(folder or home) / "kaggle.json"


def _access_token() -> Credentials | None:
    on_kaggle = "KAGGLE_KERNEL_RUN_TYPE" in os.environ and "KAGGLE_DATA_PROXY_URL" in os.environ
    if on_kaggle and (found := _token_file("KAGGLE_API_V1_TOKEN", os.environ.get("KAGGLE_API_V1_TOKEN"))):
        return found
    given = os.environ.get("KAGGLE_API_TOKEN")
    if given:  # a token, or the path of a file with one; an empty file ends the search for tokens
        return _token_file("KAGGLE_API_TOKEN", given) if _exists(given) else Credentials("token", "KAGGLE_API_TOKEN", given)
    paths = [_home("access_token"), _home("access_token.txt")]
    return next((found for path in paths if (found := _token_file(str(path), path))), None)


def _token_file(source: str, path: str | Path | None) -> Credentials | None:
    token = _read(path).strip() if path and _exists(path) else ""
    return Credentials("token", source, token, path=Path(path)) if token else None


def _key() -> Credentials | None:
    path, variables = config_path(), {"username": "KAGGLE_USERNAME", "key": "KAGGLE_KEY"}
    given = {name: os.environ[variable] for name, variable in variables.items() if variable in os.environ}
    stored = {} if len(given) == len(variables) else _read_object(path)
    values = stored | given
    if not variables.keys() <= values.keys():
        return None
    sources = [variables[name] for name in given] + [str(path)] * bool(stored)
    username, key = (str(values[name] or "") for name in variables)
    return Credentials("key", " and ".join(sources), key, username, path if stored else None)


def _login() -> Credentials | None:
    path = _home("credentials.json")
    stored = _read_object(path)
    token, username = stored.get("refresh_token"), stored.get("username")
    return Credentials("login", str(path), token, username or "", path) if token else None


def _content_problems(found: Credentials) -> Iterator[str]:
    if PLACEHOLDERS & {found.username, found.secret}:
        yield f"{found.source} holds the example's placeholder: put your own username and key there, from {SETTINGS_PAGE}."
    if found.kind == "key" and not (found.username.strip() and found.secret.strip()):
        yield f"{found.source}: the username or the key is empty. Both are needed, from {SETTINGS_PAGE}."


def _file_problems(found: Credentials) -> Iterator[str]:
    is_kaggles_own = found.source == "KAGGLE_API_V1_TOKEN"
    if found.path is None or is_kaggles_own:
        return
    if os.name != "nt" and stat.S_IMODE(found.path.stat().st_mode) & 0o077:
        yield f"{found.path} can be read or changed by others on this machine: chmod 600 {found.path}"
    if _in_reach_of_git(found.path):
        yield f"{found.path} lies in a git repository that does not ignore it: move it to {_home('')}, out of git's reach."


def _in_reach_of_git(path: Path) -> bool:
    path = path.resolve()
    command = ["git", "-C", str(path.parent), "check-ignore", "--quiet", "--", path.name]
    try:  # 0: ignored and not tracked; 1: tracked, or would be; 128: no repository
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 1
    except (OSError, subprocess.TimeoutExpired):
        return False


def _none_found() -> str:
    path, usual, misplaced = config_path(), _home("kaggle.json"), PROJECT / "kaggle.json"
    moves = path != usual and "KAGGLE_CONFIG_DIR" not in os.environ
    either = f"{path} ({usual}, once {usual.parent} is there)" if moves else path
    text = (
        f"No Kaggle credentials. Make a token at {SETTINGS_PAGE} and save it in {_home('access_token')} (chmod 600), or set"
        f" KAGGLE_API_TOKEN to it. Looked at: KAGGLE_API_TOKEN, {_home('access_token')}, KAGGLE_USERNAME with KAGGLE_KEY,"
        f" {either}, {_home('credentials.json')}."
    )
    if path.exists():
        text += f" {path} is there, but is not JSON with the fields username and key."
        text += f" If it is a token, rename it to access_token: mv {path} {_home('access_token')}"
    if misplaced.exists() and misplaced != path:
        text += f"\n{misplaced} is not read: mkdir -p {usual.parent} && mv {misplaced} {usual}"
    return text


def _secrets() -> set[str]:
    found = _variables() | _tokens() | _keys()
    return {secret for secret in found if len(secret) >= SHORTEST_SECRET}


def _variables() -> set[str]:
    """Values of the variables that hold secrets, and contents of the files that they name."""
    values = {value for name, value in os.environ.items() if name.startswith("KAGGLE_") and ("TOKEN" in name or "KEY" in name)}
    paths = {value for value in values if _exists(value)}
    return (values - paths) | {_quietly(_read, path, "").strip() for path in paths}


def _tokens() -> set[str]:
    login = _quietly(_read_object, _home("credentials.json"), {})
    plain = {_quietly(_read, _home(name), "").strip() for name in ("access_token", "access_token.txt")}
    return plain | {str(login.get(name, "")) for name in ("refresh_token", "access_token")}


def _keys() -> set[str]:
    """Keys, and what a request carries: base64 of username and key."""
    stored = [_quietly(_read_object, path, {}) for path in (config_path(), _home("kaggle.json"))]
    keys = {str(file.get("key", "")) for file in stored} | {os.environ.get("KAGGLE_KEY", "")}
    usernames = {str(file.get("username", "")) for file in stored} | {os.environ.get("KAGGLE_USERNAME", "")}
    return keys | {base64.b64encode(f"{name}:{key}".encode()).decode() for name in usernames for key in keys - {""}}


def _quietly(read: Callable[[str | Path], Any], path: str | Path, otherwise: Any) -> Any:
    try:
        return read(path)
    except CredentialsError:
        return otherwise


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8") if _exists(path) else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"{path} can't be read ({type(error).__name__}): it must be a text file of yours.") from None


def _read_object(path: Path) -> dict:
    """Read a JSON object; as the client does, take what is none for an empty one."""
    try:
        content = json.loads(_read(path))
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _exists(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a token too long for a file name
        return False


def _home(name: str) -> Path:
    return Path("~/.kaggle").expanduser() / name
