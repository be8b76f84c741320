"""Push-ready folders for Kaggle: code, weights and wheels as datasets, and one kernel per notebook.

Only pip uses the network, for the wheels.
"""

import hashlib
import itertools
import json
import re
import shlex
import shutil
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import KitError
from utils.core.files import read_json, replace_folder, write_atomic, write_json
from utils.core.folders import COMPETITION, KIT, KIT_FILE, PROJECT, is_from_kit
from utils.core.versions import versions
from utils.decision.threshold import Threshold
from utils.kaggle.bundle_checks import (
    DATASET_FILE,
    KERNEL_FILE,
    T4_TWICE,
    check_bundle,
    parts,
    run_files,
    run_problems,
    slug_of,
    threshold_problems,
)
from utils.kaggle.notebooks import NOTEBOOKS
from utils.kaggle.wheels import KAGGLE_PYTHON, download_wheels
from utils.runs.code import imports_of, module_files, reached_modules
from utils.runs.found import find_runs
from utils.runs.run import Run

MARKER = "bundle.json"  # only a folder that contains it is replaced
PUSHED = "pushed.json"  # versions of the kernels pushed from this bundle, by id


class BundleError(KitError):
    """A bundle can't be written or sent; the message lists all problems, each with its remedy."""


@dataclass(frozen=True)
class Part:
    """A folder of the bundle: ``kind`` is "dataset" or "kernel", ``id`` is ``owner/slug``."""

    kind: str
    id: str
    folder: Path


def write_bundle(
    folder: Path,
    username: str,
    run_dirs: Sequence[Path],
    threshold_path: Path | None,
    python_version: str = KAGGLE_PYTHON,
) -> dict[str, Path]:
    """Write everything that goes to Kaggle into a folder, complete and checked, or not at all.

    Parameters
    ----------
    folder : Path
        New, empty, or a former bundle, which is replaced.
    username : str
        Name of the Kaggle account, as in kaggle.com/USERNAME.
    run_dirs : sequence of Path
        Trained runs to send. Without any, Kaggle's notebooks use the runs that the train notebook makes there.
    threshold_path : Path or None
        threshold.json tuned on these runs.
    python_version : str
        Python version for which the wheels are downloaded.

    Returns
    -------
    dict of str to Path
        Folder by name: ``code``, ``weights-RUN``, ``wheels`` if the image lacks any, and the notebooks.

    Raises
    ------
    BundleError
        If there are problems; it lists all of them, and ``folder`` is unchanged.
    PackageError
        If the wheels are unavailable.
    """
    folder, runs = Path(folder), list(dict.fromkeys(Path(run).resolve() for run in run_dirs))
    check_sources(folder, username, runs, threshold_path)
    with replace_folder(folder) as new:
        _write_code(new / "datasets", username)
        _write_weights(new / "datasets", username, runs, threshold_path)
        _write_wheels(new / "datasets", username, python_version)
        _write_kernels(new, username)
        known = {"hashes": _hash_editable(new), "files": _list_files(new)}
        write_json(new / MARKER, _provenance() | {"username": username, "python": python_version} | known)
        _refuse(check_bundle(new))
        if (folder / PUSHED).is_file():
            shutil.copyfile(folder / PUSHED, new / PUSHED)
    return {path.name: path for path in (*parts(folder, "datasets"), *parts(folder, "kernels"))}


def check_sources(folder: Path, username: str, run_dirs: Sequence[Path], threshold_path: Path | None) -> None:
    """Check the arguments of `write_bundle` without writing; raise BundleError listing all problems."""
    _refuse([*_target_problems(Path(folder), username), *_source_problems(run_dirs, threshold_path)])


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise BundleError("Not written or sent, for:" + "".join(f"\n- {problem}" for problem in problems))


def _target_problems(folder: Path, username: str) -> Iterator[str]:
    if folder.exists() and not is_from_kit(folder, MARKER) and (not folder.is_dir() or any(folder.iterdir())):
        yield f"{folder} is not empty, and is no former bundle (no {MARKER}): name another folder with --out."
    if is_from_kit(folder, MARKER):
        yield from _changes(folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", username):
        yield f"username is {username!r}, but must be as in kaggle.com/USERNAME: letters, digits, hyphens and underscores."


def _changes(bundle: Path) -> Iterator[str]:
    """Yield what a person edited or added since `write_bundle` wrote a bundle; nothing if an earlier kit kept no lists."""
    written = read_json(bundle / MARKER)
    hashes = written.get("hashes", {})
    for name, now in _hash_editable(bundle).items():
        if hashes.get(name, now) != now:
            remedy = f"name another folder with --out, or delete {bundle} to lose the edit."
            yield f"{bundle / name} was edited since it was written: {remedy}"
    files = _list_files(bundle)
    for name in sorted({*files} - {MARKER, PUSHED, *written.get("files", files)}):
        yield f"{bundle / name} is not from this kit, and would be deleted: move it, or name another folder with --out."


def _hash_editable(folder: Path) -> dict[str, str]:
    paths = [path for pattern in ("kernels/*/*.ipynb", "*/*/*-metadata.json") for path in sorted(folder.glob(pattern))]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _list_files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _source_problems(runs: Sequence[Path], threshold_path: Path | None) -> list[str]:
    problems = _link_problems() + [f"{run}: {problem}" for run in runs for problem in run_problems(run)]
    if problems or not threshold_path:
        return problems
    command = ["papermill", "notebooks/tune_threshold.ipynb", "outputs/tune.ipynb", "-p", "run_dirs", ",".join(map(str, runs))]
    command = shlex.join([*command, "-p", "threshold_path", str(threshold_path)])
    return [f"{problem} As here: {command}" for problem in threshold_problems(runs, Path(threshold_path))]


def _write_weights(datasets: Path, username: str, runs: Sequence[Path], threshold_path: Path | None) -> None:
    for name, run in name_weights(runs).items():
        folder = datasets / f"weights-{name}"
        for file in run_files(run):
            (folder / run.name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / file, folder / run.name / file)  # not a hard link: an edit here must not change the run
        if threshold_path:
            shutil.copyfile(threshold_path, folder / "threshold.json")
        _describe_dataset(folder, username, f"Mammography weights {name}", "A trained run: weights and out-of-fold predictions")


def _write_wheels(datasets: Path, username: str, python_version: str) -> None:
    folder = datasets / "wheels"
    if download_wheels(folder, PROJECT / "requirements.txt", python_version):
        write_json(folder / KIT_FILE, _provenance())
        _describe_dataset(folder, username, "Mammography kit wheels", "Python packages that Kaggle's image lacks")


def name_weights(runs: Sequence[Path]) -> dict[str, Path]:
    """Give each run a unique name that fits into a dataset's title and slug."""
    names: dict[str, Path] = {}
    for run in runs:
        base = slug_of(run.name)[:26].strip("-") or "run"  # of 50 characters, "Mammography weights " takes 20; a number gets 4
        numbered = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        names[next(name for name in numbered if name not in names)] = run
    return names


def _provenance() -> dict[str, str]:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return {"name": KIT, "version": version, "commit": versions()["commit"]}


def _write_code(datasets: Path, username: str) -> None:
    """Zip the code reproducibly; kit.json gives version and commit where git is unavailable."""
    folder, made = datasets / "code", _provenance()
    contents = {path.relative_to(PROJECT).as_posix(): path.read_bytes() for path in _code_files()}
    contents |= {f"notebooks/{name}.ipynb": _notebook(name) for name in NOTEBOOKS}
    contents[KIT_FILE] = json.dumps(made, indent=2).encode()
    with write_atomic(folder / f"{KIT}-{made['version']}.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    _describe_dataset(folder, username, "Mammography kit code", "The notebooks and what they compute with")


def _code_files() -> list[Path]:
    """List the files that the notebooks need: the modules they reach, and the project's shared files."""
    imported = {name for path in PROJECT.glob("notebooks/*.ipynb") for name in imports_of(_code_of(path))}
    shared = [PROJECT / name for name in ("requirements.txt", "pyproject.toml", "LICENSE")]
    return module_files(reached_modules(imported, PROJECT), PROJECT) + shared


def _code_of(notebook: Path) -> str:
    cells = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def _link_problems() -> list[str]:
    paths = [*_code_files(), *(PROJECT / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS)]
    return [f"{path} is a link: put the file itself in its place." for path in paths if path.is_symlink()]


def _notebook(name: str) -> bytes:
    """Read a notebook without outputs, execution counts, and metadata other than tags, kernel and language."""
    notebook = read_json(PROJECT / "notebooks" / f"{name}.ipynb")
    notebook["metadata"] = {
        key: notebook["metadata"][key] for key in ("kernelspec", "language_info") if key in notebook["metadata"]
    }
    for cell in notebook["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def _describe_dataset(folder: Path, username: str, title: str, subtitle: str) -> None:
    metadata = {"title": title, "id": f"{username}/{slug_of(title)}", "subtitle": subtitle, "licenses": [{"name": "other"}]}
    write_json(folder / DATASET_FILE, metadata)


def _write_kernels(bundle: Path, username: str) -> None:
    datasets = {path.name: read_json(path / DATASET_FILE)["id"] for path in parts(bundle, "datasets")}
    for name in NOTEBOOKS:
        folder = bundle / "kernels" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.ipynb").write_bytes(_notebook(name))
        write_json(folder / KERNEL_FILE, _kernel_metadata(name, username, datasets))


def _kernel_metadata(name: str, username: str, datasets: dict[str, str]) -> dict:
    weights = [dataset for part, dataset in datasets.items() if part.startswith("weights-")]
    sources = [dataset for part, dataset in datasets.items() if not part.startswith("weights-")]
    notebook = NOTEBOOKS[name]
    before = notebook.takes if weights else notebook.takes + notebook.takes_for_runs
    return {
        "id": f"{username}/{_kernel_slug(name)}",
        "title": _kernel_title(name),
        "code_file": f"{name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": notebook.is_on_gpu,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": T4_TWICE if notebook.is_on_gpu else "",
        "dataset_sources": sources + (weights if notebook.reads_runs else []),
        "competition_sources": [COMPETITION],
        "kernel_sources": [f"{username}/{_kernel_slug(source)}" for source in before],
        "model_sources": [],
    }


def _kernel_title(name: str) -> str:
    return f"Mammography kit {name.replace('_', ' ')}"


def _kernel_slug(name: str) -> str:
    return slug_of(_kernel_title(name))


NOTEBOOKS_BY_SLUG = {_kernel_slug(name): notebook for name, notebook in NOTEBOOKS.items()}


def find_parts(bundle: Path) -> list[Part]:
    """List the bundle's datasets, then its kernels; raise BundleError if there are none or metadata can't be read."""
    paths = [path for kind in ("dataset", "kernel") for path in sorted(bundle.glob(f"{kind}s/*/{kind}-metadata.json"))]
    if not paths:
        raise BundleError(f"{bundle} holds no bundle: write it with python -m utils.kaggle bundle, or name it with --bundle.")
    try:
        return [Part(path.name.split("-")[0], read_json(path)["id"], path.parent) for path in paths]
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{bundle}: metadata can't be read ({error!r}): write the bundle again.") from None


def submit_kernel(bundle: Path) -> Part:
    """Return the kernel that makes submission.csv; raise BundleError if the bundle has none."""
    for part in find_parts(bundle):
        if (part.kind, part.folder.name) == ("kernel", "submit"):
            return part
    raise BundleError(f"{bundle} has no kernels/submit: write it again, or name the kernel as owner/slug.")


def runs_to_send(named: str, threshold: Path) -> list[Path]:
    """Return the named runs; else those that the threshold was tuned on; else all runs, perhaps none."""
    if not named and threshold.is_file():
        return Threshold.load(threshold).run_dirs
    return find_runs(named)


def read_pushed(bundle: Path) -> dict[str, int]:
    """Return the versions of the kernels pushed from this bundle, by id."""
    return read_json(bundle / PUSHED) if (bundle / PUSHED).is_file() else {}


def note_pushed(bundle: Path, kernel: str, version: int) -> None:
    """Save the version of a pushed kernel for `read_pushed`."""
    write_json(bundle / PUSHED, read_pushed(bundle) | {kernel: version})


def phantom_runs(bundle: Path) -> list[str]:
    """List the names of the bundle's runs that were trained on the phantom."""
    configs = sorted(bundle.glob("datasets/weights-*/*/config.json"))
    return [path.parent.name for path in configs if Run(path.parent).notes.phantom]
