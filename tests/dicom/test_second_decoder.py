"""Stored values are the same through dicomsdl, which shares no code with the decoders that the kit uses."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from utils.dicom.file import read_stored
from utils.tables.competition import image_paths

dicomsdl = pytest.importorskip("dicomsdl")  # requirements.txt says where it has no wheels
SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "rsna-sample"


def assert_same_values(path):
    # dicomsdl kills the process on broken files, so it only ever sees whole ones; it gives floats.
    np.testing.assert_array_equal(read_stored(path), dicomsdl.open(str(path)).pixelData())


def test_phantom_files_of_every_syntax_decode_alike(competition, images, test_images):
    seen = set()
    for split, table in {"train": images, "test": test_images}.items():
        for path in image_paths(table.drop_duplicates("machine_id"), competition, split):
            seen.add(pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID)
            assert_same_values(path)
    assert len(seen) >= 3


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize("path", sorted(SAMPLE.glob("*/*/*.dcm")), ids=lambda path: path.stem)
def test_real_mammograms_decode_alike(path):
    assert_same_values(path)
