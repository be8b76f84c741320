"""Screening mammography, from DICOM to submission.csv: everything that the notebooks call.

The modules follow the data's one-way path; the README lists them in order. Each imports only from those before it.
"""

import os

# albumentations asks a server for a newer version at every import; kernels and closed machines have no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# GNU OpenMP's threads spin while they wait for each other. Where another process competes for the cores (a data loader, a
# second notebook), that made a training step on two cores 3 to 4 times slower; a short spin costs nothing where none does.
os.environ.setdefault("GOMP_SPINCOUNT", "300000")

__version__ = "0.1.0"
