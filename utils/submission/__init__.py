"""Test DICOMs to submission.csv."""
