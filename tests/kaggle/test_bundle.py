import json
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.helpers import write_tuned
from tests.kaggle.test_wheels import make_wheel
from utils.core.files import read_json, write_json
from utils.core.folders import PROJECT, is_from_kit
from utils.kaggle import bundle, bundle_checks
from utils.kaggle.bundle import BundleError, name_weights, write_bundle
from utils.kaggle.bundle_checks import check_bundle, slug_of
from utils.kaggle.notebooks import NOTEBOOKS

USER = "some-reader"


def make_run(folder, text="oof"):
    files = {name: name for name in ("config.json", "folds.csv", "history.csv", "boxes.csv")} | {"oof.csv": text}
    for fold in ("fold0", "fold1"):
        files |= {f"{fold}/{name}": fold for name in ("oof.csv", "weights.safetensors", "checkpoint.pt", "history.csv")}
    files["config.json"] = json.dumps({"prevalence": 0.25, "smoke_test": False})
    files |= {"fold2/weights.safetensors": "unfinished", "fold2/checkpoint.pt": "unfinished"}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def change(path, **fields):
    write_json(path, read_json(path) | fields)


def files_under(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "resnet50_1024")


@pytest.fixture(autouse=True)
def no_wheels(monkeypatch):
    """Stand in for the download, which tests/kaggle/test_wheels.py holds: the image lacks nothing."""
    monkeypatch.setattr(bundle, "download_wheels", lambda *_: [])


@pytest.fixture
def wheels(monkeypatch, no_wheels):
    """The image lacks one package."""

    def download(folder, requirements, python_version):
        assert requirements == PROJECT / "requirements.txt"
        return [make_wheel(folder, "imagecodecs", tag=f"cp{python_version.replace('.', '')}-abi3-manylinux_2_28_x86_64")]

    monkeypatch.setattr(bundle, "download_wheels", download)


@pytest.fixture
def made(tmp_path, run, wheels):
    """A bundle with one run and its threshold."""
    folder = tmp_path / "bundle"
    write_bundle(folder, USER, [run], write_tuned(tmp_path / "threshold.json", run))
    return folder


def test_a_bundle_has_a_folder_for_each_dataset_and_notebook(tmp_path, run, wheels):
    named = write_bundle(tmp_path / "bundle", USER, [run], None)
    datasets, kernels = ["code", "weights-resnet50-1024", "wheels"], {path.stem for path in PROJECT.glob("notebooks/*.ipynb")}
    assert list(named)[:3] == datasets and set(named) == {*datasets, *kernels}
    assert all(path.is_dir() for path in named.values())
    assert check_bundle(tmp_path / "bundle") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "runs"]  # nothing temporary is left


def test_the_code_is_one_zip_with_its_version_and_the_same_bytes_each_time(tmp_path, made, run):
    write_bundle(tmp_path / "again", USER, [run], None)
    zips = [next(folder.glob("datasets/code/mammography-kit-*.zip")) for folder in (made, tmp_path / "again")]
    assert zips[0].read_bytes() == zips[1].read_bytes()
    with zipfile.ZipFile(zips[0]) as archive:
        held, kit = set(archive.namelist()), json.loads(archive.read("kit.json"))
        assert archive.read("utils/metrics/scores.py") == (PROJECT / "utils/metrics/scores.py").read_bytes()
    assert {"utils/core/folders.py", "notebooks/submit.ipynb", "requirements.txt", "LICENSE"} <= held
    assert {name.partition("/")[0] for name in held} == {
        "utils",
        "notebooks",
        "requirements.txt",
        "pyproject.toml",
        "LICENSE",
        "kit.json",
    }
    assert zips[0].name == f"mammography-kit-{kit['version']}.zip" and kit["commit"]


def test_the_zipped_code_can_be_imported(tmp_path, made):
    with zipfile.ZipFile(next(made.glob("datasets/code/*.zip"))) as archive:
        archive.extractall(tmp_path / "kit")
    command = "import utils.kaggle.preflight, utils.submission.streaming, utils.evaluation.material; print(utils.__path__[0])"
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path / "kit", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "kit" / "utils")


def test_a_run_is_sent_with_its_finished_folds_and_without_checkpoints(made, run):
    folder = made / "datasets" / "weights-resnet50-1024"
    of_folds = [f"{fold}/{name}" for fold in ("fold0", "fold1") for name in ("history.csv", "oof.csv", "weights.safetensors")]
    sent = ["config.json", *of_folds, "folds.csv", "history.csv", "oof.csv"]
    assert files_under(folder) == ["dataset-metadata.json", *(f"resnet50_1024/{name}" for name in sent), "threshold.json"]
    assert (folder / "resnet50_1024" / "oof.csv").read_bytes() == (run / "oof.csv").read_bytes()


def test_an_edit_in_the_bundle_does_not_change_the_run(made, run):
    copy = next(made.glob("datasets/weights-*/*/config.json"))
    with copy.open("a") as file:
        file.write("edited")
    assert (run / "config.json").read_text() == json.dumps({"prevalence": 0.25, "smoke_test": False})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of three modules, one of which no notebook imports, and of notebooks with outputs."""
    folder = tmp_path / "project"
    (folder / "notebooks").mkdir(parents=True)
    texts = {"core/folders": "from utils.metrics import f", "metrics/__init__": "from utils.metrics.scores import f"}
    for name, text in {"__init__": "", "core/__init__": "", "metrics/scores": "f = 1", "scratch": "KEY", **texts}.items():
        path = folder / "utils" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    output = {"output_type": "stream", "name": "stdout", "text": ["patient 123"]}
    code = {
        "cell_type": "code",
        "id": "a",
        "metadata": {"tags": ["parameters"], "papermill": {"duration": 1}},
        "outputs": [output],
    }
    code |= {"source": ["import utils.core.folders"], "execution_count": 7}
    content = {"cells": [code], "metadata": {"kernelspec": {"name": "python3"}, "widgets": {"state": "patient 123"}}}
    for name in NOTEBOOKS:
        write_json(folder / "notebooks" / f"{name}.ipynb", content)
    for name in ("requirements.txt", "pyproject.toml", "LICENSE"):
        (folder / name).write_text((PROJECT / name).read_text())
    monkeypatch.setattr(bundle, "PROJECT", folder)
    return folder


def test_files_that_no_notebook_imports_are_not_sent(tmp_path, project):
    for stray in ("scratch.txt", "._folders.py", "kaggle.json"):
        (project / "utils" / stray).write_text("KEY")
    (project / "utils" / ".#scores.py").symlink_to("me@host.1234")  # an editor's lock
    (project / "utils" / "notes.py").symlink_to(project / "utils" / "scratch.py")
    write_bundle(tmp_path / "bundle", USER, [], None)
    with zipfile.ZipFile(next(tmp_path.glob("bundle/datasets/code/*.zip"))) as archive:
        modules = {name for name in archive.namelist() if name.startswith("utils/")}
    inside = ("__init__", "core/__init__", "core/folders", "metrics/__init__", "metrics/scores")
    assert modules == {f"utils/{name}.py" for name in inside}


def test_notebooks_are_sent_without_outputs(tmp_path, project):
    write_bundle(tmp_path / "bundle", USER, [], None)
    with zipfile.ZipFile(next(tmp_path.glob("bundle/datasets/code/*.zip"))) as archive:
        zipped = archive.read("notebooks/train.ipynb").decode()
    for text in (zipped, (tmp_path / "bundle" / "kernels" / "train" / "train.ipynb").read_text()):
        assert "patient 123" not in text and "duration" not in text
        assert json.loads(text)["cells"][0]["metadata"] == {"tags": ["parameters"]}


@pytest.mark.parametrize("name", ["utils/metrics/scores.py", "utils/__init__.py", "notebooks/train.ipynb", "LICENSE"])
def test_a_link_in_the_kit_is_refused(tmp_path, project, name):
    (project / name).rename(tmp_path / "elsewhere")
    (project / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is a link: put the file itself"):
        write_bundle(tmp_path / "bundle", USER, [], None)


@pytest.mark.parametrize("name", ["history.csv", "fold0/history.csv", "extra.csv", "fold1", "fold0/weights.safetensors"])
def test_a_link_in_a_run_is_refused(tmp_path, run, name):
    if (run / name).exists():
        (run / name).rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").write_text("secret")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is a link"):
        write_bundle(tmp_path / "bundle", USER, [run], None)


def test_a_smoke_test_is_refused_also_where_a_threshold_names_it(tmp_path, run):
    write_json(run / "config.json", {"prevalence": 0.25, "smoke_test": True})
    threshold = write_tuned(tmp_path / "threshold.json", run)
    with pytest.raises(BundleError, match=f"{run}: it is a smoke test: train it again"):
        write_bundle(tmp_path / "bundle", USER, bundle.runs_to_send("", threshold), threshold)


@pytest.mark.parametrize("folder", ["runs-smoke", "runs-smoke/deeper"])
def test_a_smoke_test_of_an_earlier_version_is_known_by_its_folder(tmp_path, run, folder):
    (tmp_path / folder).mkdir(parents=True)
    old = run.rename(tmp_path / folder / run.name)
    config = read_json(old / "config.json")
    write_json(old / "config.json", {name: value for name, value in config.items() if name != "smoke_test"})
    (tmp_path / "link").symlink_to(old)
    for named in (old, tmp_path / "link"):
        with pytest.raises(BundleError, match=f"{old}: it is a smoke test: train it again"):
            write_bundle(tmp_path / "bundle", USER, [named], None)
    write_json(old / "config.json", config | {"smoke_test": False})  # today's say it themselves
    assert not bundle_checks.run_problems(old)


def test_a_wheels_folder_carries_the_mark_of_the_kit(made):
    assert is_from_kit(made / "datasets" / "wheels")


def test_all_problems_are_told_at_once_and_nothing_is_written(tmp_path, run):
    (run / "fold1" / "weights.safetensors").unlink()
    empty = tmp_path / "runs" / "empty"
    with pytest.raises(BundleError) as caught:
        write_bundle(tmp_path / "bundle", "some reader; rm", [run, empty], None)
    for told in ("username is 'some reader; rm'", "fold1/weights.safetensors is missing", f"{empty}: no fold is finished"):
        assert told in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_threshold_of_other_runs_is_refused(tmp_path, run):
    other = make_run(tmp_path / "runs" / "other", "other oof")
    with pytest.raises(BundleError, match="was tuned on"):
        write_bundle(tmp_path / "bundle", USER, [run], write_tuned(tmp_path / "threshold.json", run, other))
    (tmp_path / "threshold.json").write_text("{}")
    with pytest.raises(BundleError, match="threshold.json: it lacks fields"):
        write_bundle(tmp_path / "bundle", USER, [run], tmp_path / "threshold.json")


def test_a_former_bundle_is_replaced_and_any_other_folder_refused(tmp_path, made, run, monkeypatch):
    monkeypatch.setattr(bundle, "download_wheels", lambda *_: [])
    write_bundle(made, USER, [run], None)
    assert not (made / "datasets" / "wheels").exists()
    thesis = tmp_path / "mine"
    thesis.mkdir()
    write_json(thesis / "bundle.json", {"name": "a bundle of joy"})
    with pytest.raises(BundleError, match="is not an earlier bundle"):
        write_bundle(thesis, USER, [run], None)
    assert files_under(thesis) == ["bundle.json"]


@pytest.mark.parametrize("name", ["kernels/train/train.ipynb", "kernels/submit/kernel-metadata.json"])
def test_an_edit_in_a_bundle_is_not_written_over(made, run, name):
    change(made / name, mine="an edit of hours")
    with pytest.raises(BundleError, match=f"{name} was edited since.*--out, or delete {made}"):
        write_bundle(made, USER, [run], None)
    assert read_json(made / name)["mine"] == "an edit of hours"
    write_json(made / "bundle.json", {"name": "mammography-kit"})  # an earlier kit's, which kept no hashes
    write_bundle(made, USER, [run], None)
    assert "mine" not in read_json(made / name)


@pytest.mark.parametrize("name", ["notes.txt", "kernels/mine/mine.ipynb", "datasets/weights-resnet50-1024/README.md"])
def test_a_file_that_was_put_into_a_bundle_is_not_deleted(made, run, name):
    (made / name).parent.mkdir(exist_ok=True)
    (made / name).write_text("work of hours")
    with pytest.raises(BundleError, match=f"{name} is not from this kit, and would be deleted"):
        write_bundle(made, USER, [run], None)
    (made / name).unlink()
    write_bundle(made, USER, [run], None)


def test_versions_that_were_pushed_outlive_a_rewrite(made, run):
    bundle.note_pushed(made, f"{USER}/mammography-kit-submit", 3)
    write_bundle(made, USER, [run], None)
    assert bundle.read_pushed(made) == {f"{USER}/mammography-kit-submit": 3}
    assert check_bundle(made) == []


def test_a_failure_leaves_the_former_bundle_as_it_was(made, run, monkeypatch):
    before = files_under(made)
    monkeypatch.setattr(bundle, "check_bundle", lambda folder: ["too large"])
    with pytest.raises(BundleError, match="- too large"):
        write_bundle(made, "another", [run], None)
    assert files_under(made) == before and read_json(made / "bundle.json")["username"] == USER


def test_names_of_runs_become_short_and_unlike_each_other(tmp_path):
    folders = ["a/Große Läufe", "b/große läufe", "c/x" + "y" * 80, "d/x" + "y" * 80, "e/---", "f/convnext.small_2048"]
    names = name_weights([tmp_path / folder for folder in folders])
    assert list(names)[:2] == ["groe-laufe", "groe-laufe-2"] and list(names)[4:] == ["run", "convnext-small-2048"]
    assert len(names) == len(folders)
    assert all(len(f"Mammography weights {name}") <= 50 for name in names)


def test_slugs_are_those_of_the_client(made):
    slugify = pytest.importorskip("slugify").slugify
    titles = [read_json(path)["title"] for path in made.glob("*/*/*-metadata.json")]
    assert len(titles) == 9
    for title in [*titles, "Mammography  kit: tune_threshold (2)", "Läufe 2048×1024".replace("×", "x")]:
        assert slug_of(title) == slugify(title)


def test_only_notebooks_that_compute_much_ask_for_two_t4_and_none_for_the_internet(made):
    kernels = {path.parent.name: read_json(path) for path in made.glob("kernels/*/kernel-metadata.json")}
    assert {name for name, kernel in kernels.items() if kernel["enable_gpu"]} == {"train", "report", "submit"}
    assert {kernel["machine_shape"] for kernel in kernels.values() if kernel["enable_gpu"]} == {"NvidiaTeslaT4"}
    assert not any(kernel["enable_internet"] for kernel in kernels.values())
    assert all(
        kernel["is_private"] and kernel["competition_sources"] == ["rsna-breast-cancer-detection"]
        for kernel in kernels.values()
    )
    both = [f"{USER}/mammography-kit-code", f"{USER}/mammography-kit-wheels"]
    assert kernels["train"]["dataset_sources"] == both
    assert kernels["train"]["kernel_sources"] == [f"{USER}/mammography-kit-preprocess"]
    assert kernels["submit"]["dataset_sources"] == [*both, f"{USER}/mammography-weights-resnet50-1024"]
    assert kernels["submit"]["kernel_sources"] == []


def test_without_runs_the_later_notebooks_take_those_of_the_train_notebook(tmp_path, wheels):
    write_bundle(tmp_path / "bundle", USER, [], None)
    sources = {
        "train": ["preprocess"],
        "tune_threshold": ["train"],
        "report": ["preprocess", "train", "tune-threshold"],
        "submit": ["train", "tune-threshold"],
    }
    for name, before in sources.items():
        kernel = read_json(tmp_path / "bundle" / "kernels" / name / "kernel-metadata.json")
        assert kernel["kernel_sources"] == [f"{USER}/mammography-kit-{source}" for source in before]


def test_no_wheels_dataset_where_the_image_lacks_nothing(tmp_path, run, monkeypatch):
    monkeypatch.setattr(bundle, "download_wheels", lambda *_: [])
    assert "wheels" not in write_bundle(tmp_path / "bundle", USER, [run], None)


SPOILED = []


def spoil(told):
    """Register a way to spoil a bundle by hand, with what `check_bundle` must then say."""
    return lambda edit: SPOILED.append(pytest.param(edit, told, id=edit.__name__))


@spoil("must be USERNAME/SLUG")
def no_slug(made):
    change(made / "datasets/wheels/dataset-metadata.json", id=f"{USER}/Wheels of Mine")


@spoil("lack the field 'id'")
def no_id(made):
    write_json(made / "kernels/submit/kernel-metadata.json", {"title": "Mammography kit submit"})


@spoil("can't be read")
def no_json(made):
    (made / "kernels/train/kernel-metadata.json").write_text("{")


@spoil("contains no file")
def no_file(made):
    next(made.glob("datasets/wheels/*.whl")).unlink()


@spoil("more than Kaggle's 1000000: clear its outputs")
def large_notebook(made):
    notebook = read_json(made / "kernels/report/report.ipynb")
    write_json(made / "kernels/report/report.ipynb", notebook | {"picture": "x" * 10**6})


@spoil("makes the slug 'quite-another', which id")
def other_title(made):
    change(made / "kernels/submit/kernel-metadata.json", title="Quite another")


@spoil("machine_shape is 'T4x2'")
def unknown_machine(made):
    change(made / "kernels/submit/kernel-metadata.json", machine_shape="T4x2")


@spoil("enable_internet must be false")
def internet(made):
    change(made / "kernels/submit/kernel-metadata.json", enable_internet=True)


@spoil("must name the kernel python3")
def other_kernel(made):
    path = made / "kernels/submit/submit.ipynb"
    write_json(path, read_json(path) | {"metadata": {"kernelspec": {"name": "my-venv"}}})


@spoil(f"source {USER}/mammography-kit-preprocess is not in the bundle")
def lost_source(made):
    folder = made / "kernels/preprocess"
    folder.rename(made / "elsewhere")


@spoil("occurs 2 times")
def same_id(made):
    change(made / "datasets/wheels/dataset-metadata.json", id=f"{USER}/mammography-kit-code")


@spoil("fold0/weights.safetensors is missing")
def no_weights(made):
    next(made.glob("datasets/weights-*/*/fold0/weights.safetensors")).unlink()


@spoil("contains checkpoint.pt")
def checkpoint(made):
    (next(made.glob("datasets/weights-*/*/fold0")) / "checkpoint.pt").touch()


@spoil("was tuned on")
def other_oof(made):
    oof = next(made.glob("datasets/weights-*/*/oof.csv"))
    oof.unlink()  # else the run itself would change, which is linked
    oof.write_text("other predictions")


@spoil("may be a credential")
def secret(made):
    (made / "datasets/code/kaggle.json").write_text("{}")


@spoil("is not a bundle")
def no_kernels(made):
    shutil.rmtree(made / "kernels")


@pytest.mark.parametrize(("edit", "told"), SPOILED)
def test_a_bundle_spoiled_by_hand_is_told_of(made, edit, told):
    assert check_bundle(made) == []
    edit(made)
    assert told in "\n".join(check_bundle(made))


class StandIn(BaseHTTPRequestHandler):
    """As much of Kaggle's API as the client's commands need; keeps what it was sent."""

    calls: list = []
    known: set = set()

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.path.rpartition("/")[2]
        self.calls.append((name, sent))
        answers = {
            "StartBlobUpload": lambda: {"token": sent["name"], "createUrl": f"http://{self.headers['Host']}/upload"},
            "CreateDataset": lambda: {"url": "https://example.org", "status": "ok"},
            "CreateDatasetVersion": lambda: {"url": "https://example.org", "status": "ok"},
            "GetDatasetStatus": lambda: {"status": "READY"} if sent["datasetSlug"] in self.known else None,
            "SaveKernel": lambda: {"url": "https://example.org", "versionNumber": 7},
            "GetKernelSessionStatus": lambda: {"status": "COMPLETE"},
            "CreateCodeSubmission": lambda: {"message": "Successfully submitted"},
        }
        if name == "CreateDataset":
            self.known.add(sent["slug"])
        answer = answers.get(name, lambda: None)()
        self.reply(404 if answer is None else 200, answer or {"code": 404, "message": "404 Not Found"})

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(200, {})

    def reply(self, code, answer):
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def kaggle_api(tmp_path, monkeypatch):
    """The real client, signed in as nobody, whose only Kaggle is a server in this process."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", "0123456789abcdef")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pytest.importorskip("kaggle")
    from kaggle.api.kaggle_api_extended import KaggleApi
    from kagglesdk import kaggle_env

    StandIn.calls, StandIn.known = [], set()
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, endpoint)
        api = KaggleApi()
        api.authenticate()
        yield api
        server.shutdown()


def of(name):
    return [sent for call, sent in StandIn.calls if call == name]


def test_the_client_creates_every_dataset(made, kaggle_api):
    for folder in sorted((made / "datasets").iterdir()):
        assert kaggle_api.dataset_create_new(str(folder), quiet=True, dir_mode="zip").status == "ok"
    created = {sent["slug"]: sent for sent in of("CreateDataset")}
    weights = created["mammography-weights-resnet50-1024"]
    assert sorted(file["token"] for file in weights["files"]) == ["resnet50_1024.zip", "threshold.json"]
    assert sorted(file["token"] for file in created["mammography-kit-wheels"]["files"]) == [
        "imagecodecs-1.0-cp312-abi3-manylinux_2_28_x86_64.whl",
        "kit.json",
    ]
    assert all(sent["isPrivate"] and sent["ownerSlug"] == USER and sent["licenseName"] == "other" for sent in created.values())


def test_the_client_pushes_every_kernel_without_a_warning(made, kaggle_api, capsys):
    for folder in sorted((made / "kernels").iterdir()):
        assert kaggle_api.kernels_push(str(folder)).version_number == 7
    assert "does not resolve" not in capsys.readouterr().out
    pushed = {sent["slug"].partition("/")[2]: sent for sent in of("SaveKernel")}
    assert len(pushed) == 6
    submit = pushed["mammography-kit-submit"]
    assert submit["enableInternet"] is False and submit["isPrivate"] and submit["machineShape"] == "NvidiaTeslaT4"
    assert submit["competitionDataSources"] == ["rsna-breast-cancer-detection"]
    assert len(submit["datasetDataSources"]) == 3
    assert "kernelspec" in json.loads(submit["text"])["metadata"]
