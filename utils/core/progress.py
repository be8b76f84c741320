"""Progress bars: updated often in a terminal, at most once a minute in a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

WATCHED_SECONDS = 1.0  # between refreshes
LOGGED_SECONDS = 60.0  # each refresh is a line there


def progress_bar(items: Iterable | None, description: str, unit: str, total: int | None = None, **options) -> tqdm:
    """Make a progress bar on stderr; in a log, work of less than a minute leaves no line.

    Parameters
    ----------
    items : iterable or None
        Iterate over the bar instead of them; None if the caller calls ``update``.
    unit : str
        The items that are counted, in the plural.
    total : int, optional
        Number of items; None asks ``items`` for its length.
    options
        Options of tqdm, such as ``initial`` or ``disable``.

    Returns
    -------
    tqdm
        Pass ``refresh=False`` to its ``set_postfix``: each refresh is a line in a log.
    """
    is_watched = _is_watched()
    return tqdm(
        items,
        description,
        total,
        unit=f" {unit}",
        mininterval=WATCHED_SECONDS if is_watched else LOGGED_SECONDS,
        delay=0 if is_watched else LOGGED_SECONDS,
        miniters=1,  # else tqdm's own thread refreshes slow bars every ten seconds
        **options,
    )


def _is_watched() -> bool:
    """True in a terminal, and in a notebook whose front end can answer ``input()``: papermill and nbconvert can't."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return sys.stderr.isatty()
    return shell.kernel.get_parent().get("content", {}).get("allow_stdin", False)
