"""What to look at before training."""
