"""Facts about reading a DICOM file, on files of a few pixels made here, and on real ones where they are."""

import logging
import pickle
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)

from utils.dicom.file import DicomError, read_dicom, read_stored
from utils.dicom.window import apply_window

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
# pydicom warns of values that break the standard, which is what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
needs_real_data = pytest.mark.skipif(not (REAL / "rsna-sample").is_dir(), reason="the real files are not here")

J2K = {"codecformat": "j2k", "reversible": True, "level": 0}
ENCODERS = {
    JPEG2000Lossless: lambda a, bits: imagecodecs.jpeg2k_encode(a, bitspersample=bits, **J2K),
    JPEG2000: lambda a, bits: imagecodecs.jpeg2k_encode(a, bitspersample=bits, **J2K | {"codecformat": "jp2"}),
    JPEGLosslessSV1: lambda a, bits: imagecodecs.jpeg_encode(a, lossless=True, predictor=1, bitspersample=bits),
    JPEGLossless: lambda a, bits: imagecodecs.jpeg_encode(a, lossless=True, predictor=6, bitspersample=bits),
    JPEGLSLossless: lambda a, bits: imagecodecs.jpegls_encode(a),
}
if hasattr(imagecodecs, "HTJ2K"):  # not in the oldest version; decoding needs it not
    ENCODERS |= dict.fromkeys(
        (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), lambda a, bits: imagecodecs.htj2k_encode(a, reversible=True)
    )
LOSSY_ENCODERS = {
    JPEGBaseline8Bit: lambda a: imagecodecs.jpeg8_encode(a, level=95),
    JPEGExtended12Bit: lambda a: imagecodecs.jpeg8_encode(a, level=95, bitspersample=12),
    JPEGLSNearLossless: lambda a: imagecodecs.jpegls_encode(a, level=2),
    JPEG2000: lambda a: imagecodecs.jpeg2k_encode(a, level=50, codecformat="j2k", bitspersample=12),
}
SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    *ENCODERS,
]
FOUR_KINDS = [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLosslessSV1]
all_syntaxes = pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
four_kinds = pytest.mark.parametrize("syntax", FOUR_KINDS, ids=lambda uid: uid.keyword)


def ramp(bits: int = 12, shape: tuple[int, int] = (16, 12), dtype=np.uint16, signed: bool = False) -> np.ndarray:
    """Pixels from the lowest to the highest value of ``bits`` bits, in no simple order."""
    lowest = -(2 ** (bits - 1)) if signed else 0
    values = np.linspace(lowest, lowest + 2**bits - 1, shape[0] * shape[1]).round()
    return np.random.default_rng(0).permutation(values).reshape(shape).astype(dtype)


def make_dataset(pixels: np.ndarray, syntax, bits: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    return dataset


def set_pixels(dataset: Dataset, pixels: np.ndarray, syntax, precision: int) -> None:
    if syntax in ENCODERS:
        dataset.PixelData = encapsulate([ENCODERS[syntax](pixels, precision)])
    elif syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.PixelData = pixels.tobytes()
        dataset.compress(RLELossless, generate_instance_uid=False)
    else:
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")).tobytes()
    dataset["PixelData"].VR = "OB" if syntax.is_encapsulated or pixels.itemsize == 1 else "OW"


def make_dicom(folder: Path, pixels=None, syntax=ExplicitVRLittleEndian, bits=12, precision=None, **changes) -> Path:
    """Write a tiny mammogram; ``changes`` set header elements by keyword, None removes one."""
    pixels = ramp(bits) if pixels is None else pixels
    dataset = make_dataset(pixels, syntax, bits)
    set_pixels(dataset, pixels, syntax, precision or bits)
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    path = folder / "image.dcm"
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def lut(entries, first: int, bits: int, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", vr, np.asarray(entries, "<u2").tobytes() if vr == "OW" else np.asarray(entries).tolist())
    return item


def as_pydicom(path: Path, bits: int | None = None) -> np.ndarray:
    """What pydicom makes of a file: its output range, that of the stored or the LUT's bits, normalised to [0, 1]."""
    dataset = pydicom.dcmread(path)
    values = apply_modality_lut(pixel_array(dataset), dataset)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    bits = bits or dataset.BitsStored
    lowest = -(2 ** (bits - 1)) if dataset.PixelRepresentation == 1 else 0
    grey = (apply_voi_lut(values, dataset) - (lowest * slope + intercept)) / ((2**bits - 1) * slope)
    return 1 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def assert_like_pydicom(path: Path, bits: int | None = None) -> None:
    grey = read_dicom(path)
    assert grey.dtype == np.float32
    assert grey.min() >= 0
    assert grey.max() <= 1
    np.testing.assert_allclose(grey, as_pydicom(path, bits), atol=1e-6)


# Stored values


@all_syntaxes
@pytest.mark.parametrize("bits, dtype", [(8, np.uint8), (10, np.uint16), (12, np.uint16), (16, np.uint16)])
def test_stored_values_are_those_written(tmp_path, syntax, bits, dtype):
    pixels = ramp(bits, dtype=dtype)
    np.testing.assert_array_equal(read_stored(make_dicom(tmp_path, pixels, syntax, bits)), pixels)


@all_syntaxes
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3)])
def test_odd_and_tiny_sizes_are_read(tmp_path, syntax, shape):
    pixels = ramp(12, shape)
    np.testing.assert_array_equal(read_stored(make_dicom(tmp_path, pixels, syntax)), pixels)


@pytest.mark.parametrize(
    "syntax",
    [s for s in SYNTAXES if s not in (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless)],
    ids=lambda uid: uid.keyword,
)
@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values_keep_their_sign(tmp_path, syntax, bits):
    pixels = ramp(bits, dtype=np.int16, signed=True)
    np.testing.assert_array_equal(read_stored(make_dicom(tmp_path, pixels, syntax, bits)), pixels)


@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_sign_is_restored_from_an_unsigned_codestream(tmp_path, syntax, bits):
    signed = ramp(bits, dtype=np.int16, signed=True)
    unsigned = signed.view(np.uint16) & (2**bits - 1)
    path = make_dicom(tmp_path, unsigned, syntax, bits, PixelRepresentation=1)
    np.testing.assert_array_equal(read_stored(path), signed)


@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda uid: uid.keyword)
def test_8_bit_sign_is_restored_from_an_unsigned_codestream(tmp_path, syntax):
    signed = ramp(8, dtype=np.int8, signed=True)
    path = make_dicom(tmp_path, signed.view(np.uint8), syntax, 8, PixelRepresentation=1)
    np.testing.assert_array_equal(read_stored(path), signed)


@pytest.mark.parametrize("syntax", [s for s in SYNTAXES if s not in ENCODERS], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_bits_stored_are_masked_in_uncompressed_data(tmp_path, syntax, signed):
    clean = ramp(12, dtype=np.int16 if signed else np.uint16, signed=signed)
    dirty = (clean.view(np.uint16) & 0x0FFF) | 0x5000
    path = make_dicom(tmp_path, dirty, syntax, 12, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(read_stored(path), clean)
    np.testing.assert_array_equal(read_stored(path), pydicom.dcmread(path).pixel_array)


@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda uid: uid.keyword)
def test_values_above_bits_stored_are_kept_from_a_codestream(tmp_path, syntax):
    pixels = ramp(14)
    stored = read_stored(make_dicom(tmp_path, pixels, syntax, 12, precision=14))
    np.testing.assert_array_equal(stored, pixels)
    assert stored.max() > 4095


@pytest.mark.parametrize("codecformat", ["j2k", "jp2"])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEG2000], ids=lambda uid: uid.keyword)
def test_raw_and_boxed_jpeg2000_read_alike(tmp_path, syntax, codecformat):
    codestream = imagecodecs.jpeg2k_encode(ramp(), bitspersample=12, **J2K | {"codecformat": codecformat})
    assert (codestream[:4] == b"\xff\x4f\xff\x51") == (codecformat == "j2k")
    path = make_dicom(tmp_path, syntax=syntax, PixelData=encapsulate([codestream]))
    np.testing.assert_array_equal(read_stored(path), ramp())


def test_jpeg2000_box_after_the_codestream_is_allowed(tmp_path):
    boxed = imagecodecs.jpeg2k_encode(ramp(), bitspersample=12, **J2K | {"codecformat": "jp2"})
    box = b"xml \x00"
    trailer = (len(box) + 4).to_bytes(4, "big") + box
    path = make_dicom(tmp_path, syntax=JPEG2000, PixelData=encapsulate([boxed + trailer + b"ab"[: len(boxed + trailer) % 2]]))
    np.testing.assert_array_equal(read_stored(path), ramp())


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("fragments, table", [(1, False), (3, True), (4, False)])
def test_frame_in_several_fragments_is_joined(tmp_path, syntax, fragments, table):
    frame = ENCODERS[syntax](ramp(), 12)
    data = encapsulate([frame], fragments_per_frame=fragments, has_bot=table)
    np.testing.assert_array_equal(read_stored(make_dicom(tmp_path, syntax=syntax, PixelData=data)), ramp())


def wave(bits: int) -> np.ndarray:
    """A smooth picture, which lossy codecs keep."""
    y, x = np.mgrid[:45, :38]
    dtype = np.uint8 if bits == 8 else np.uint16
    return ((np.sin(x / 9) * np.cos(y / 12) + 1) / 2 * (2**bits - 1)).astype(dtype)


@pytest.mark.parametrize("syntax", LOSSY_ENCODERS, ids=lambda uid: uid.keyword)
def test_lossy_codecs_match_a_second_decoder(tmp_path, syntax):
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    pixels = wave(bits)
    path = make_dicom(tmp_path, pixels, syntax, bits, PixelData=encapsulate([LOSSY_ENCODERS[syntax](pixels)]))
    stored = read_stored(path).astype(int)
    second = pixel_array(path, decoding_plugin="pylibjpeg").astype(int)
    # The inverse cosine transform may be rounded in other ways; the others are exact (T.81 leaves it open).
    assert np.abs(stored - second).max() <= (1 if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) else 0)
    assert np.abs(stored - pixels).max() < 2**bits / 40


@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda uid: uid.keyword)
def test_lossless_codecs_match_a_second_decoder(tmp_path, syntax):
    path = make_dicom(tmp_path, wave(12), syntax)
    np.testing.assert_array_equal(read_stored(path), pixel_array(path, decoding_plugin="pylibjpeg"))
    if "HTJ2K" in syntax.keyword:  # where pydicom's plugin is OpenJPEG as well
        stream = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
        np.testing.assert_array_equal(read_stored(path), imagecodecs.htj2k_decode(stream))


@pytest.mark.parametrize("padding", [b"\x00\x00", b"\x00" * 64])
def test_zeros_after_the_codestream_are_padding(tmp_path, padding):
    data = encapsulate([ENCODERS[JPEGLosslessSV1](ramp(), 12) + padding])
    np.testing.assert_array_equal(read_stored(make_dicom(tmp_path, syntax=JPEGLosslessSV1, PixelData=data)), ramp())


# Modality LUT, window, inversion

monochromes = pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])


@monochromes
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID", "sigmoid"])
@pytest.mark.parametrize(
    "center, width", [(2048, 4096), (1802.31, 1091.97), (100, 1), (100.5, 1), (100, 2), (4000, 50), (-50, 300)]
)
def test_window_matches_pydicom(tmp_path, function, center, width, photometric):
    window = {"WindowCenter": center, "WindowWidth": width} | ({"VOILUTFunction": function} if function else {})
    assert_like_pydicom(make_dicom(tmp_path, PhotometricInterpretation=photometric, **window))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_signed_window_matches_pydicom(tmp_path, function):
    pixels = ramp(dtype=np.int16, signed=True)
    assert_like_pydicom(make_dicom(tmp_path, pixels, WindowCenter=-200, WindowWidth=900, VOILUTFunction=function))


@pytest.mark.filterwarnings("error")
def test_narrow_sigmoid_does_not_overflow():
    np.testing.assert_array_equal(apply_window(np.array([0, 30_000, 65_535]), 30_000, 1, "SIGMOID"), [0, 0.5, 1])


def test_windows_by_hand():
    values = np.array([0, 100, 150, 200, 300])
    np.testing.assert_allclose(apply_window(values, 150, 100, "LINEAR_EXACT"), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(apply_window(values, 150.5, 101, "LINEAR"), [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(apply_window(values, 150.5, 1, "LINEAR"), [0, 0, 0, 1, 1])  # a step above 150
    np.testing.assert_allclose(apply_window(values, 150, 100, "SIGMOID")[[1, 3]], [1 / (1 + np.e**2), 1 / (1 + np.e**-2)])


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_first_of_several_windows_is_used(tmp_path, function):
    several = {"WindowCenter": [1802.31, 300, 2020], "WindowWidth": [1091.97, 40, 9], "VOILUTFunction": function}
    first = {key: value[0] if isinstance(value, list) else value for key, value in several.items()}
    grey = read_dicom(make_dicom(tmp_path, **several))
    assert_like_pydicom(make_dicom(tmp_path, **several))
    np.testing.assert_array_equal(grey, read_dicom(make_dicom(tmp_path, **first)))


@pytest.mark.parametrize("lut_bits", [8, 10, 16])
@pytest.mark.parametrize("vr", ["US", "OW"])
@monochromes
def test_voi_lut_matches_pydicom(tmp_path, lut_bits, vr, photometric):
    entries = (np.linspace(0, 1, 4096) ** 2 * (2**lut_bits - 1)).round().astype(int)
    changes = {"VOILUTSequence": [lut(entries, 0, lut_bits, vr)], "PhotometricInterpretation": photometric}
    # pydicom indexes an 8-bit LUT with 8-bit numbers, so there the entries themselves are the reference.
    if lut_bits == 8:
        grey = entries[ramp()] / 255
        expected = 1 - grey if photometric == "MONOCHROME1" else grey
        np.testing.assert_allclose(read_dicom(make_dicom(tmp_path, **changes)), expected, atol=1e-6)
    else:
        assert_like_pydicom(make_dicom(tmp_path, **changes), lut_bits)


@pytest.mark.parametrize("first", [1000, 0, -100])
def test_values_outside_a_voi_lut_take_its_ends(tmp_path, first):
    entries = np.linspace(100, 900, 500).astype(int)
    pixels = ramp(dtype=np.int16, signed=True)
    path = make_dicom(tmp_path, pixels, VOILUTSequence=[lut(entries, first, 10)])
    expected = np.interp(pixels, first + np.arange(500), entries) / 1023
    np.testing.assert_allclose(read_dicom(path), expected, atol=1e-6)


def test_voi_lut_of_65536_entries_is_declared_with_0(tmp_path):
    item = lut([0], 0, 16, "OW")
    item.LUTDescriptor = [0, 0, 16]
    item.LUTData = np.arange(65_535, -1, -1).astype("<u2").tobytes()
    pixels = ramp(16)
    path = make_dicom(tmp_path, pixels, bits=16, VOILUTSequence=[item])
    np.testing.assert_allclose(read_dicom(path), (65_535 - pixels.astype(float)) / 65_535, atol=1e-6)


def test_voi_lut_comes_before_the_window_and_the_first_of_several(tmp_path):
    items = [lut(np.arange(4096), 0, 12), lut(np.arange(4096)[::-1], 0, 12)]
    path = make_dicom(tmp_path, VOILUTSequence=items, WindowCenter=100, WindowWidth=2)
    np.testing.assert_allclose(read_dicom(path), ramp() / 4095, atol=1e-6)


def test_big_endian_voi_lut_is_read_in_its_byte_order(tmp_path):
    item = lut(np.arange(4096), 0, 12, "OW")
    item.LUTData = np.arange(4096).astype(">u2").tobytes()
    path = make_dicom(tmp_path, syntax=ExplicitVRBigEndian, VOILUTSequence=[item])
    assert_like_pydicom(path)
    np.testing.assert_allclose(read_dicom(path), ramp() / 4095, atol=1e-6)


@monochromes
@pytest.mark.parametrize("slope, intercept", [(1, 0), (2, -1000), (0.5, 20.25), (1, -1024)])
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_rescale_comes_before_the_window(tmp_path, slope, intercept, function, photometric):
    rescale = {"RescaleSlope": slope, "RescaleIntercept": intercept, "PhotometricInterpretation": photometric}
    assert_like_pydicom(make_dicom(tmp_path, WindowCenter=700, WindowWidth=900, VOILUTFunction=function, **rescale))


def test_negative_slope_turns_the_picture_around(tmp_path):
    path = make_dicom(tmp_path, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_allclose(read_dicom(path), 1 - ramp() / 4095, atol=1e-6)


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("first", [0, 500])
def test_modality_lut_comes_before_the_window(tmp_path, first, vr):
    entries = (np.linspace(0, 1, 3000) ** 2 * 65_535).astype(int)
    modality = {"ModalityLUTSequence": [lut(entries, first, 16, vr)]}
    assert_like_pydicom(make_dicom(tmp_path, WindowCenter=30_000, WindowWidth=20_000, **modality), bits=16)


@monochromes
@pytest.mark.parametrize("missing", [("WindowCenter", "WindowWidth"), ("WindowWidth",), ("WindowCenter",)])
def test_without_a_window_the_datas_range_is_used(tmp_path, missing, photometric):
    pixels = ramp() // 2 + 100
    window = dict.fromkeys(missing, "") | {"PhotometricInterpretation": photometric}
    window |= {key: 50 for key in ("WindowCenter", "WindowWidth") if key not in missing}
    grey = (pixels - 100.0) / (pixels.max() - 100)
    expected = 1 - grey if photometric == "MONOCHROME1" else grey
    np.testing.assert_allclose(read_dicom(make_dicom(tmp_path, pixels, **window)), expected, atol=1e-6)


@pytest.mark.filterwarnings("error:::utils")
@pytest.mark.parametrize("value", [0, 7, 4095])
def test_constant_picture_without_a_window_is_constant_in_range(tmp_path, value):
    grey = read_dicom(make_dicom(tmp_path, np.full((4, 4), value, np.uint16)))
    np.testing.assert_array_equal(grey, np.zeros((4, 4), np.float32))


def test_inversion_comes_after_the_window(tmp_path):
    pixels = np.array([[0, 100, 200, 4095]], np.uint16)
    path = make_dicom(tmp_path, pixels, PhotometricInterpretation="MONOCHROME1", WindowCenter=100.5, WindowWidth=201)
    np.testing.assert_allclose(read_dicom(path), [[1, 0.5, 0, 0]], atol=1e-6)


def test_optional_elements_may_be_absent_or_empty(tmp_path):
    path = make_dicom(tmp_path, WindowCenter="", WindowWidth="", VOILUTFunction="", NumberOfFrames="")
    assert "Modality" not in pydicom.dcmread(path)
    np.testing.assert_allclose(read_dicom(path), ramp() / 4095, atol=1e-6)


def test_path_may_be_text(tmp_path):
    assert read_dicom(str(make_dicom(tmp_path))).shape == (16, 12)


# Errors

both_readers = pytest.mark.parametrize("read", [read_stored, read_dicom])


def assert_refused(read, path: Path, reason: str) -> None:
    with pytest.raises(DicomError) as error:
        read(path)
    assert error.value.path == path
    assert str(error.value) == f"{path}: {error.value.reason}"
    assert reason in error.value.reason


@both_readers
@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 200, b"\x00" * 128 + b"DICM"])
def test_what_is_no_dicom_is_refused(tmp_path, read, content):
    (tmp_path / "image.dcm").write_bytes(content)
    assert_refused(read, tmp_path / "image.dcm", "")


@both_readers
def test_missing_file_and_folder_are_refused(tmp_path, read):
    assert_refused(read, tmp_path / "none.dcm", "does not exist")
    assert_refused(read, tmp_path, "it is not a file")


BAD_HEADERS = [
    ({"PixelData": None}, "no pixel data"),
    ({"PixelData": b""}, "no pixel data"),
    ({"Rows": 0}, "0 rows"),
    ({"Columns": 0}, "0 columns"),
    ({"Rows": 65_535, "Columns": 65_535}, "not a usable size"),
    ({"Rows": None}, "Rows"),
    ({"BitsStored": None}, "BitsStored"),
    ({"PixelRepresentation": None}, "PixelRepresentation"),
    ({"PhotometricInterpretation": None}, "PhotometricInterpretation"),
    ({"NumberOfFrames": 2}, "2 frames"),
    ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "3 samples per pixel, RGB"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
    ({"BitsStored": 17}, "Bits Stored 17"),
    ({"BitsStored": 0}, "Bits Stored 0"),
    ({"BitsAllocated": 32}, "Bits Allocated 32"),
    ({"PixelRepresentation": 2}, "Pixel Representation 2"),
]


@both_readers
@pytest.mark.parametrize("changes, reason", BAD_HEADERS, ids=[str(next(iter(c.items()))) for c, _ in BAD_HEADERS])
def test_contradicting_header_is_refused(tmp_path, read, changes, reason):
    assert_refused(read, make_dicom(tmp_path, **changes), reason)


@both_readers
@pytest.mark.parametrize(
    "syntax, name",
    [
        ("1.2.840.10008.1.2.4.55", "JPEG Full Progression, Non-Hierarchical (Process 10 and 12)"),
        ("1.2.840.10008.1.2.4.99", "a private or unknown one"),
        ("1.2.276.0.7230010.9.99", "a private or unknown one"),
    ],
)
def test_unsupported_transfer_syntax_is_named_with_what_to_do(tmp_path, read, syntax, name):
    path = make_dicom(tmp_path, syntax=JPEGLosslessSV1)
    path.write_bytes(path.read_bytes().replace(JPEGLosslessSV1.encode(), syntax.encode()))
    assert_refused(read, path, f"its transfer syntax {syntax} ({name}) is not supported: convert it")


def short_lut(vr: str, bits: int = 16, entries: int = 4096) -> Dataset:
    """A LUT that declares more entries than it has."""
    item = lut(range(10), 0, bits, vr)
    item.LUTDescriptor = [entries, 0, bits]
    return item


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_modality_lut_shorter_than_declared_is_refused(tmp_path, vr):
    path = make_dicom(tmp_path, ModalityLUTSequence=[short_lut(vr)])
    assert_refused(read_dicom, path, "can't be applied")


def test_slope_that_is_not_a_number_is_refused(tmp_path):
    header = {"WindowCenter": 100, "WindowWidth": 50, "RescaleSlope": "nan", "RescaleIntercept": 0}
    with pydicom.config.disable_value_validation():
        assert_refused(read_dicom, make_dicom(tmp_path, **header), "can't be applied")


@four_kinds
@both_readers
@pytest.mark.parametrize("change", [1, 5])
def test_more_rows_than_pixels_are_refused(tmp_path, syntax, read, change):
    assert_refused(read, make_dicom(tmp_path, syntax=syntax, Rows=16 + change), "")


SHORTER = [{"Rows": 15}, {"Columns": 11}, {"Rows": 12, "Columns": 15}]


@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("changes", SHORTER)
def test_smaller_size_than_the_codestreams_is_refused(tmp_path, syntax, changes):
    assert_refused(
        read_stored, make_dicom(tmp_path, syntax=syntax, **changes), "the compressed image has 16 rows by 12 columns"
    )


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("changes", SHORTER)
def test_smaller_size_than_the_pixel_data_is_refused(tmp_path, syntax, changes):
    assert_refused(read_stored, make_dicom(tmp_path, syntax=syntax, **changes), "")


@pytest.mark.parametrize("shape", [(5, 3), (1, 1)])
def test_one_byte_of_padding_is_no_surplus(tmp_path, shape):
    pixels = ramp(8, shape, np.uint8)
    path = make_dicom(tmp_path, pixels, bits=8, PixelData=pixels.tobytes() + b"\0")
    np.testing.assert_array_equal(read_stored(path), pixels)


def test_transposed_size_is_refused_where_the_codestream_knows_better(tmp_path):
    path = make_dicom(tmp_path, syntax=JPEG2000Lossless, Rows=12, Columns=16)
    assert_refused(read_stored, path, "the compressed image has 16 rows by 12 columns, but the header says (12, 16)")


def silent_differences(path: Path, contents, expected: np.ndarray) -> list[int]:
    """Positions in ``contents`` of files that read without an error to something else than ``expected``."""
    wrong = []
    for position, content in enumerate(contents):
        path.write_bytes(content)
        try:
            stored = read_stored(path)
        except DicomError:
            continue
        if not np.array_equal(stored, expected):
            wrong.append(position)
    return wrong


@pytest.fixture
def quiet_pydicom(caplog):
    """Keep pydicom from logging a traceback for each of hundreds of broken files."""
    caplog.set_level(logging.CRITICAL + 1, logger="pydicom")


PIXEL_DATA_TAG, IMAGE_GROUP = b"\xe0\x7f\x10\x00", b"\x28\x00\x02\x00"  # as little endian writes (7FE0,0010), (0028,0002)


@four_kinds
def test_file_cut_in_its_pixels_is_never_read_in_part(tmp_path, syntax, quiet_pydicom):
    path = make_dicom(tmp_path, syntax=syntax)
    whole = path.read_bytes()
    cuts = [*range(whole.index(PIXEL_DATA_TAG), len(whole) - 12, 7), *range(len(whole) - 12, len(whole))]
    assert silent_differences(path, [whole], ramp()) == []
    assert silent_differences(path, [whole[:cut] for cut in cuts], ramp()) == []


def test_file_cut_in_its_header_is_refused(tmp_path):
    path = make_dicom(tmp_path)
    whole = path.read_bytes()
    image_group = whole.index(IMAGE_GROUP)
    for cut in [*range(0, image_group, 23), *range(image_group, whole.index(PIXEL_DATA_TAG))]:
        path.write_bytes(whole[:cut])
        assert_refused(read_stored, path, "")


@pytest.mark.parametrize("syntax", [*ENCODERS, *LOSSY_ENCODERS], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["cut", "cut and ended"])
def test_truncated_stream_is_refused(tmp_path, syntax, end):
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    encode = ENCODERS.get(syntax) or (lambda a, bits: LOSSY_ENCODERS[syntax](a))
    stream = encode(wave(bits), bits)
    for lost in (20, 60, len(stream) // 3):
        cut = stream[:-lost] + end
        path = make_dicom(tmp_path, wave(bits), syntax, bits, PixelData=encapsulate([cut + bytes(len(cut) % 2)]))
        assert_refused(read_stored, path, "fetch the file again")


def encoded(folder: Path, syntax) -> bytes:
    """The frame of `ramp` without the encapsulation."""
    if syntax in ENCODERS:
        return ENCODERS[syntax](ramp(), 12)
    data = pydicom.dcmread(make_dicom(folder, syntax=syntax)).PixelData
    return get_frame(data, 0, number_of_frames=1) if syntax == RLELossless else data


@four_kinds
def test_cut_pixel_data_in_a_whole_file_is_never_read_in_part(tmp_path, syntax, quiet_pydicom):
    frame = encoded(tmp_path, syntax)
    # Even lengths: the writer pads an odd one with a zero, which in raw data is a pixel's byte as good as any.
    cuts = [*range(2, len(frame) - 8, 8), len(frame) // 2 * 2 - 4, len(frame) // 2 * 2 - 2]
    wrapped = [encapsulate([frame[:cut]]) if syntax.is_encapsulated else frame[:cut] for cut in cuts]
    contents = [make_dicom(tmp_path, syntax=syntax, PixelData=data).read_bytes() for data in wrapped]
    assert silent_differences(tmp_path / "cut.dcm", contents, ramp()) == []


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1], ids=lambda uid: uid.keyword)
def test_file_whose_end_is_zeros_is_refused(tmp_path, syntax):
    path = make_dicom(tmp_path, syntax=syntax)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + b"\x00" * 100)
    assert_refused(read_stored, path, "")


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(DicomError("a/b.dcm", "broken")))
    assert (error.path, error.reason, str(error)) == (Path("a/b.dcm"), "broken", "a/b.dcm: broken")


# Real files


@needs_real_data
@pytest.mark.parametrize("name", ["10011/541722628", "10006/1864590858"])
def test_real_mammogram_matches_pydicom(name):
    """LINEAR over all 12 bits, MONOCHROME2; and SIGMOID of four windows, MONOCHROME1, 16 bits."""
    path = REAL / "rsna-sample" / "train_images" / f"{name}.dcm"
    dataset = pydicom.dcmread(path)
    thin = np.s_[::5, ::5]  # the decoders see the whole frame, the slow reference a part
    stored = pixel_array(dataset)[thin]
    expected = apply_voi_lut(apply_modality_lut(stored, dataset), dataset) / (2**dataset.BitsStored - 1)
    expected = 1 - expected if dataset.PhotometricInterpretation == "MONOCHROME1" else expected
    grey = read_dicom(path)
    assert (grey.min() >= 0, grey.max() <= 1) == (True, True)
    np.testing.assert_allclose(grey[thin], expected, atol=1e-6)
    assert len(np.unique(grey[thin])) > 1000


@needs_real_data
def test_small_real_files_match_a_second_decoder():
    """256 px, 8 bits, half JPEG 2000 and half JPEG Lossless."""
    paths = sorted((REAL / "rsna256" / "test_images").glob("*/*.dcm"))[:40]
    seen = set()
    for path in paths:
        np.testing.assert_array_equal(read_stored(path), pixel_array(path))
        seen.add(pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID)
    assert seen == {JPEG2000Lossless, JPEGLosslessSV1}
