"""Run folders, on disk and in memory; nothing here imports torch."""
