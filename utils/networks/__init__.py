"""Pictures to a logit."""
