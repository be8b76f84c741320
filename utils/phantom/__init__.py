"""A synthetic competition with known lesions: ``python -m utils.phantom``."""
