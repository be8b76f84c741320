"""Grey values to one small cached image."""
