"""Facts about Kaggle's credentials: whose order, how they are kept, and that they stay secret."""

import base64
import json
import os
import subprocess

import pytest

from tests.kaggle.stand_in import KEY, TOKEN, USERNAME, fresh_client, serving
from utils.core.folders import PROJECT
from utils.kaggle.credentials import (
    PLACEHOLDERS,
    CredentialsError,
    check_files,
    config_path,
    describe_lack,
    find_username,
    redact,
)

OTHER = "KGAT_00000000000000000000000000000000"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder, and no variable of Kaggle's."""
    for name in [name for name in os.environ if name.startswith(("KAGGLE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kaggle").mkdir()
    return tmp_path


def write(path, content, mode=0o600):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def write_key(path, username=USERNAME, key=KEY, mode=0o600):
    return write(path, {"username": username, "key": key}, mode)


def what_the_client_takes(server, monkeypatch, home):
    """Kind and secret, as the official client says after it has logged in."""
    for name, value in server.environment(home).items():
        monkeypatch.setenv(name, value)
    with fresh_client():
        from kaggle.api.kaggle_api_extended import KaggleApi

        api = KaggleApi()
        api.authenticate()
    kind = {"ACCESS_TOKEN": "token", "LEGACY_API_KEY": "key", "OAUTH": "login"}[api.config_values["auth_method"]]
    return kind, api.config_values["key" if kind == "key" else "token"], api.config_values["username"]


@pytest.mark.parametrize("case", ["home", "without .kaggle", "xdg", "variable"])
def test_kaggle_json_is_looked_for_where_the_client_does(home, monkeypatch, case):
    if case != "home":
        (home / ".kaggle").rmdir()
    if case == "xdg":
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    if case == "variable":
        monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home / "mine"))
    expected = config_path()
    with serving() as server:
        write_key(expected)
        assert what_the_client_takes(server, monkeypatch, home)[:2] == ("key", KEY)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_file_that_others_may_touch_is_refused_with_the_command_that_mends_it(home, mode):
    path = write_key(home / ".kaggle" / "kaggle.json", mode=mode)
    with pytest.raises(CredentialsError, match=f"chmod 600 {path}"):
        check_files()
    path.chmod(0o600)
    check_files()


def test_example_is_refused_as_a_placeholder(home):
    example = json.loads((PROJECT / "kaggle.json.example").read_text())
    assert set(example.values()) == PLACEHOLDERS
    write(home / ".kaggle" / "kaggle.json", example)
    with pytest.raises(CredentialsError, match="placeholder"):
        check_files()


def test_file_in_the_reach_of_git_is_refused(home, monkeypatch):
    repository = home / "repository"
    write_key(repository / "kaggle.json")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(repository))
    git = ["git", "-C", str(repository)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    with pytest.raises(CredentialsError, match="git repository that does not ignore it"):
        check_files()
    write(repository / ".gitignore", "kaggle.json\n")
    check_files()
    subprocess.run([*git, "add", "--force", "kaggle.json"], check=True)
    with pytest.raises(CredentialsError, match="git repository"):
        check_files()


def test_redacting_removes_every_known_secret_whichever_is_used(home, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    write(home / ".kaggle" / "access_token", OTHER + "\n")
    write_key(home / ".kaggle" / "kaggle.json")
    write(home / ".kaggle" / "credentials.json", {"refresh_token": "refresh-token", "access_token": "access-token"})
    header = base64.b64encode(f"{USERNAME}:{KEY}".encode()).decode()
    secrets = [TOKEN, OTHER, KEY, header, "refresh-token", "access-token"]
    assert redact(" ".join([USERNAME, *secrets])) == " ".join([USERNAME] + ["[secret]"] * 6)


def test_name_of_a_token_file_is_no_secret_but_its_content_is(home, monkeypatch):
    path = write(home / "token", TOKEN)
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(path))
    assert redact(f"{path}: {TOKEN}") == f"{path}: [secret]"


def test_all_problems_of_all_files_are_said_at_once(home):
    write_key(home / ".kaggle" / "kaggle.json", username="YOUR_KAGGLE_USERNAME", mode=0o644)
    write(home / ".kaggle" / "access_token", TOKEN, mode=0o644)
    with pytest.raises(CredentialsError, match=r"(?s)placeholder.*chmod 600 \S*/kaggle.json.*chmod 600 \S*/access_token"):
        check_files()


def test_file_that_is_no_text_is_left_to_the_client(home):
    path = home / ".kaggle" / "access_token"
    path.write_bytes(b"\xff\xfe\x00")
    path.chmod(0o600)
    check_files()
    assert redact("text") == "text"


def test_lack_of_credentials_names_the_way_and_a_misplaced_file(home, monkeypatch):
    assert "Make a token" in describe_lack()
    monkeypatch.setattr("utils.kaggle.credentials.PROJECT", home / "kit")
    misplaced = write_key(home / "kit" / "kaggle.json")
    assert f"{misplaced} is not read: move it there." in describe_lack()


def test_username_is_that_of_the_credentials_and_its_lack_names_the_option(home, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    with pytest.raises(CredentialsError, match="does not contain it.*--username YOU"):
        find_username()
    path = write_key(home / ".kaggle" / "kaggle.json")
    assert find_username() == USERNAME
    path.chmod(0o644)
    with pytest.raises(CredentialsError, match="(?s)chmod 600.*--username YOU"):
        find_username()
