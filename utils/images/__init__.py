"""Grey values to one small cached picture."""
