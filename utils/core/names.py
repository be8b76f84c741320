"""Suggest the name that was probably meant."""

import difflib
from collections.abc import Iterable

LEAST_LIKENESS = 0.4  # difflib ratio of two names: "arch" suggests architecture, "xyz" nothing


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the known name that is nearest to an unknown one, or an empty text if none is near.

    The same letters and digits come first (``resnet_50`` is ``resnet50``), then initials (``lr`` is ``learning_rate``), then
    difflib's similarity.
    """
    known = list(known)
    exact = [other for other in known if _plain(other) == _plain(name)]
    initials = [other for other in known if "".join(word[:1] for word in other.split("_")) == name.lower()]
    likely = exact or initials or difflib.get_close_matches(name.lower(), known, n=1, cutoff=LEAST_LIKENESS)
    return likely[0] if likely else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the known name that is nearest to a wrong one, or with all known names."""
    known = list(known)
    nearest = nearest_name(name, known)
    return f"The nearest name is {nearest}." if nearest else f"Known names: {', '.join(known)}."


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
