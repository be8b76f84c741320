"""Facts about Kaggle's credentials: whose order, how they are kept, and that they stay secret."""

import base64
import json
import os
import subprocess

import pytest

from tests.kaggle.stand_in import KEY, TOKEN, USERNAME, fresh_client, serving
from utils.core.environment import PROJECT
from utils.kaggle.credentials import PLACEHOLDERS, CredentialsError, config_path, find_credentials, find_username, redact

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


def test_order_is_that_of_the_official_client(home, monkeypatch):
    """Every source at once, with a secret of its own; the one that is taken goes away, until none is left."""
    tokens = {name: f"KGAT_{name:_<32}" for name in ("kernel", "variable", "file", "text")}
    write(home / "token-of-kernel", tokens["kernel"])
    write(home / ".kaggle" / "access_token", tokens["file"])
    write(home / ".kaggle" / "access_token.txt", tokens["text"] + "\n")
    write_key(home / ".kaggle" / "kaggle.json", key="stored-key")
    login = {"refresh_token": "refresh", "access_token": "login-token", "username": USERNAME}
    write(home / ".kaggle" / "credentials.json", login | {"access_token_expiration": "2999-01-01T00:00:00+00:00"})
    variables = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_DATA_PROXY_URL": "x", "KAGGLE_API_TOKEN": tokens["variable"]}
    variables |= {
        "KAGGLE_API_V1_TOKEN": str(home / "token-of-kernel"),
        "KAGGLE_USERNAME": "other",
        "KAGGLE_KEY": "variable-key",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    steps = [
        (("token", tokens["kernel"]), lambda: monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")),
        (("token", tokens["variable"]), lambda: monkeypatch.delenv("KAGGLE_API_TOKEN")),
        (("token", tokens["file"]), (home / ".kaggle" / "access_token").unlink),
        (("token", tokens["text"]), (home / ".kaggle" / "access_token.txt").unlink),
        (("key", "variable-key"), lambda: monkeypatch.delenv("KAGGLE_KEY")),
        (("key", "stored-key"), lambda: monkeypatch.delenv("KAGGLE_USERNAME")),
        (("key", "stored-key"), (home / ".kaggle" / "kaggle.json").unlink),
    ]
    with serving() as server:
        server.tokens |= set(tokens.values())
        for expected, remove in steps:
            found = find_credentials()
            assert (found.kind, found.secret) == expected
            assert what_the_client_takes(server, monkeypatch, home) == (*expected, found.username or USERNAME)
            remove()
        assert what_the_client_takes(server, monkeypatch, home) == ("login", "login-token", USERNAME)
    assert find_credentials().kind == "login"
    (home / ".kaggle" / "credentials.json").unlink()
    with pytest.raises(CredentialsError, match="Make a token"):
        find_credentials()


def test_token_variable_may_name_a_file_and_an_empty_one_ends_the_search_for_tokens(home, monkeypatch):
    write(home / ".kaggle" / "access_token", OTHER)
    write_key(home / ".kaggle" / "kaggle.json")
    path = write(home / "token", TOKEN)
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(path))
    with serving() as server:
        assert what_the_client_takes(server, monkeypatch, home)[:2] == ("token", find_credentials().secret) == ("token", TOKEN)
        write(path, "")
        assert what_the_client_takes(server, monkeypatch, home)[:2] == ("key", find_credentials().secret) == ("key", KEY)


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
        assert what_the_client_takes(server, monkeypatch, home)[:2] == ("key", find_credentials().secret) == ("key", KEY)
    assert find_credentials().path == expected


def test_source_is_named_and_the_secret_is_not(home, monkeypatch):
    path = write_key(home / ".kaggle" / "kaggle.json")
    found = find_credentials()
    assert (found.source, found.username, found.path) == (str(path), USERNAME, path)
    assert KEY not in f"{found!r} {found} {[found]}"
    monkeypatch.setenv("KAGGLE_KEY", "another-key")
    assert find_credentials().source == f"KAGGLE_KEY and {path}"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_file_that_others_may_touch_is_refused_with_the_command_that_mends_it(home, mode):
    path = write_key(home / ".kaggle" / "kaggle.json", mode=mode)
    with pytest.raises(CredentialsError, match=f"chmod 600 {path}"):
        find_credentials()
    path.chmod(0o600)
    find_credentials()


def test_example_is_refused_as_a_placeholder(home):
    example = json.loads((PROJECT / "kaggle.json.example").read_text())
    assert set(example.values()) == PLACEHOLDERS
    write(home / ".kaggle" / "kaggle.json", example)
    with pytest.raises(CredentialsError, match="placeholder"):
        find_credentials()


@pytest.mark.parametrize("content", ["{", "[]", '{"username": "me"}', '{"key": "0123456789"}'])
def test_kaggle_json_without_both_fields_is_no_credential_and_is_named(home, content):
    path = write(home / ".kaggle" / "kaggle.json", content)
    with pytest.raises(CredentialsError, match=f"{path} is there, but is not JSON with the fields"):
        find_credentials()


def test_kaggle_json_that_holds_a_token_or_lies_in_the_kit_is_told_where_to_go(home, monkeypatch):
    path = write(home / ".kaggle" / "kaggle.json", TOKEN)
    with pytest.raises(CredentialsError, match=f"If it is a token.*mv {path} {home}/.kaggle/access_token"):
        find_credentials()
    path.unlink()
    monkeypatch.setattr("utils.kaggle.credentials.PROJECT", home / "kit")
    misplaced = write_key(home / "kit" / "kaggle.json")
    with pytest.raises(CredentialsError, match=f"{misplaced} is not read: .*mv {misplaced} {path}"):
        find_credentials()


def test_usual_place_is_named_where_the_client_looks_elsewhere(home):
    (home / ".kaggle").rmdir()
    with pytest.raises(CredentialsError, match=f"{config_path()} .{home}/.kaggle/kaggle.json, once {home}/.kaggle is there"):
        find_credentials()


def test_username_is_that_of_the_credentials_and_its_lack_names_the_option(home, monkeypatch):
    with pytest.raises(CredentialsError, match="(?s)No Kaggle credentials.*--username YOU"):
        find_username()
    write_key(home / ".kaggle" / "kaggle.json")
    assert find_username() == USERNAME
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    with pytest.raises(CredentialsError, match="does not say whose it is.*--username YOU"):
        find_username()


@pytest.mark.parametrize("values", [{"username": "", "key": KEY}, {"username": "me", "key": None}])
def test_empty_field_is_refused(home, values):
    write(home / ".kaggle" / "kaggle.json", values)
    with pytest.raises(CredentialsError, match="empty"):
        find_credentials()


def test_all_problems_of_a_file_are_said_at_once(home):
    write_key(home / ".kaggle" / "kaggle.json", key="", mode=0o644)
    with pytest.raises(CredentialsError, match=r"(?s)empty.*chmod 600"):
        find_credentials()


def test_binary_file_is_an_error_that_names_it(home):
    (home / ".kaggle" / "access_token").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CredentialsError, match="access_token can't be read"):
        find_credentials()
    assert redact("text") == "text"


def test_file_in_the_reach_of_git_is_refused(home, monkeypatch):
    repository = home / "repository"
    path = write_key(repository / "kaggle.json")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(repository))
    git = ["git", "-C", str(repository)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    with pytest.raises(CredentialsError, match="git repository that does not ignore it"):
        find_credentials()
    write(repository / ".gitignore", "kaggle.json\n")
    assert find_credentials().path == path
    subprocess.run([*git, "add", "--force", "kaggle.json"], check=True)
    with pytest.raises(CredentialsError, match="git repository"):
        find_credentials()


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
