"""Facts about the copy of Kaggle's world."""

import ast
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import pytest

from utils.core.folders import PROJECT
from utils.rehearsal import init as kaggle_init
from utils.rehearsal import world as kaggle_world
from utils.rehearsal.world import TIMED_OUT, Seen, World, WorldError, isolation, make_kaggle_python, run_in_world

LACKING = ("imagecodecs", "pylibjpeg_libjpeg")
SMALL = 2**20
KEPT = "submission.csv"  # of the working folder, so that a test sees what the world left


def allowed() -> str:
    """Why there is no isolation here; empty if there is."""
    try:
        isolation()
    except WorldError as error:
        return str(error)
    return ""


isolated = pytest.mark.skipif(bool(allowed()), reason=allowed())


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return make_kaggle_python(Path(sys.executable), tmp_path_factory.mktemp("python") / "venv", LACKING)


@pytest.fixture
def world(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "given.txt").write_text("given")
    return World(tmp_path / "input", tmp_path / "results", working_bytes=SMALL)


def shell(world: World, command: str, **more) -> tuple[Seen, str]:
    """Run a line in the world's shell; return what was seen, and what the line wrote."""
    seen = run_in_world(world, ["sh", "-c", f"({command}) > {KEPT} 2>&1"], **more)
    return seen, (world.results / KEPT).read_text()


def tried(python, program: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(python.executable), "-c", program], capture_output=True, text=True, cwd="/")


# World
# -----


@isolated
def test_the_input_is_seen_and_can_not_be_changed(world):
    seen, said = shell(world, "cat /kaggle/input/given.txt; echo more >> /kaggle/input/given.txt; rm /kaggle/input/given.txt")
    assert said.startswith("given")
    assert said.count("Read-only file system") == 2
    assert seen.proofs["writing into the input"] == "EROFS"
    assert [path.read_text() for path in world.input.iterdir()] == ["given"]


@isolated
def test_there_is_no_network_but_the_loopback(world):
    seen, said = shell(world, "cat /proc/net/route; echo; cat /proc/net/if_inet6")
    assert seen.proofs["the host's own server"] == "ECONNREFUSED"
    assert seen.proofs["an address outside"] == "ENETUNREACH"
    assert len(said.splitlines()) <= 3 and "eth" not in said


@isolated
def test_a_server_of_the_world_is_reached_over_the_loopback(world):
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()); print('met')"
    )
    assert shell(world, f'{sys.executable} -c "{program}"')[1] == "met\n"


@isolated
def test_the_working_folder_is_limited(world):
    fill = f"head -c {2 * SMALL} /dev/zero > large 2> /tmp/said; sleep 0.6; rm large; cat /tmp/said"
    seen, said = shell(world, fill)
    assert "No space left on device" in said
    assert SMALL / 2 < seen.peaks["working"] <= SMALL


@isolated
def test_working_and_tmp_are_new_and_nothing_else_can_be_written(world, tmp_path):
    places = f"/etc /usr {Path.home()} {sys.prefix}"  # the project may lie under /tmp
    _, said = shell(
        world, f"pwd; ls -A /kaggle/working; for place in {places}; do touch $place/.written; done; touch /tmp/new && ls /tmp"
    )
    lines = said.splitlines()
    assert lines[0] == "/kaggle/working"
    assert sum("Read-only file system" in line or "Permission denied" in line for line in lines) == 4
    assert "new" in lines
    assert not Path("/tmp/new").exists()


@isolated
def test_the_projects_own_code_is_hidden(world):
    assert (PROJECT / "utils" / "core" / "folders.py").is_file()
    assert shell(world, f"ls {PROJECT}/utils 2> /dev/null")[1] == ""


@isolated
def test_a_project_and_its_python_may_lie_under_tmp(world, python, tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "utils").mkdir(parents=True)
    (project / "utils" / "__init__.py").touch()
    (project / ".venv").symlink_to(sys.prefix)
    monkeypatch.setattr(kaggle_world, "PROJECT", project)
    monkeypatch.setattr(sys, "prefix", str(project / ".venv"))
    world = replace(world, python=python)
    program = f"import os, numpy; print(os.listdir({str(project)!r}))"
    seen, said = shell(world, f'{python.executable} -c "{program}"; echo a > {project}/.venv/.written')
    assert said.splitlines()[0] == "['.venv']"
    assert "Read-only file system" in said
    assert seen.exit_status != 0


@isolated
def test_what_a_link_leads_to_is_shown_under_tmp_too(world, python, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "package.py").write_text("found\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    world = replace(world, python=replace(python, shown=(*python.shown, str(tmp_path / "link"))))
    assert shell(world, f"cat {tmp_path}/link/package.py {tmp_path}/real/package.py")[1] == "found\n" * 2


@isolated
def test_processes_of_the_host_are_not_seen_and_none_stays_behind(world):
    _, said = shell(world, "sleep 4567 & ls /proc | grep -c '^[0-9]'")
    assert int(said) < 10
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\x004567" in read(path)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


@isolated
def test_memory_of_children_counts(world):
    program = "import time; x = bytearray(150_000_000); time.sleep(0.8)"
    seen, _ = shell(world, f"{sys.executable} -c '{program}'")
    assert 150e6 < seen.peaks["memory"] < 250e6


@isolated
def test_what_does_not_end_in_time_is_killed_and_leaves_what_it_has(world):
    seen, said = shell(world, "echo draft; sleep 60", timeout=0.5)
    assert seen.exit_status == TIMED_OUT == kaggle_init.TIMED_OUT
    assert seen.seconds < 5
    assert said == "draft\n"


@isolated
def test_the_exit_status_is_the_commands(world):
    assert shell(world, "exit 3")[0].exit_status == 3


@isolated
def test_secrets_of_the_environment_stay_outside(world, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "planted-secret")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    _, said = shell(world, "env")
    assert "planted-secret" not in said and "PYTHONPATH" not in said
    assert "KAGGLE_IS_COMPETITION_RERUN=1" in said


@isolated
def test_an_ordinary_user_can_make_it_too(world, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    try:
        assert "--user" in isolation()
    except WorldError as error:
        pytest.skip(str(error))
    seen, _ = shell(world, "echo made")
    assert seen.proofs["writing into the input"] == "EROFS" and seen.exit_status == 0


def test_a_system_without_namespaces_is_told_apart_with_a_remedy(monkeypatch):
    with pytest.raises(WorldError, match="allows no namespaces.*no-such-flag.*unprivileged_userns_clone.*--unisolated"):
        isolation(["--no-such-flag"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(WorldError, match="no unshare here"):
        isolation()


def test_without_isolation_the_command_runs_in_a_folder_of_the_results(tmp_path):
    world = World(tmp_path, tmp_path / "results", isolated=False)
    seen, said = shell(world, "pwd")
    assert said.strip() == str(world.results / "working")
    assert seen.proofs == {} and seen.exit_status == 0


def test_a_network_that_answers_is_no_proof():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert kaggle_init.connect_error(server.getsockname()) == ""


def test_a_folder_that_can_be_written_is_no_proof(tmp_path):
    assert kaggle_init.write_error(tmp_path) == ""
    assert not list(tmp_path.iterdir())


def test_the_first_process_imports_nothing_of_the_kit():
    program = f"import runpy, sys; runpy.run_path({kaggle_init.__file__!r}); print([m for m in sys.modules if 'utils.' in m])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd="/")
    assert not [name for name in ast.literal_eval(done.stdout) if name.startswith("utils.")]


# Python
# ------


def test_the_python_lacks_what_kaggles_lacks_and_has_the_rest(python):
    for missing in ("imagecodecs", "libjpeg", "_libjpeg"):
        assert f"No module named '{missing}'" in tried(python, f"import {missing}").stderr
    found = tried(python, "import numpy, pydicom, openjpeg; print(numpy.__file__)").stdout
    assert found.startswith(str(python.folder))


def test_the_python_does_not_know_the_missing_packages_metadata(python):
    program = "from importlib.metadata import version; print(version('imagecodecs'))"
    assert "PackageNotFoundError" in tried(python, program).stderr


def test_the_python_is_one_of_its_own(python):
    about = json.loads(
        tried(python, "import json, sys; print(json.dumps([sys.prefix, sys.executable, sys.version_info[:2]]))").stdout
    )
    assert about[:2] == [str(python.folder), str(python.executable)]
    assert python.version == "{}.{}".format(*about[2]) == "{}.{}".format(*sys.version_info)


def test_pip_of_the_python_installs_into_it(python):
    said = tried(python, "import sysconfig, pip; print(sysconfig.get_path('purelib'))").stdout.strip()
    assert Path(said).is_relative_to(python.folder)


def test_a_python_that_does_not_run_is_told_apart(tmp_path):
    with pytest.raises(WorldError, match="does not run .*--python"):
        make_kaggle_python(tmp_path / "python", tmp_path / "venv", ())


def test_entries_that_packages_share_stay(python, tmp_path):
    shared = [f.parts[0] for f in distribution("jupyter").files or () if f.parts[0] not in ("..", "__pycache__")]
    listed = kaggle_world._ask(Path(sys.executable), kaggle_world.LIST_ENTRIES, "jupyter")
    core = {f.parts[0] for f in distribution("jupyter_core").files or ()}
    assert set(listed) == set(shared) - core
