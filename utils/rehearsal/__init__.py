"""A submission in a copy of Kaggle's world: ``python -m utils.rehearsal``."""
