"""A cache to a run folder."""
