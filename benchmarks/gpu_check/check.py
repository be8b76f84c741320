"""What a check is, before it runs; nothing here imports torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One fact that must hold on a GPU.

    Parameters
    ----------
    name : str
        For ``--only`` and the page.
    proves : str
        What holds if it passes.
    function : str
        MODULE:FUNCTION. It takes a folder to work in, and ``argument`` unless that is empty. It returns measured numbers as a
        dictionary, and raises `CheckError` or another error if the fact does not hold.
    remedy : str
        What to do if it fails.
    argument : str
    limit_s : float
        Seconds after which its process is ended.
    """

    name: str
    proves: str
    function: str
    remedy: str = ""
    argument: str = ""
    limit_s: float = 90.0


class CheckError(Exception):
    """Raised by a check whose fact does not hold; ``numbers`` are what it had measured."""

    def __init__(self, reason: str, numbers: dict | None = None):
        super().__init__(reason)
        self.numbers = numbers or {}


class Skipped(CheckError):  # noqa: N818  (it is no error)
    """Raised by a check that can't show its fact here."""
