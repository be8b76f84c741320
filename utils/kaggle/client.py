"""Calls to Kaggle's official client. Its errors become messages with a remedy, and its secrets are redacted."""

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.core.errors import KitError
from utils.core.folders import COMPETITION
from utils.core.versions import versions
from utils.kaggle import ledger
from utils.kaggle.bundle import Part
from utils.kaggle.credentials import SETTINGS_PAGE, check_files, describe_lack, redact

PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}"
ACCEPT_RULES = f"accept the competition's rules with this account, at {PAGE}/rules"
NOT_YOURS = (
    'the bundle\'s username must be that of the credentials (make kaggle BUNDLE="--username YOU"), and the account verified'
    " by phone"
)
NO_KERNEL = "check the kernel's name, and that it is yours"
OUTPUTS = r"^(submission\.csv|submissions/[\w.+-]+\.(csv|json))\Z"
HEADER = "prediction_id,cancer"
FIRST_DELAY, LONGEST_DELAY = 5.0, 120.0  # seconds between requests; the delay grows by half each time
PATIENCE = 5  # unanswered requests in a row that a wait tolerates
DATASET_HOURS, KERNEL_HOURS = 1, 14  # Kaggle stops a notebook after 12 h, and it may queue before
LOG_LINES = 30
LISTED = 100  # entries per request: the client returns one page only


class KaggleError(KitError):
    """Kaggle refused a request or could not fulfil it; the message names the remedy."""


class UnansweredError(KaggleError):
    """Kaggle did not answer, or asked to try again later, which `poll` does."""


def connect() -> Any:
    """Log in and return the ``KaggleApi``; raise KitError if the client or valid, safely kept credentials are missing.

    Importing ``kaggle`` logs in, prints advice and creates its settings folder, so the import is here alone, and late.
    """
    check_files()
    with calling("logging in", NOT_YOURS):
        api = _log_in()
    _fail_with_uploads(api)
    return api


def _log_in() -> Any:
    with redirect_stdout(io.StringIO()):  # the client's advice on credentials; ours replaces it
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError as error:
            raise KaggleError(f"The official client can't be imported ({error}): pip install 'kaggle>=2.2.4'.") from None
        from kagglesdk import get_access_token_from_env

        api, (token, source) = KaggleApi(), get_access_token_from_env()
        try:
            api.authenticate()
        except SystemExit:  # it found no credentials that Kaggle accepts
            raise KaggleError(_not_taken(source) if token else describe_lack()) from None
    how = str(api.config_values.get("auth_method", ""))
    if token and how != "ACCESS_TOKEN":  # it logged in another way, but still sends the token
        raise KaggleError(_not_taken(source))
    print(f"Kaggle's client is logged in as {api.config_values.get('username')} ({how or 'unknown method'}).")
    return api


def _not_taken(source: str) -> str:
    return f"Kaggle does not accept the token of {source}: make a new one at {SETTINGS_PAGE}."


def _fail_with_uploads(api: Any) -> None:
    """Make a failed upload raise: some versions of the client create the dataset without the file."""
    upload = api._upload_blob

    def upload_or_raise(path, quiet, kind, context, *others, **named):
        token = upload(path, quiet, kind, context, *others, **named)
        if token is None:
            Path(context.get_upload_info_file_path(path)).unlink(missing_ok=True)  # else the client resumes an expired upload
            name = Path(path).name
            raise UnansweredError(f"{name} could not be uploaded: check the network, and push again; finished files are kept.")
        return token

    api._upload_blob = upload_or_raise


@contextmanager
def calling(what: str, forbidden: str) -> Iterator[None]:
    """Turn any error of the client into a `KaggleError` without secrets; ``forbidden`` is the remedy for status 403."""
    try:
        yield
    except KitError:
        raise
    except (Exception, SystemExit) as error:
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        kind, remedy = _remedy(error, forbidden)
        if remedy == forbidden:
            said = said.partition(". ")[0]  # the client adds long guesses at the reason
        raise kind(redact(f"{what}: {said}\nTo do: {remedy}.")) from None


def _remedy(error: BaseException, forbidden: str) -> tuple[type[KaggleError], str]:
    from requests import ConnectionError, Timeout

    # The client turns some refusals into a ValueError; the response is then on the previous error.
    responses = (getattr(cause, "response", None) for cause in (error, error.__context__))
    status = next((response.status_code for response in responses if response is not None), 0)
    known = {
        401: f"Kaggle does not accept the credentials: check username and key, or make a new token at {SETTINGS_PAGE}",
        403: forbidden,
        404: "Kaggle can't find it: check the name, and whether it was pushed",
    }
    if status == 429:
        return (
            UnansweredError,
            "too many requests: try again in some minutes, or, if today's five submissions are used up, from 00:00 UTC on",
        )
    if status >= 500 or isinstance(error, (ConnectionError, Timeout)):
        return UnansweredError, "Kaggle does not answer: check the network and https://www.kaggle.com, and try again"
    return KaggleError, known.get(status, "correct what Kaggle or its client reports above, and try again")


@dataclass(frozen=True)
class State:
    """The state of something that takes Kaggle a while."""

    text: str
    is_done: bool
    has_failed: bool = False
    reason: str = ""  # of the failure


ABSENT = State("not there yet", is_done=False)


def poll(ask: Callable[[], State], what: str, hours: float) -> State:
    """Ask at growing intervals until a state is done, print each change, and return the final state.

    Raise KaggleError after ``hours``, or when more than `PATIENCE` requests in a row get no answer.
    """
    deadline = time.monotonic() + hours * 3600
    delay = FIRST_DELAY
    shown = ""
    unanswered = 0
    while True:
        try:
            state = ask()
            unanswered = 0
        except UnansweredError:
            state = State("no answer", is_done=False)
            unanswered += 1
            if unanswered > PATIENCE:
                raise
        if state.text != shown:
            shown = state.text
            print(f"{time.strftime('%H:%M:%S')} {what}: {shown}", flush=True)
        if state.is_done:
            return state
        if time.monotonic() + delay > deadline:
            raise KaggleError(f"{what} is still {shown!r} after {hours} h: look at Kaggle's website, or run this again.")
        time.sleep(delay)
        delay = min(delay * 1.5, LONGEST_DELAY)


def check_owner(api: Any, parts: Sequence[Part]) -> None:
    """Raise KaggleError, before anything is uploaded, if a part belongs to an account other than the one logged in."""
    username = api.config_values.get("username") or ""
    others = sorted({part.id.partition("/")[0] for part in parts if part.id.partition("/")[0].lower() != username.lower()})
    if username and others:
        raise KaggleError(
            f"The bundle is {', '.join(others)}'s, but the credentials are {username}'s: nothing was sent."
            f' Write the bundle again: make kaggle BUNDLE="--username {username}"'
        )


def push_dataset(api: Any, part: Part) -> None:
    """Create a private dataset, or its next version if it exists, and wait until kernels can use it."""
    before = _dataset_state(api, part.id)
    size = sum(path.stat().st_size for path in part.folder.rglob("*") if path.is_file())
    print(f"Uploading dataset {part.id} ({size / 1e6:.1f} MB).", flush=True)
    with calling(f"pushing dataset {part.id}", NOT_YOURS):
        if before == ABSENT:
            result = api.dataset_create_new(str(part.folder), quiet=True, dir_mode="zip")
        else:
            result = api.dataset_create_version(str(part.folder), version_notes(), quiet=True, dir_mode="zip")
    if (result.status or "").lower() != "ok":
        raise KaggleError(f"Kaggle refuses dataset {part.id}: {redact(str(result.error))}")

    def ask() -> State:
        now = _dataset_state(api, part.id)
        return replace(now, is_done=now.is_done and now != before)  # the old version stays ready while Kaggle unpacks the new

    state = poll(ask, f"dataset {part.id}", DATASET_HOURS)
    if state.has_failed:
        raise KaggleError(
            f"Kaggle could not unpack dataset {part.id} ({state.text}): push it again, or look at its page on Kaggle."
        )


def _dataset_state(api: Any, name: str) -> State:
    """Return status and version, as in "ready, version 2", or `ABSENT` (status 403 or 404)."""
    from requests import HTTPError

    with calling(f"asking for dataset {name}", NOT_YOURS):
        try:
            answer = json.loads(api.dataset_status(name, format="json"))
        except HTTPError as error:
            if error.response is not None and error.response.status_code in (403, 404):
                return ABSENT
            raise
    status = answer["status"]
    failed = status in ("failed", "deleted")
    return State(f"{status}, version {answer['current_version_number']}", status == "ready" or failed, failed)


def version_notes() -> str:
    """Return the notes of a dataset's version: the kit's commit."""
    return f"kit {versions()['commit']}"


def push_kernel(api: Any, part: Part) -> int:
    """Save a kernel, which starts it, and return its version; raise KaggleError if it is refused or loses a source."""
    with calling(f"pushing kernel {part.id}", NOT_YOURS):
        result = api.kernels_push(str(part.folder))
    if result.error:
        raise KaggleError(f"Kaggle refuses kernel {part.id}: {redact(result.error)}")
    lost = {
        "push it": [*result.invalid_dataset_sources, *result.invalid_model_sources],
        "push it, and wait until it is complete": result.invalid_kernel_sources,
        ACCEPT_RULES: result.invalid_competition_sources,
    }
    told = [f"{source}: {remedy}." for remedy, sources in lost.items() for source in sources or ()]
    if told:
        raise KaggleError(
            f"Kernel {part.id} was saved without its source, and will fail. To do, before it is pushed again:\n- "
            + "\n- ".join(told)
        )
    print(f"Kernel {part.id} version {result.version_number} is starting: {result.url}")
    return result.version_number


def wait_for_kernel(api: Any, kernel: str) -> None:
    """Wait until a kernel's latest version is complete; if it fails, print the end of its log and raise KaggleError."""
    state = poll(lambda: _kernel_state(api, kernel), f"kernel {kernel}", KERNEL_HOURS)
    if state.has_failed:
        print("\n".join(_log_lines(api, kernel)[-LOG_LINES:]))
        raise KaggleError(f"Kernel {kernel} ended as {state.text}. {state.reason}\nIts log is above.")


def _kernel_state(api: Any, kernel: str) -> State:
    """Return the state of a kernel's latest version."""
    with calling(f"asking for kernel {kernel}", NO_KERNEL):
        answer = api.kernels_status(kernel)
    status = answer.status.name.lower()
    failed = status in ("error", "cancel_acknowledged")
    return State(status, status == "complete" or failed, failed, redact(answer.failure_message or ""))


def check_ready(api: Any, kernel: str, version: int, is_named: bool) -> None:
    """Raise KaggleError unless the kernel is complete and ``version`` is its latest.

    If the user named the version (``is_named``), an older one only causes a warning.
    """
    state = _kernel_state(api, kernel)
    if not state.is_done:
        raise KaggleError(f"{kernel} is {state.text}: nothing was submitted. To do: python -m utils.kaggle wait {kernel}")
    if state.has_failed:
        raise KaggleError(
            f"{kernel} ended as {state.text}: nothing was submitted. {state.reason}\n"
            f"To do: see kaggle kernels logs {kernel}, and push it again."
        )
    latest = _latest_version(api, kernel)
    if latest in (0, version):  # 0: Kaggle gives no version
        return
    told = f"The latest version of {kernel} is {latest}, not {version}"
    if not is_named:
        raise KaggleError(f"{told}, which was pushed from here: nothing was submitted. Name the one to submit with --version.")
    print(f"Warning: {told}: the file and provenance in the ledger will be those of version {latest}.")


def _latest_version(api: Any, kernel: str) -> int:
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

    request = ApiGetKernelRequest()
    request.user_name, request.kernel_slug = kernel.split("/")
    with calling(f"asking for kernel {kernel}", NO_KERNEL), api.build_kaggle_client() as client:
        return client.kernels.kernels_api_client.get_kernel(request).metadata.current_version_number


def _log_lines(api: Any, kernel: str) -> list[str]:
    with calling(f"fetching the log of {kernel}", NO_KERNEL):
        log = api.kernels_logs(kernel)
    with suppress(ValueError, TypeError, KeyError):  # Kaggle's format: a JSON list of pieces of text
        log = "".join(piece["data"] for piece in json.loads(log))
    return log.splitlines()


def fetch_output(api: Any, kernel: str, version: int, folder: Path) -> Path:
    """Download the latest version's submission.csv and provenance into ``folder``, and return the CSV's path.

    Prefer the last identical copy in submissions/, since its JSON is in the same folder.
    """
    with calling(f"fetching the output of {kernel}", NO_KERNEL):
        api.kernels_output(kernel, str(folder), file_pattern=OUTPUTS, force=True, page_size=LISTED)
    path = folder / "submission.csv"
    _check_csv(path, f"wait until the kernel is complete (python -m utils.kaggle wait {kernel}), and look at its log")
    named = [copy for copy in sorted(folder.glob("submissions/*.csv")) if ledger.hash_file(copy) == ledger.hash_file(path)]
    return named[-1] if named else path.rename(folder / f"{kernel.split('/')[1]}-v{version}.csv")


def _check_csv(path: Path, remedy: str) -> None:
    """Raise KaggleError if a file is not a submission (an error page, say), before it costs one of the day's five."""
    if not path.is_file():
        raise KaggleError(f"There is no {path.name}: {remedy}.")
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(200).strip()
    if first != HEADER:
        raise KaggleError(f"{path.name} begins with {redact(first)!r}, not with {HEADER!r}: {remedy}.")


def submit_version(api: Any, kernel: str, version: int, message: str) -> str:
    """Submit a kernel's version to the competition, and return the submission's number at Kaggle."""
    with calling("submitting", ACCEPT_RULES):
        result = api.competition_submit_code("submission.csv", message, COMPETITION, kernel, version)
    print(f"{redact(result.message)} (ref {result.ref})")
    return str(result.ref or "")


def fetch_scores(api: Any) -> dict[str, dict]:
    """Return this account's latest submissions, as `utils.kaggle.ledger.update_scores` takes them."""
    with calling("asking for scores", ACCEPT_RULES), redirect_stdout(io.StringIO()):  # the client prints the next page's token
        return {str(one.ref): _score(one) for one in api.competition_submissions(COMPETITION, page_size=LISTED) or []}


def _score(submission: Any) -> dict:
    status, why = submission.status.name.lower(), redact(submission.error_description or "")
    scores = {"public_score": submission.public_score, "private_score": submission.private_score}
    return {"status": f"{status}: {why}" if why else status} | {name: float(text or "nan") for name, text in scores.items()}
