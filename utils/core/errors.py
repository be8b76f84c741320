"""The base of all errors that a user can fix."""


class KitError(Exception):
    """Base of all errors that a user can fix; a notebook shows the message without the traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of the traceback."""
        return [f"{type(self).__name__}: {self}"]
