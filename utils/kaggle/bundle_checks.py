"""The limits of Kaggle and its client, and checks of a bundle against them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from utils.core.environment import KIT_FILE, KitError, read_json
from utils.decision.tuning import find_threshold
from utils.runs.errors import TrainingError
from utils.runs.run import Run

LIMITS = {  # minimum, maximum; client: PyPI's kaggle 2.2.4; page: kaggle.com/docs/datasets as of 2026
    "dataset title": (6, 50),  # characters: the client's dataset_create_new
    "dataset slug": (6, 50),  # the same
    "dataset subtitle": (20, 80),  # the same
    "dataset files": (1, 50),  # at the top level, folders too: the page
    "dataset bytes": (1, 100 * 10**9),  # the page gives 200 GB per dataset and for all private ones; formerly 107 GB
    "kernel title": (5, 50),  # the client's kernels_push; above 50 the server answers 500 (Kaggle/kaggle-cli, pull request 179)
    "kernel slug": (5, 50),  # the client's validate_kernel_string
    "kernel bytes": (1, 10**6),  # the notebook: 1 MB in Kaggle's editor
}
DATASET_FILE, KERNEL_FILE = "dataset-metadata.json", "kernel-metadata.json"
# The client's name for two T4 (kagglesdk, ApiSaveKernelRequest). For an unknown name Kaggle silently gives a P100.
T4_TWICE = "NvidiaTeslaT4"
RUN_FILES = ("config.json", "folds.csv", "oof.csv", "history.csv")
FOLD_FILES = ("weights.safetensors", "oof.csv")
SECRETS = ("kaggle.json", "access_token", "access_token.txt", ".env")


def check_bundle(folder: Path) -> list[str]:
    """Check a bundle against Kaggle's limits and itself; return all problems with their remedies."""
    folder = Path(folder)
    if not (folder / "datasets" / "code").is_dir() or not (folder / "kernels").is_dir():
        return [f"{folder} is no bundle (it needs datasets/code and kernels): write it again."]
    datasets, kernels = parts(folder, "datasets"), parts(folder, "kernels")
    problems = [problem for part in datasets for problem in _look(_dataset_problems, part)]
    problems += [problem for part in kernels for problem in _look(_kernel_problems, part)]
    problems += _weights_problems([part for part in datasets if part.name.startswith("weights-")])
    total = sum(path.stat().st_size for part in datasets for path in files_of(part))
    problems += _outside("dataset bytes", total, "datasets together")
    links = [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink()]
    problems += [f"{path} is a link, and the file behind it would be sent: remove the link." for path in links]
    secrets = [path.relative_to(folder) for path in folder.rglob("*") if path.name in SECRETS]
    problems += [f"{path} may be a credential, which must not be sent: take it out." for path in secrets]
    return problems if problems else _reference_problems(datasets, kernels)


def slug_of(title: str) -> str:
    """Return the slug that Kaggle makes of a title: a-z, 0-9 and single hyphens."""
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")


def run_problems(run: Path) -> list[str]:
    """List the reasons why a run can't be sent."""
    files = run_files(run)
    missing = [name for name in files if not (run / name).is_file()]
    problems = [f"{name} is missing: copy it back, or train the run again." for name in missing]
    linked = {name for file in files for name in (file, file.partition("/")[0]) if (run / name).is_symlink()}
    problems += [f"{name} is a link: put the file itself in its place, if it may be sent." for name in sorted(linked)]
    if not Run(run).finished_folds():
        problems.append("no fold is finished (fold*/oof.csv): let train.ipynb finish it, or leave the run out.")
    return problems or _config_problems(run)


def _config_problems(run: Path) -> list[str]:
    try:
        is_smoke_test = Run(run).notes.smoke_test
    except TrainingError as error:
        return [str(error)]
    return ["it is a smoke test: train it again without smoke_test, or leave it out."] if is_smoke_test else []


def run_files(run: Path) -> list[str]:
    """List a run's files to send: finished folds only, no checkpoints; a fold's history is optional."""
    folds = [fold_dir.name for fold_dir in Run(run).finished_folds()]
    optional = ["extra.csv", *(f"{fold}/{name}" for fold in folds for name in ("history.csv", "start.json"))]
    optional = [name for name in optional if (run / name).is_file()]
    return [*RUN_FILES, *(f"{fold}/{name}" for fold in folds for name in FOLD_FILES), *optional]


def threshold_problems(runs: Sequence[Path], path: Path) -> list[str]:
    """Return the problem if a threshold.json does not belong to these runs' out-of-fold predictions."""
    try:
        find_threshold(runs, str(path))
    except KitError as error:
        return [str(error)]
    return []


def parts(bundle: Path, kind: str) -> list[Path]:
    """List a bundle's folders of a kind: ``datasets`` or ``kernels``."""
    return sorted(path for path in (bundle / kind).glob("*") if path.is_dir())


def _look(check: Callable[[Path], Iterator[str]], part: Path) -> list[str]:
    """List a part's problems with its name in front; unreadable metadata is a problem too."""
    where = f"{part.parent.name}/{part.name}"
    problems = []
    try:
        for problem in check(part):
            problems.append(f"{where}: {problem}")
    except KeyError as error:
        problems.append(f"{where}: the metadata lack the field {error}: write the bundle again.")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        problems.append(f"{where}: can't be read ({error}): write the bundle again.")
    return problems


def _outside(limit: str, value: int, of: str) -> list[str]:
    least, most = LIMITS[limit]
    return [] if least <= value <= most else [f"{of}: {limit} is {value}, but must be from {least} to {most}."]


def files_of(dataset: Path) -> list[Path]:
    """List the files of a dataset without its metadata."""
    return [path for path in dataset.rglob("*") if path.is_file() and path.name not in (DATASET_FILE, KIT_FILE)]


def _dataset_problems(folder: Path) -> Iterator[str]:
    metadata = read_json(folder / DATASET_FILE)
    yield from _outside("dataset title", len(metadata["title"]), metadata["title"])
    yield from _slug_problems("dataset slug", metadata["id"])
    yield from _outside("dataset subtitle", len(metadata["subtitle"]), metadata["subtitle"])
    yield from _outside("dataset files", len([path for path in folder.iterdir() if path.name != DATASET_FILE]), folder.name)
    if len(metadata["licenses"]) != 1:
        yield "licenses must name exactly one licence."
    if not files_of(folder):
        yield "holds no file: write the bundle again."


def _slug_problems(limit: str, reference: str) -> Iterator[str]:
    username, _, slug = reference.partition("/")
    yield from _outside(limit, len(slug), reference)
    if not username or slug != slug_of(slug):
        yield f"id is {reference!r}, but must be USERNAME/SLUG, the slug of a-z, 0-9 and single hyphens."


def _kernel_problems(folder: Path) -> Iterator[str]:
    metadata = read_json(folder / KERNEL_FILE)
    yield from _outside("kernel title", len(metadata["title"]), metadata["title"])
    yield from _slug_problems("kernel slug", metadata["id"])
    wanted = slug_of(metadata["title"])
    if metadata["id"].partition("/")[2] != wanted:
        yield f"title {metadata['title']!r} makes the slug {wanted!r}, which id {metadata['id']!r} must end with."
    if (metadata["language"], metadata["kernel_type"]) != ("python", "notebook"):
        yield "language and kernel_type must be python and notebook."
    if metadata["machine_shape"] not in ("", T4_TWICE):
        yield f"machine_shape is {metadata['machine_shape']!r}, but must be {T4_TWICE} (two T4), or empty for a CPU."
    if folder.name == "submit" and metadata["enable_internet"] is not False:
        yield "enable_internet must be false: the competition takes no submission from a notebook with internet."
    code = folder / Path(metadata["code_file"]).name
    yield from _outside("kernel bytes", code.stat().st_size, code.name)
    if read_json(code)["metadata"]["kernelspec"]["name"] != "python3":
        yield f"{code.name} must name the kernel python3: copy it again from notebooks/."


def _weights_problems(weights: Sequence[Path]) -> list[str]:
    runs = [run for part in weights for run in sorted(part.iterdir()) if run.is_dir()]
    problems = [f"{run.parent.name}/{run.name}: {problem}" for run in runs for problem in run_problems(run)]
    problems += [f"{path.parent} holds checkpoint.pt: take it out." for run in runs for path in run.rglob("checkpoint.pt")]
    thresholds = [part / "threshold.json" for part in weights if (part / "threshold.json").is_file()]
    return problems or [problem for path in thresholds for problem in threshold_problems(runs, path)]


def _reference_problems(datasets: Sequence[Path], kernels: Sequence[Path]) -> list[str]:
    """List duplicate ids, and sources of this account that are not in the bundle."""
    sent = [read_json(part / DATASET_FILE)["id"] for part in datasets]
    metadata = {part.name: read_json(part / KERNEL_FILE) for part in kernels}
    pushed = [kernel["id"] for kernel in metadata.values()]
    problems = [
        f"id {name} stands {count} times." for ids in (sent, pushed) for name, count in Counter(ids).items() if count > 1
    ]
    own = {name.partition("/")[0] for name in sent}
    for name, kernel in metadata.items():
        sources = {*kernel["dataset_sources"], *kernel["kernel_sources"]} - {*sent, *pushed}
        lost = sorted(source for source in sources if source.partition("/")[0] in own)
        problems += [f"kernels/{name}: source {source} is not in the bundle: correct it, or add its folder." for source in lost]
    return problems
