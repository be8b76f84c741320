"""Other sets of mammograms as competition folders: ``python -m utils.external``."""
