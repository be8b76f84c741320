"""Tables and figures of the data before training."""
