"""Facts about errors that a user can fix."""

from utils.core.errors import KitError


def test_kit_errors_show_their_message_alone_in_a_notebook():
    assert KitError("no data")._render_traceback_() == ["KitError: no data"]
