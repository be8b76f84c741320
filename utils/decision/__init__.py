"""Run folders to threshold.json."""
