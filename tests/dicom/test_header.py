"""Facts about files that lack the preamble, the transfer syntax or the pixel data."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from tests.dicom.test_file import IMAGE_GROUP, make_dicom, ramp
from utils.dicom.file import DicomError, open_dicom, read_stored

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
MAGIC = bytes(128) + b"DICM"
OWN_WORDS = "does not begin like a DICOM file"


def bare(folder, syntax=ExplicitVRLittleEndian, implicit=False, little_endian=True, **changes) -> bytes:
    """A data set alone: no preamble and no meta group."""
    path = make_dicom(folder, syntax=syntax, **changes)
    dataset = pydicom.dcmread(path)
    dataset.file_meta, dataset.preamble = FileMetaDataset(), None
    if not little_endian:
        dataset["PixelData"].value = ramp().astype(">u2").tobytes()
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little_endian, enforce_file_format=False)
    return path.read_bytes()


def refusal(path) -> str:
    with pytest.raises(DicomError) as error:
        read_stored(path)
    assert "force" not in error.value.reason
    return error.value.reason


@pytest.mark.parametrize("before", [b"", MAGIC], ids=["no preamble", "no meta group"])
@pytest.mark.parametrize("implicit, little_endian", [(True, True), (False, True), (False, False)])
def test_file_that_names_no_transfer_syntax_is_read_as_it_is_written_and_flagged(tmp_path, before, implicit, little_endian):
    path = tmp_path / "bare.dcm"
    path.write_bytes(before + bare(tmp_path, implicit=implicit, little_endian=little_endian))
    np.testing.assert_array_equal(read_stored(path), ramp())
    with open_dicom(path) as file:
        assert file.flags == ("syntax_guessed",)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless])
def test_file_without_a_preamble_keeps_the_transfer_syntax_that_it_names(tmp_path, syntax):
    path = make_dicom(tmp_path, syntax=syntax)
    path.write_bytes(path.read_bytes()[len(MAGIC) :])
    np.testing.assert_array_equal(read_stored(path), ramp())
    with open_dicom(path) as file:
        assert file.flags == ()


@pytest.mark.parametrize("implicit", [True, False])
def test_compressed_pixel_data_of_an_unnamed_syntax_is_refused(tmp_path, implicit):
    path = tmp_path / "bare.dcm"
    path.write_bytes(bare(tmp_path, JPEG2000Lossless, implicit))
    assert "it names no transfer syntax" in refusal(path)


CONTENTS = {
    "empty": b"",
    "short": b"hello",
    "text": b"Patient,Image\n" * 50,
    "wide text": ("Patient,Image\n" * 50).encode("utf-16"),
    "zeros": bytes(500),
    "noise": np.random.default_rng(0).bytes(5000),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "preamble without its magic": bytes(128) + b"MCID" + bytes(500),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_dicom_is_refused_in_own_words(tmp_path, name):
    path = tmp_path / "image.dcm"
    path.write_bytes(CONTENTS[name])
    assert OWN_WORDS in refusal(path)


@pytest.mark.parametrize("seed", range(5))
def test_noise_behind_a_plausible_tag_is_refused(tmp_path, seed):
    path = tmp_path / "image.dcm"
    path.write_bytes(b"\x08\x00\x05\x00" + np.random.default_rng(seed).bytes(3000))
    refusal(path)


@pytest.mark.parametrize("before", [b"", MAGIC], ids=["no preamble", "no meta group"])
@pytest.mark.parametrize("changes", [{}, {"Rows": None, "BitsStored": None}], ids=["image", "other object"])
def test_missing_pixel_data_is_named_as_such(tmp_path, before, changes):
    path = tmp_path / "bare.dcm"
    path.write_bytes(before + bare(tmp_path, PixelData=None, **changes))
    assert refusal(path) == "it has no pixel data"


def test_all_missing_elements_are_named(tmp_path):
    assert refusal(make_dicom(tmp_path, Rows=None, BitsStored=None)) == "its header lacks Rows, BitsStored"


def test_file_cut_in_its_header_has_no_pixel_data(tmp_path):
    path = make_dicom(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(IMAGE_GROUP)])
    assert refusal(path) == "it has no pixel data"
