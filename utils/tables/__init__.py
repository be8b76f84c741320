"""The competition's tables: read, checked, and split into folds by patient."""

from utils.tables.competition import read_images
from utils.tables.folds import assign_folds

__all__ = ["assign_folds", "read_images"]
