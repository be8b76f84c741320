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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.core.errors import KitError
from utils.core.files import read_json, replace_folder, write_atomic, write_json
from utils.core.folders import KIT, KIT_FILE, PROJECT, is_from_kit
from utils.core.parameters import ParameterError
from utils.core.versions import versions
from utils.decision.threshold import Threshold
from utils.kaggle.bundle_checks import check_bundle, parts, run_files, run_problems, threshold_problems
from utils.kaggle.kernels import Kernel, kernel_metadata, kernel_names, name_problems, notebook_of, plan_kernel
from utils.kaggle.metadata import DATASET_FILE, KERNEL_FILE, MARKER, RUNS, describe_dataset, slug_of
from utils.kaggle.notebooks import NOTEBOOKS
from utils.kaggle.parameter_cells import is_parameters
from utils.kaggle.pretrained import Pretrained
from utils.kaggle.wheels import KAGGLE_PYTHON, download_wheels
from utils.runs.code import imports_of, module_files, reached_modules
from utils.runs.found import find_runs
from utils.runs.run import Run

PUSHED = "pushed.json"  # versions of the kernels pushed from this bundle, by id


class BundleError(KitError):
    """A bundle can't be written or sent; the message lists all problems, each with its remedy."""


@dataclass(frozen=True)
class Part:
    """A folder of the bundle: ``kind`` is "dataset" or "kernel", ``id`` is ``owner/slug``."""

    kind: str
    id: str
    folder: Path


@dataclass(frozen=True)
class Options:
    """The content of a bundle besides runs and their threshold."""

    python_version: str = KAGGLE_PYTHON  # for which the wheels are downloaded
    train_kernels: tuple[str, ...] = ()  # ``train`` or ``train-NAME``; added to those of the earlier bundle
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # text values of parameters, by kernel and name
    weights: tuple[Pretrained, ...] = ()  # that trainings on Kaggle may start from


def write_bundle(
    folder: Path, username: str, run_dirs: Sequence[Path], threshold_path: Path | None, options: Options | None = None
) -> dict[str, Path]:
    """Write everything that goes to Kaggle into a folder, complete and checked, or not at all.

    Parameters
    ----------
    folder : Path
        New, empty, or an earlier bundle, which is replaced. Edits of its parameters cells are carried over.
    username : str
        Name of the Kaggle account, as in kaggle.com/USERNAME.
    run_dirs : sequence of Path
        Trained runs to send. Without any, Kaggle's notebooks use the runs that the train notebooks make there.
    threshold_path : Path or None
        threshold.json tuned on these runs.
    options : Options or None
        The rest; None for the defaults.

    Returns
    -------
    dict of str to Path
        Folder by name: ``code``, ``weights-RUN``, ``pretrained-NAME``, ``wheels`` if the image lacks any, and the kernels.

    Raises
    ------
    BundleError
        If there are problems; it lists all of them, and ``folder`` is unchanged.
    PackageError
        If the wheels are unavailable.
    """
    folder, runs = Path(folder), list(dict.fromkeys(Path(run).resolve() for run in run_dirs))
    options = options or Options()
    kernels = check_sources(folder, username, runs, threshold_path, options)
    with replace_folder(folder) as new:
        _write_code(new / "datasets", username)
        _write_weights(new / "datasets", username, runs, threshold_path)
        _write_pretrained(new / "datasets", username, options.weights)
        _write_wheels(new / "datasets", username, options.python_version)
        _write_kernels(new, username, kernels)
        known = {"hashes": _hash_editable(new), "files": _list_files(new)}
        known["parameters"] = {kernel.name: kernel.usual for kernel in kernels}
        write_json(new / MARKER, _provenance() | {"username": username, "python": options.python_version} | known)
        _refuse(check_bundle(new))
        if (folder / PUSHED).is_file():
            shutil.copyfile(folder / PUSHED, new / PUSHED)
    return {path.name: path for path in (*parts(folder, "datasets"), *parts(folder, "kernels"))}


def check_sources(
    folder: Path, username: str, run_dirs: Sequence[Path], threshold_path: Path | None, options: Options
) -> list[Kernel]:
    """Check the arguments of `write_bundle` and return the kernels that it would write; raise BundleError on any problem."""
    problems = [*_target_problems(Path(folder), username), *_source_problems(run_dirs, threshold_path)]
    former = Path(folder) if is_from_kit(Path(folder), MARKER) else None
    names = kernel_names(former, options.train_kernels)
    problems += name_problems(names, options.train_kernels, options.settings)
    kernels = []
    for name in names:
        notebook, settings = _notebook(notebook_of(name).name), options.settings.get(name, {})
        try:
            kernels.append(plan_kernel(name, notebook, settings, former, options.weights))
        except ParameterError as error:
            problems.append(str(error))
    _refuse(problems)
    return kernels


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise BundleError("Nothing was written or sent. Problems:" + "".join(f"\n- {problem}" for problem in problems))


def _target_problems(folder: Path, username: str) -> Iterator[str]:
    if folder.exists() and not is_from_kit(folder, MARKER) and (not folder.is_dir() or any(folder.iterdir())):
        yield f"{folder} is not empty, and is not an earlier bundle (no {MARKER}): name another folder with --out."
    if is_from_kit(folder, MARKER):
        yield from _changes(folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", username):
        yield f"username is {username!r}, but must be as in kaggle.com/USERNAME: letters, digits, hyphens and underscores."


def _changes(bundle: Path) -> Iterator[str]:
    """Yield edits and additions since `write_bundle` wrote a bundle; nothing if an earlier kit kept no lists."""
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
    return {path.relative_to(folder).as_posix(): hashlib.sha256(_edits_of(path)).hexdigest() for path in paths}


def _edits_of(path: Path) -> bytes:
    """Return the content whose edits must not be lost; for a notebook, without parameters and changes by Jupyter."""
    if path.suffix != ".ipynb":
        return path.read_bytes()
    try:
        notebook = read_json(path)
        cells = [[cell["cell_type"], "".join(cell["source"])] for cell in notebook["cells"] if not is_parameters(cell)]
    except (ValueError, TypeError, KeyError, AttributeError):  # no notebook any more
        return path.read_bytes()
    for name in ("metadata", "nbformat", "nbformat_minor"):
        notebook.pop(name, None)
    return json.dumps(notebook | {"cells": cells}, sort_keys=True).encode()


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
        folder = datasets / f"{RUNS}{name}"
        for file in run_files(run):
            (folder / run.name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / file, folder / run.name / file)  # not a hard link: an edit here must not change the run
        if threshold_path:
            shutil.copyfile(threshold_path, folder / "threshold.json")
        describe_dataset(folder, username, f"Mammography weights {name}", "A trained run: weights and out-of-fold predictions")


def _write_pretrained(datasets: Path, username: str, weights: Sequence[Pretrained]) -> None:
    for one in weights:
        folder = datasets / one.folder.name
        shutil.copytree(one.folder, folder)
        write_json(folder / DATASET_FILE, read_json(folder / DATASET_FILE) | {"id": f"{username}/{folder.name}"})


def _write_wheels(datasets: Path, username: str, python_version: str) -> None:
    folder = datasets / "wheels"
    if download_wheels(folder, PROJECT / "requirements.txt", python_version):
        write_json(folder / KIT_FILE, _provenance())
        describe_dataset(folder, username, "Mammography kit wheels", "Python packages that Kaggle's image lacks")


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
    contents |= {f"notebooks/{name}.ipynb": _to_bytes(_notebook(name)) for name in NOTEBOOKS}
    contents[KIT_FILE] = json.dumps(made, indent=2).encode()
    with write_atomic(folder / f"{KIT}-{made['version']}.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    describe_dataset(folder, username, "Mammography kit code", "The notebooks and the package that they use")


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


def _notebook(name: str) -> dict:
    """Read a notebook without outputs, execution counts, and metadata other than tags, kernel and language."""
    notebook = read_json(PROJECT / "notebooks" / f"{name}.ipynb")
    notebook["metadata"] = {
        key: notebook["metadata"][key] for key in ("kernelspec", "language_info") if key in notebook["metadata"]
    }
    for cell in notebook["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return notebook


def _to_bytes(notebook: dict) -> bytes:
    return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()


def _write_kernels(bundle: Path, username: str, kernels: Sequence[Kernel]) -> None:
    datasets = {path.name: read_json(path / DATASET_FILE)["id"] for path in parts(bundle, "datasets")}
    for kernel in kernels:
        folder = bundle / "kernels" / kernel.name
        folder.mkdir(parents=True)
        (folder / kernel.file).write_bytes(_to_bytes(kernel.fill(_notebook(kernel.notebook.name))))
        write_json(folder / KERNEL_FILE, kernel_metadata(kernel, kernels, username, datasets))


def find_parts(bundle: Path) -> list[Part]:
    """List the bundle's datasets, then its kernels; raise BundleError if there are none or metadata can't be read."""
    paths = [path for kind in ("dataset", "kernel") for path in sorted(bundle.glob(f"{kind}s/*/{kind}-metadata.json"))]
    if not paths:
        raise BundleError(f"{bundle} is not a bundle: write it with python -m utils.kaggle bundle, or name it with --bundle.")
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
