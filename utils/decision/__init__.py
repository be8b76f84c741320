"""Run folders to threshold.json, without torch."""
