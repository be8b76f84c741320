"""What a preflight finds: a problem, and what to do about it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from utils.core.environment import KAGGLE_INPUT, KitError, on_kaggle

GIGABYTE = 10**9


class PreflightError(KitError):
    """Everything that would make the notebook fail later, numbered, each with its remedy."""


@dataclass(frozen=True)
class Finding:
    """What would go wrong.

    Parameters
    ----------
    problem : str
    remedy : str
        Empty where ``problem`` is the message of an error that says it.
    is_fatal : bool
        Whether the notebook would fail, or its hours be wasted; else it is a warning.
    """

    problem: str
    remedy: str = ""
    is_fatal: bool = True

    def __str__(self) -> str:
        return f"{self.problem} Remedy: {self.remedy}" if self.remedy else self.problem


def refusals(step: Callable[[], object]) -> Iterator[Finding]:
    """Take a step that comes later in earnest: whatever it raises would end the notebook then."""
    try:
        step()
    except KitError as error:
        yield Finding(str(error))
    except Exception as error:  # by torch or timm, which refuse in many ways
        problem = f"This would end with {type(error).__name__}: {error}."
        yield Finding(problem, "change the architecture, the image size or the weights_path that it is about.")


def report(findings: Sequence[Finding], machine: str) -> None:
    """Print what this machine has and what was found.

    Raises
    ------
    PreflightError
        Listing all fatal problems, if there are any.
    """
    print(machine)
    if on_kaggle():
        inputs = [path for depth in ("*", "competitions/*", "datasets/*/*") for path in KAGGLE_INPUT.glob(depth)]
        print(f"Mounted: {', '.join(str(path) for path in sorted(inputs)) or 'nothing'}")
    findings = list(dict.fromkeys(findings))  # each once: several checks may meet the same problem
    for finding in findings:
        if not finding.is_fatal:
            print(f"Warning: {finding}")
    fatal = [finding for finding in findings if finding.is_fatal]
    if fatal:
        listed = [f"{number}. {finding}" for number, finding in enumerate(fatal, start=1)]
        raise PreflightError("\n".join([f"This notebook would fail later. Problems: {len(fatal)}.", *listed]))
