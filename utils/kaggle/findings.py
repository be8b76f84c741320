"""Findings of a preflight: a problem and its remedy."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from utils.core.errors import KitError
from utils.core.folders import KAGGLE_INPUT, on_kaggle

GIGABYTE = 10**9


class PreflightError(KitError):
    """The problems that would make the notebook fail later, numbered, each with its remedy."""


@dataclass(frozen=True)
class Finding:
    """One problem and its remedy."""

    problem: str
    remedy: str = ""  # empty if ``problem`` is an error message that names it
    is_fatal: bool = True  # the notebook would fail or waste hours; else this is a warning

    def __str__(self) -> str:
        return f"{self.problem} Remedy: {self.remedy}" if self.remedy else self.problem


def refusals(step: Callable[[], object]) -> Iterator[Finding]:
    """Try a later step now, and yield its error: it would end the notebook then."""
    try:
        step()
    except KitError as error:
        yield Finding(str(error))
    except Exception as error:  # torch and timm raise many types
        problem = f"This would end with {type(error).__name__}: {error}."
        yield Finding(problem, "change the architecture, image size or weights_path that causes it.")


def report(findings: Sequence[Finding], machine: str) -> None:
    """Print the machine's description and the warnings; raise PreflightError listing all fatal problems, if any."""
    print(machine)
    if on_kaggle():
        inputs = [path for depth in ("*", "competitions/*", "datasets/*/*") for path in KAGGLE_INPUT.glob(depth)]
        print(f"Mounted: {', '.join(str(path) for path in sorted(inputs)) or 'nothing'}")
    findings = list(dict.fromkeys(findings))  # several checks may find the same problem
    for finding in findings:
        if not finding.is_fatal:
            print(f"Warning: {finding}")
    fatal = [finding for finding in findings if finding.is_fatal]
    if fatal:
        listed = [f"{number}. {finding}" for number, finding in enumerate(fatal, start=1)]
        raise PreflightError("\n".join([f"This notebook would fail later. Problems: {len(fatal)}.", *listed]))
