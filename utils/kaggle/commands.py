"""From trained runs to a scored submission, through Kaggle's official client: ``python -m utils.kaggle --help``.

The docstrings of the ``run_…`` functions are the commands' help.
"""

import argparse
import inspect
import re
import shlex
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from utils.core.errors import KitError
from utils.core.folders import COMPETITION, resolve, working_dir
from utils.kaggle import ledger
from utils.kaggle.bundle import (
    Options,
    Part,
    check_sources,
    find_parts,
    note_pushed,
    phantom_runs,
    read_pushed,
    runs_to_send,
    submit_kernel,
    write_bundle,
)
from utils.kaggle.bundle_checks import check_bundle
from utils.kaggle.client import (
    LISTED,
    OUTPUTS,
    KaggleError,
    State,
    check_owner,
    check_ready,
    connect,
    fetch_output,
    fetch_scores,
    poll,
    push_dataset,
    push_kernel,
    submit_version,
    version_notes,
    wait_for_kernel,
)
from utils.kaggle.credentials import RedactedStream, find_username, redact
from utils.kaggle.kernels import describe, notebook_of_slug, parse_settings
from utils.kaggle.metadata import PRETRAINED, RUNS
from utils.kaggle.pretrained import find_pretrained, write_pretrained

SCORE_HOURS = 14
NO_RUNS = "none"


def run_bundle(given: Namespace) -> None:
    """Write push-ready folders: the code, each run's weights, the wheels that Kaggle lacks, and a kernel per notebook.

    Edits of the parameters cell of a kernel's notebook are carried over when the bundle is written again.
    --kernel adds kernels that train; to leave one out, delete its folder first. Quote a value with spaces:
    --set 'train:recipe=strong mixup=0.4'.

    Costs: nothing on Kaggle; disk space for weights and wheels, which pip downloads.
    To undo: delete the folder.
    """
    username = given.username or find_username()
    threshold = given.threshold or working_dir() / "threshold.json"
    runs = [] if given.runs == NO_RUNS else [resolve(run) for run in runs_to_send(given.runs, threshold)]
    if given.runs == NO_RUNS or (not given.threshold and not threshold.is_file()):
        threshold = None
    weights = tuple(find_pretrained(_default_weights()))
    options = Options(train_kernels=tuple(given.kernel), settings=parse_settings(given.set), weights=weights)
    kernels = check_sources(given.out, username, runs, threshold, options)
    names = ", ".join(str(run) for run in runs) or "no run"
    what = f"{given.out} for {username}: {names}; {threshold or 'no threshold.json'}"
    for line in describe(kernels, weights):
        print(line)
    if given.kernel and runs:
        print(f"tune_threshold, report and submit will use only the bundle's runs; to leave these out: --runs {NO_RUNS}")
    if given.dry_run:
        print(f"This would write {what}, and the wheels, which were not checked. Nothing would be sent.")
        return
    print(f"Writing {what}.")
    for name, path in write_bundle(given.out, username, runs, threshold, options).items():
        print(f"{name}: {path}")
    _warn_of_phantoms(given.out)
    push = f"python -m utils.kaggle push{_bundle_option(given.out)}"
    print(f"Next: {push} --dry-run, then without --dry-run" if runs else _without_runs(given.out))


def run_weights(given: Namespace) -> None:
    """Write a dataset of weights that kernels without internet can start from: timm's weights of NETWORK, or those of a file.

    The next bundle contains it, and attaches it to the kernels that train. Those of the same architecture start from it.

    Costs: a download from timm's hub, the disk space of the weights, and the same again in each bundle.
    To undo: delete the folder.
    """
    username = given.username or find_username()
    file = resolve(given.source) if given.architecture else None
    network = given.architecture or given.source
    if not file and Path(given.source).exists():
        raise KaggleError(f"{given.source} is a file: name its network too, such as --architecture convnext_small.")
    if given.dry_run:
        where = f"from {file or 'the hub'} into {_default_weights()}"
        print(f"This would write weights of {network} {where}. Nothing would be sent.")
        return
    written = write_pretrained(_default_weights(), username, network, file)
    print(f"{written.folder} is ready. Next: python -m utils.kaggle bundle, which attaches it to the kernels that train.")
    print(f"Read {written.folder / 'LICENCE.txt'} before you share the dataset.")


def run_push(given: Namespace) -> None:
    """Upload the bundle's datasets, wait until they are ready, and save the kernel that submits, which runs it.

    Datasets are private, and get a new version if they exist. NAMES choose other parts, such as train.

    Costs: space in your private datasets (Kaggle shows the quota), and GPU hours of your week for each kernel.
    To undo: kaggle datasets delete OWNER/SLUG and kaggle kernels delete OWNER/SLUG, or delete them on their pages.
    """
    parts = _chosen(given.bundle, given.names)
    problems = check_bundle(given.bundle)
    if problems:
        raise KaggleError("\n- ".join(["Nothing was sent, because Kaggle would refuse it:", *problems]))
    if given.dry_run:
        for part in parts:
            _show_push(part)
        return
    _warn_of_phantoms(given.bundle)
    api = connect()
    check_owner(api, parts)
    for part in parts:
        if part.kind == "dataset":
            push_dataset(api, part)
        else:
            note_pushed(given.bundle, part.id, push_kernel(api, part))
            print(f"Next: python -m utils.kaggle wait {part.id}{_bundle_option(given.bundle)}")
    if parts[-1].kind == "dataset":
        print(f"Next: push a notebook that uses them: python -m utils.kaggle push NAME{_bundle_option(given.bundle)}")


def run_wait(given: Namespace) -> None:
    """Wait until a kernel's latest version is complete; if it fails, show the end of its log.

    Stop waiting with Ctrl-C; the kernel keeps running.

    Costs: nothing.
    To undo: there is nothing to undo.
    """
    kernel = _kernel(given)
    if given.dry_run:
        _show("kernels", "status", kernel, note="until it is complete; if it fails:")
        _show("kernels", "logs", kernel)
        return
    wait_for_kernel(connect(), kernel)
    print(f"Next: {_next_after(kernel)}{_bundle_option(given.bundle)}")


def run_submit(given: Namespace) -> None:
    """Submit a kernel's version to the competition, where it runs again on the hidden test. Ask for confirmation first.

    The version's submission.csv and provenance are kept in submissions/, and recorded in the ledger.

    Costs: one of the day's five submissions, and GPU hours.
    To undo: a submission can't be undone.
    """
    kernel = _kernel(given)
    version = given.version or read_pushed(given.bundle).get(kernel, 0)
    if not version and not given.dry_run:
        raise KaggleError(f"The version of {kernel} is unknown, because it was not pushed from here: give --version.")
    version = version or "VERSION"  # of a dry run before the first push
    message = redact(given.message or f"{kernel} version {version}")
    if given.dry_run:
        _show("kernels", "status", kernel, note="must be complete")
        _show("kernels", "output", kernel, "--file-pattern", OUTPUTS, note="for the ledger")
        sent = ("-f", "submission.csv", "-k", kernel, "-v", str(version), "-m", message)
        _show("competitions", "submit", COMPETITION, *sent)
        return
    api = connect()
    check_ready(api, kernel, version, is_named=bool(given.version))
    with tempfile.TemporaryDirectory() as folder:
        path = ledger.keep(fetch_output(api, kernel, version, Path(folder)))
    if earlier := ledger.find_earlier(path, kernel, str(version)):
        print(f"Warning: {earlier}")
    if not ledger.read_provenance(path):
        print(f"Warning: {path.name} has no provenance: the ledger will lack its runs and nested pF1.")
    print(f"This submits {kernel} version {version} to {COMPETITION}.")
    print("It costs one of the day's five submissions and can't be undone.")
    if not given.yes:
        _confirm()
    row = ledger.record(path, message, submit_version(api, kernel, version, message), kernel, str(version))
    print(f"Recorded as {row.ref} in {ledger.ledger_path()}. Next: python -m utils.kaggle scores --watch")


def run_scores(given: Namespace) -> None:
    """Fetch the scores of your submissions, and write them into the ledger and into the JSON next to each CSV.

    Costs: nothing.
    To undo: run it again: it writes what Kaggle reports.
    """
    if given.dry_run:
        _show("competitions", "submissions", COMPETITION, "--page-size", str(LISTED))
        return
    api = connect()

    def ask() -> State:
        scores = fetch_scores(api)
        rows = ledger.update_scores(scores)
        foreign = len(set(scores) - set(rows.ref))
        waiting = int((rows.status == "pending").sum())
        text = f"{len(scores)} on Kaggle, {foreign} of them not sent from here, {waiting} pending"
        return State(text, is_done=waiting == 0 or not given.watch)

    poll(ask, "submissions", SCORE_HOURS)
    run_ledger(given)


def run_ledger(_given: Namespace) -> None:
    """Show your submissions, best private score first, with nested pF1 next to the scores. Sends nothing.

    Costs: nothing.
    To undo: there is nothing to undo.
    """
    rows = ledger.read_ledger()
    print(ledger.ranked(rows).to_string(index=False) if len(rows) else f"No submission yet in {ledger.ledger_path()}.")


# Their parts
# -----------


def _default_bundle() -> Path:
    return resolve(working_dir() / "kaggle")


def _default_weights() -> Path:
    return resolve(working_dir() / "weights")


def _bundle_option(bundle: Path) -> str:
    """Return the option that the next command needs for a bundle; empty for the default folder."""
    return "" if bundle == _default_bundle() else f" --bundle {shlex.quote(str(bundle))}"


def _warn_of_phantoms(bundle: Path) -> None:
    names = phantom_runs(bundle)
    if names:
        print(f"Warning: trained on the phantom, so submit will refuse real images: {', '.join(names)}.")
        print("Push them only to try out the steps: that costs GPU minutes and can't score.")


def _without_runs(bundle: Path) -> str:
    wanted = ("code", "wheels", f"{PRETRAINED}*", "preprocess")
    first = " ".join(path.name for pattern in wanted for path in sorted(bundle.glob(f"*/{pattern}")))
    return (
        'To send your runs: make kaggle BUNDLE="--runs outputs/runs/NAME --threshold outputs/threshold.json".\n'
        "No run in the bundle: it is for training on Kaggle."
        f" Next: python -m utils.kaggle push {first}{_bundle_option(bundle)}"
    )


def _chosen(bundle: Path, names: Sequence[str]) -> list[Part]:
    """Return the named parts; without names, the kernel that submits and all datasets but those for training."""
    parts = find_parts(bundle)
    known = {part.folder.name: part for part in parts}
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise KaggleError(f"{bundle} has no {', '.join(unknown)}; choose from {', '.join(known)}.")
    if names:
        return [part for name, part in known.items() if name in names]
    if not any(name.startswith(RUNS) for name in known):
        raise KaggleError(f"Nothing was sent. {_without_runs(bundle)}")
    datasets = [part for part in parts if part.kind == "dataset" and not part.folder.name.startswith(PRETRAINED)]
    return [*datasets, submit_kernel(bundle)]


def _show_push(part: Part) -> None:
    folder = str(part.folder)
    if part.kind == "kernel":
        _show("kernels", "push", "-p", folder)
    else:
        _show("datasets", "create", "-p", folder, "-r", "zip", note="if it is new, else:")
        _show("datasets", "version", "-p", folder, "-r", "zip", "-m", version_notes())
        _show("datasets", "status", part.id, note="until it is ready")


def _show(*command: str, note: str = "") -> None:
    """Print a command of the official client."""
    print(shlex.join(["kaggle", *command]) + (f"  # {note}" if note else ""))


def _kernel(given: Namespace) -> str:
    kernel = given.kernel or submit_kernel(given.bundle).id
    if not re.fullmatch(r"[\w-]+/[\w-]+", kernel):
        raise KaggleError(f"kernel is {kernel!r}, but must be owner/slug.")
    return kernel


def _next_after(kernel: str) -> str:
    notebook = notebook_of_slug(kernel.partition("/")[2])
    if notebook and notebook.name == "submit":
        return "python -m utils.kaggle submit"
    return f"push the next notebook: python -m utils.kaggle push {notebook.next if notebook else 'NAME'}"


def _confirm() -> None:
    try:
        answer = input("Submit it? [yes/no] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise KaggleError("Nothing was submitted: answer yes, or pass --yes.")


# Command line
# ------------


def make_parser() -> ArgumentParser:
    """Make the parser; each command's help says what it does, what it costs and how to undo it."""
    parser = ArgumentParser(prog="python -m utils.kaggle", description="From trained runs to a scored submission.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    bundle = _add_command(commands, "bundle", run_bundle)
    bundle.add_argument("--runs", default="", help="run folders, comma-separated, or none; default: those of threshold.json")
    bundle.add_argument("--threshold", type=resolve, help="default: threshold.json in the working folder")
    bundle.add_argument("--out", type=resolve, default=_default_bundle(), help="folder to write; default: %(default)s")
    bundle.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KERNEL:NAME=VALUE",
        help="parameters of kernels, such as train:epochs=12; they override carried-over values",
    )
    bundle.add_argument(
        "--kernel", nargs="+", action="extend", default=[], metavar="train-NAME", help="more kernels that train, one per run"
    )

    weights = _add_command(commands, "weights", run_weights)
    weights.add_argument("source", metavar="NETWORK|FILE", help="a timm network, or a file with --architecture")
    weights.add_argument("--architecture", default="", help="timm network of the file's weights")
    for command in (bundle, weights):
        command.add_argument("--username", default="", help="yours on Kaggle; default: that of the credentials")

    push = _add_command(commands, "push", run_push)
    push.add_argument(
        "names", nargs="*", help="folders of the bundle, such as code or train; default: all datasets, and submit"
    )

    wait = _add_command(commands, "wait", run_wait)
    submit = _add_command(commands, "submit", run_submit)
    for command in (wait, submit):
        command.add_argument("kernel", nargs="?", help="owner/slug; default: the bundle's kernel that submits")
    for command in (push, wait, submit):
        command.add_argument("--bundle", type=resolve, default=_default_bundle(), help="its folder; default: %(default)s")
    submit.add_argument("--version", type=int, help="of the kernel; default: the last one pushed, if it is the latest")
    submit.add_argument("--message", help="shown on Kaggle; default: the kernel and its version")
    submit.add_argument("--yes", action="store_true", help="do not ask for confirmation")

    scores = _add_command(commands, "scores", run_scores)
    scores.add_argument("--watch", action="store_true", help="keep asking until nothing is pending")
    _add_command(commands, "ledger", run_ledger)
    return parser


def _add_command(commands: argparse._SubParsersAction, name: str, run: Callable[[Namespace], None]) -> ArgumentParser:
    text = inspect.getdoc(run)
    command = commands.add_parser(
        name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.set_defaults(run=run)
    command.add_argument("--dry-run", action="store_true", help="show what would be done, as the official client's commands")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, redact secrets in its output, and return 0, 1 on a KitError or 130 if the user stops it."""
    given = make_parser().parse_args(arguments)
    with redirect_stdout(RedactedStream(sys.stdout)), redirect_stderr(RedactedStream(sys.stderr)):
        try:
            given.run(given)
        except KitError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Stopped. What was already sent stays on Kaggle; you can run the command again.", file=sys.stderr)
            return 130
    return 0
