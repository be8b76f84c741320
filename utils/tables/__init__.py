"""The competition's tables: read, checked, and split into folds by patient."""

from utils.tables.competition import assign_folds, read_images

__all__ = ["assign_folds", "read_images"]
