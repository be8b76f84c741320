"""What a run is, on disk and in memory; nothing here or before imports torch, nor does `utils.decision`."""
