"""Images to a logit."""
