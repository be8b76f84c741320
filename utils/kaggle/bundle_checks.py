"""Checks of a bundle before it is sent.

The client itself refuses bad titles, subtitles and licences before it uploads anything. These checks find what would fail
on Kaggle only later, or silently.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from utils.core.errors import KitError
from utils.core.files import read_json
from utils.core.folders import KIT_FILE
from utils.decision.tuning import find_threshold
from utils.kaggle.credentials import redact
from utils.kaggle.metadata import DATASET_FILE, KERNEL_FILE, RUNS, T4_TWICE, slug_of
from utils.runs.errors import TrainingError
from utils.runs.run import Run

LARGEST_NOTEBOOK = 10**6  # bytes, in Kaggle's editor
RUN_FILES = ("config.json", "folds.csv", "oof.csv", "history.csv")
FOLD_FILES = ("weights.safetensors", "oof.csv")
SECRETS = ("kaggle.json", "access_token", "access_token.txt", ".env")


def check_bundle(folder: Path) -> list[str]:
    """List all problems of a bundle, with their remedies."""
    folder = Path(folder)
    if not (folder / "datasets" / "code").is_dir() or not (folder / "kernels").is_dir():
        return [f"{folder} is not a bundle (it needs datasets/code and kernels): write it again."]
    datasets, kernels = parts(folder, "datasets"), parts(folder, "kernels")
    problems = [problem for part in datasets for problem in _look(_dataset_problems, part)]
    problems += [problem for part in kernels for problem in _look(_kernel_problems, part)]
    problems += _weights_problems([part for part in datasets if part.name.startswith(RUNS)])
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            problems.append(f"{path.relative_to(folder)} is a link, and the file behind it would be sent: remove the link.")
        if path.name in SECRETS:
            problems.append(f"{path.relative_to(folder)} may be a credential, which must not be sent: remove it.")
    return problems or _reference_problems(datasets, kernels)


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


def _dataset_problems(folder: Path) -> Iterator[str]:
    yield from _id_problems(read_json(folder / DATASET_FILE)["id"])
    if not any(path.is_file() and path.name not in (DATASET_FILE, KIT_FILE) for path in folder.rglob("*")):
        yield "contains no file: write the bundle again."


def _id_problems(name: str) -> Iterator[str]:
    username, _, slug = name.partition("/")
    if not username or not slug or slug != slug_of(slug):
        yield f"id is {name!r}, but must be USERNAME/SLUG, with a slug of a-z, 0-9 and single hyphens."


def _kernel_problems(folder: Path) -> Iterator[str]:
    metadata = read_json(folder / KERNEL_FILE)
    yield from _id_problems(metadata["id"])
    wanted = slug_of(metadata["title"])
    if metadata["id"].partition("/")[2] != wanted:
        yield f"title {metadata['title']!r} makes the slug {wanted!r}, which id {metadata['id']!r} must end with."
    if metadata["machine_shape"] not in ("", T4_TWICE):
        yield f"machine_shape is {metadata['machine_shape']!r}, but must be {T4_TWICE} (two T4), or empty for a CPU."
    if folder.name == "submit" and metadata["enable_internet"] is not False:
        yield "enable_internet must be false: the competition accepts no submission from a notebook with internet."
    code = folder / Path(metadata["code_file"]).name
    if code.stat().st_size > LARGEST_NOTEBOOK:
        yield f"{code.name} has {code.stat().st_size} bytes, more than Kaggle's {LARGEST_NOTEBOOK}: clear its outputs."
    text = code.read_text(encoding="utf-8")
    if redact(text) != text:
        yield f"{code.name} contains one of your Kaggle secrets, which must not be sent: remove it."
    if read_json(code)["metadata"]["kernelspec"]["name"] != "python3":
        yield f"{code.name} must name the kernel python3: copy it again from notebooks/."


def _weights_problems(weights: Sequence[Path]) -> list[str]:
    runs = [run for part in weights for run in sorted(part.iterdir()) if run.is_dir()]
    problems = [f"{run.parent.name}/{run.name}: {problem}" for run in runs for problem in run_problems(run)]
    problems += [f"{path.parent} contains checkpoint.pt: remove it." for run in runs for path in run.rglob("checkpoint.pt")]
    thresholds = [part / "threshold.json" for part in weights if (part / "threshold.json").is_file()]
    return problems or [problem for path in thresholds for problem in threshold_problems(runs, path)]


def _reference_problems(datasets: Sequence[Path], kernels: Sequence[Path]) -> list[str]:
    """List duplicate ids, and sources of this account that are not in the bundle."""
    sent = [read_json(part / DATASET_FILE)["id"] for part in datasets]
    metadata = {part.name: read_json(part / KERNEL_FILE) for part in kernels}
    pushed = [kernel["id"] for kernel in metadata.values()]
    problems = [
        f"id {name} occurs {count} times: write the bundle again."
        for ids in (sent, pushed)
        for name, count in Counter(ids).items()
        if count > 1
    ]
    own = {name.partition("/")[0] for name in sent}
    for name, kernel in metadata.items():
        sources = {*kernel["dataset_sources"], *kernel["kernel_sources"]} - {*sent, *pushed}
        lost = sorted(source for source in sources if source.partition("/")[0] in own)
        problems += [f"kernels/{name}: source {source} is not in the bundle: correct it, or add its folder." for source in lost]
    return problems
