"""Screening mammography, from DICOM to submission.csv: everything that the notebooks call.

The packages follow the data's one-way path. Each imports only from itself and from those before it:

- core: errors, folders, files written atomically, checks of their content, processes that may die
- metrics: the probabilistic F1 and its kin, thresholds for it, and intervals from a bootstrap over patients
- tables: the competition's tables, checked and split into folds by patient
- phantom: a synthetic competition with known lesions
- dicom: one DICOM file to grey values
- images: grey values to one small cached image
- external: other sets of mammograms as competition folders
- explore: tables and figures to look at before training
- runs: what a run is, on disk and in memory; neither here nor before is torch imported
- decision: run folders to threshold.json, also without torch
- networks: images to a logit
- training: a cache to a run folder
- submission: test DICOMs to submission.csv
- evaluation: the performance of runs, and report.html
- kaggle: bundles, preflight and submissions
- rehearsal: a submission in a copy of Kaggle's environment
"""

import os

# albumentations asks a server for a newer version at every import; kernels and closed machines have no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# GNU OpenMP's threads spin while they wait for each other. Where another process competes for the cores (a data loader, a
# second notebook), that made a training step on two cores 3 to 4 times slower; a short spin costs nothing where none does.
os.environ.setdefault("GOMP_SPINCOUNT", "300000")

# cuBLAS and torch read this once, at a process's first matrix multiplication; a later deterministic training needs it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

__version__ = "0.1.0"
