"""Screening mammography, from DICOM to submission.csv: everything that the notebooks call.

The modules read in the order of the data's one-way path: ``environment``, ``parallel``, ``tables``, ``phantom``, ``dicom``,
``breast``, ``cache``, ``augment``, ``dataset``, ``models``, ``metrics``, ``training``, ``predictions``, ``plots``.
Each imports only from those before it.
"""

import os

# albumentations asks a server for a newer version at every import; kernels and closed machines have no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
