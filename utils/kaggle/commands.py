"""From trained runs to a scored submission, through Kaggle's official client: ``python -m utils.kaggle --help``."""

import argparse
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from utils.core.environment import COMPETITION, KitError, resolve, working_dir
from utils.kaggle import ledger
from utils.kaggle.bundle import (
    NOTEBOOKS_BY_SLUG,
    Part,
    check_bundle,
    check_sources,
    find_parts,
    note_pushed,
    phantom_runs,
    read_pushed,
    runs_to_send,
    submit_kernel,
    write_bundle,
)
from utils.kaggle.client import (
    ACCEPT_RULES,
    LISTED,
    OUTPUTS,
    KaggleError,
    State,
    UnansweredError,
    calling,
    check_csv,
    check_owner,
    check_ready,
    connect,
    fetch_output,
    fetch_scores,
    poll,
    push_dataset,
    push_kernel,
    version_notes,
    wait_for_kernel,
)
from utils.kaggle.credentials import RedactedStream, find_username, redact

SCORE_HOURS = 14
HELP_WIDTH = 100


def run_bundle(given: argparse.Namespace) -> None:
    """Run ``bundle``: write the folders that the other commands push."""
    folder, username = resolve(given.out), given.username or find_username()
    threshold = resolve(given.threshold) if given.threshold else working_dir() / "threshold.json"
    runs = [resolve(run) for run in runs_to_send(given.runs, threshold)]
    if not given.threshold and not threshold.is_file():
        threshold = None
    what = f"{folder} for {username}: {', '.join(str(run) for run in runs) or 'no run'}; {threshold or 'no threshold.json'}"
    check_sources(folder, username, runs, threshold)
    if given.dry_run:
        print(f"This would write {what}, and the wheels. They were not looked for; the rest was checked. It sends nothing.")
        return
    print(f"Writing {what}.")
    written = write_bundle(folder, username, runs, threshold)
    print("\n".join(f"{name}: {path}" for name, path in written.items()))
    _warn_of_phantoms(folder)
    push = f"python -m utils.kaggle push{_option('--bundle', folder)}"
    print(f"Next: {push} --dry-run, then without --dry-run" if runs else _without_runs(folder))


def _option(name: str, folder: Path) -> str:
    """Return the option that the next command needs for a folder; empty for the default folder."""
    return "" if folder == resolve(OPTIONS[name]["default"]) else f" {name} {shlex.quote(str(folder))}"


def _warn_of_phantoms(bundle: Path) -> None:
    names = phantom_runs(bundle)
    if names:
        print(f"Trained on the phantom, so that submit will refuse real images: {', '.join(names)}.")
        print("Push them only to try the way: it costs GPU minutes and can't score.")


def _without_runs(bundle: Path) -> str:
    first = " ".join(name for name in ("code", "wheels", "preprocess") if list(bundle.glob(f"*/{name}")))
    return (
        'Own runs are sent with make kaggle BUNDLE="--runs outputs/runs/NAME --threshold outputs/threshold.json".\n'
        "No run in the bundle: it is for training on Kaggle."
        f" Next: python -m utils.kaggle push {first}{_option('--bundle', bundle)}"
    )


def run_push(given: argparse.Namespace) -> None:
    """Run ``push``: datasets first, since kernels need them."""
    bundle = resolve(given.bundle)
    parts = _chosen(bundle, given.names)
    problems = check_bundle(bundle)
    if problems:
        raise KaggleError("\n- ".join(["Nothing was sent, since Kaggle would refuse it:", *problems]))
    if given.dry_run:
        for part in parts:
            _show_push(part)
        return
    _warn_of_phantoms(bundle)
    api = connect()
    check_owner(api, parts)
    for part in parts:
        if part.kind == "dataset":
            push_dataset(api, part)
        else:
            note_pushed(bundle, part.id, push_kernel(api, part))
            print(f"Next: python -m utils.kaggle wait {part.id}{_option('--bundle', bundle)}")
    if parts[-1].kind == "dataset":
        print(f"Next: push a notebook that takes them: python -m utils.kaggle push NAME{_option('--bundle', bundle)}")


def _chosen(bundle: Path, names: Sequence[str]) -> list[Part]:
    parts = find_parts(bundle)
    if not names and not any(part.folder.name.startswith("weights-") for part in parts):
        raise KaggleError(f"Nothing was sent. {_without_runs(bundle)}")
    if not names:
        return [part for part in parts if part.kind == "dataset"] + [submit_kernel(bundle)]
    known = {part.folder.name: part for part in parts}
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise KaggleError(f"{bundle} has no {', '.join(unknown)}; choose from {', '.join(known)}.")
    return [part for name, part in known.items() if name in names]


def _show_push(part: Part) -> None:
    folder = str(part.folder)
    if part.kind == "kernel":
        _show("kernels", "push", "-p", folder)
    else:
        _show("datasets", "create", "-p", folder, "-r", "zip", note="if it is new, else:")
        _show("datasets", "version", "-p", folder, "-r", "zip", "-m", version_notes())
        _show("datasets", "status", part.id, note="until it is ready")


def _show(*command: str, note: str = "") -> None:
    print(shlex.join(["kaggle", *command]) + (f"  # {note}" if note else ""))


def _kernel(given: argparse.Namespace) -> str:
    kernel = given.kernel or submit_kernel(resolve(given.bundle)).id
    if not re.fullmatch(r"[\w-]+/[\w-]+", kernel):
        raise KaggleError(f"kernel is {kernel!r}, but must be owner/slug.")
    return kernel


def run_wait(given: argparse.Namespace) -> None:
    """Run ``wait``: wait until a kernel is complete."""
    kernel = _kernel(given)
    if given.dry_run:
        _show("kernels", "status", kernel, note="until it is complete; where it fails:")
        _show("kernels", "logs", kernel)
    else:
        wait_for_kernel(connect(), kernel)
        print(f"Next: {_next_after(kernel)}{_option('--bundle', resolve(given.bundle))}")


def _next_after(kernel: str) -> str:
    notebook = NOTEBOOKS_BY_SLUG.get(kernel.partition("/")[2])
    if notebook and notebook.name == "submit":
        return "python -m utils.kaggle submit"
    return f"push the next notebook: python -m utils.kaggle push {notebook.next if notebook else 'NAME'}"


def run_submit(given: argparse.Namespace) -> None:
    """Run ``submit``: submit a kernel's output or a file, and record it in the ledger."""
    kernel, version = ("", 0) if given.file else _kernel_version(given)
    message = redact(given.message or (f"{kernel} version {version}" if kernel else Path(given.file).name))
    if given.dry_run:
        _show_submit(given, kernel, version, message)
        return
    if given.file:
        check_csv(resolve(given.file), f"--file {resolve(given.file)} must name a submission")
    api = connect()
    if kernel:
        check_ready(api, kernel, version, bool(given.version))
    path, known = _csv_to_send(api, given, kernel, version), (kernel, str(version or ""))
    _confirm(given, path, f"{kernel} version {version}" if kernel else str(path), ledger.find_earlier(path, *known))
    row = ledger.record(path, message, _send(api, path, message, kernel, version), *known)
    print(f"Recorded as {row.ref} in {ledger.ledger_path()}. Next: python -m utils.kaggle scores --watch")


def _kernel_version(given: argparse.Namespace) -> tuple[str, int]:
    kernel = _kernel(given)
    version = given.version or read_pushed(resolve(given.bundle)).get(kernel, 0)
    if not version:
        raise KaggleError(f"The version of {kernel} is not known, since it was not pushed from here: name it with --version.")
    return kernel, version


def _csv_to_send(api: Any, given: argparse.Namespace, kernel: str, version: int) -> Path:
    if not kernel:
        return ledger.keep(ledger.find_named(resolve(given.file)))
    with tempfile.TemporaryDirectory() as folder:
        return ledger.keep(fetch_output(api, kernel, version, Path(folder)))


def _show_submit(given: argparse.Namespace, kernel: str, version: int, message: str) -> None:
    if kernel:
        _show("kernels", "status", kernel, note="must be complete")
        _show("kernels", "output", kernel, "--file-pattern", OUTPUTS, note="for the ledger")
        sent = ("-f", "submission.csv", "-k", kernel, "-v", str(version))
    else:
        sent = ("-f", given.file)
    _show("competitions", "submit", COMPETITION, *sent, "-m", message)


def _confirm(given: argparse.Namespace, path: Path, what: str, earlier: str) -> None:
    if earlier:
        print(f"Warning: {earlier}")
    if not ledger.read_provenance(path):
        print(f"Warning: no provenance lies beside {path.name}: the ledger will not know its runs and its nested pF1.")
    print(f"This submits {what} to {COMPETITION}. It costs one of the day's five submissions, and can't be taken back.")
    if given.yes:
        return
    try:
        answer = input("Submit it? [yes/no] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise KaggleError("Nothing was submitted: answer yes, or pass --yes.")


def _send(api: Any, path: Path, message: str, kernel: str, version: int) -> str:
    with calling("submitting", ACCEPT_RULES):
        if kernel:
            result = api.competition_submit_code("submission.csv", message, COMPETITION, kernel, version)
        else:
            result = api.competition_submit(str(path), message, COMPETITION)
    if result.message == api.COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE:
        raise UnansweredError(f"{path.name} could not be uploaded, and was not submitted: check the network, and try again.")
    print(f"{redact(result.message)} (ref {result.ref})")
    return str(result.ref or "")


def run_scores(given: argparse.Namespace) -> None:
    """Run ``scores``: write Kaggle's scores into the ledger and into each CSV's provenance."""
    if given.dry_run:
        _show("competitions", "submissions", COMPETITION, "--page-size", str(LISTED))
        return
    api = connect()

    def ask() -> State:
        scores = fetch_scores(api)
        rows = ledger.update_scores(scores)
        waiting = int((rows.status == "pending").sum())
        foreign = len(set(scores) - set(rows.ref))
        text = f"{len(scores)} on Kaggle, {foreign} of them not sent from here, {waiting} pending"
        return State(text, is_done=waiting == 0 or not given.watch)

    poll(ask, "submissions", SCORE_HOURS)
    run_ledger(given)


def run_ledger(given: argparse.Namespace) -> None:
    """Run ``ledger``: print the table of submissions."""
    rows = ledger.read_ledger()
    print(ledger.ranked(rows).to_string(index=False) if len(rows) else f"No submission yet in {ledger.ledger_path()}.")


# For each command: its function, what it does, what it costs, how to undo it, and its options.
COMMANDS = {
    "bundle": (
        run_bundle,
        "Write push-ready folders: the code, each run's weights, the wheels that Kaggle lacks, and a kernel per notebook.",
        "nothing on Kaggle; disk for the weights and wheels, and downloads of the wheels from pip's index.",
        "delete the folder.",
        ["--runs", "--threshold", "--out", "--username"],
    ),
    "push": (
        run_push,
        "Upload the bundle's datasets as private ones (a new version where they are there), wait until they are ready, and save"
        " the kernel that submits. Saving a kernel runs it. NAMES choose other parts, as train.",
        "room in your private datasets (Kaggle shows the quota), and GPU hours of your week for each kernel pushed.",
        "kaggle datasets delete OWNER/SLUG and kaggle kernels delete OWNER/SLUG, or delete them on their pages.",
        ["names", "--bundle"],
    ),
    "wait": (
        run_wait,
        "Wait until a kernel's latest version is complete, and show the end of its log where it fails. Stop it with Ctrl-C;"
        " the kernel runs on.",
        "nothing.",
        "there is nothing to undo.",
        ["kernel", "--bundle"],
    ),
    "submit": (
        run_submit,
        "Fetch the kernel's submission.csv and its provenance, submit that version to the competition, where it runs again on"
        " the hidden test, and write it into the ledger. Asks first.",
        "one of the day's five submissions, and GPU hours.",
        "a submission can't be taken back.",
        ["kernel", "--version", "--file", "--message", "--yes", "--bundle"],
    ),
    "scores": (
        run_scores,
        "Fetch the scores of what was submitted, and write them into the ledger and into the JSON beside each CSV.",
        "nothing.",
        "run it again: it writes what Kaggle says.",
        ["--watch"],
    ),
    "ledger": (
        run_ledger,
        "Show what was submitted, best private score first, with nested pF1 beside the scores. Asks Kaggle nothing.",
        "nothing.",
        "there is nothing to undo.",
        [],
    ),
}
OPTIONS = {
    "--runs": {"default": "", "help": "run folders, with commas between; default: those of threshold.json"},
    "--threshold": {"default": "", "help": "default: threshold.json under the working folder"},
    "--out": {"default": working_dir() / "kaggle", "help": "folder to write; default: %(default)s"},
    "--username": {"default": "", "help": "yours on Kaggle; default: that of the credentials"},
    "names": {"nargs": "*", "help": "folders of the bundle, as code or train; default: all datasets, and submit"},
    "--bundle": {"default": working_dir() / "kaggle", "help": "folder of the bundle; default: %(default)s"},
    "kernel": {"nargs": "?", "help": "owner/slug; default: the bundle's that submits"},
    "--version": {"type": int, "help": "of the kernel; default: that which push saved last, if it is the latest"},
    "--file": {"help": "submit this CSV; RSNA's competition takes kernels only"},
    "--message": {"help": "shown on Kaggle; default: the kernel and its version, or the file's name"},
    "--yes": {"action": "store_true", "help": "do not ask"},
    "--watch": {"action": "store_true", "help": "ask until nothing is pending"},
    "--dry-run": {"action": "store_true", "help": "print the official client's commands, and send nothing"},
}

DRY_RUN = {
    "bundle": {"help": "check what would be written, except for wheels, say it, and write nothing"},
    "ledger": {"help": "the same: this command asks Kaggle nothing, and writes nothing"},
}


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; each command's help says what it does, what it costs and how to undo it."""
    parser = argparse.ArgumentParser(prog="python -m utils.kaggle", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, does, costs, undo, options) in COMMANDS.items():
        text = "\n".join(textwrap.fill(line, HELP_WIDTH) for line in (does, f"Costs: {costs}", f"To undo: {undo}"))
        command = commands.add_parser(name, help=does, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        for option in (*options, "--dry-run"):
            command.add_argument(option, **OPTIONS[option] | (DRY_RUN.get(name, {}) if option == "--dry-run" else {}))
        command.set_defaults(run=run)
    return parser


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
            print("Stopped. What was already sent stays sent; the command can be run again.", file=sys.stderr)
            return 130
    return 0
