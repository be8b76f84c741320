"""Facts about windows and VOI LUTs that are broken: they never cost an image, and a flag tells of them."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from tests.dicom.test_file import lut, make_dicom, ramp
from utils.dicom.file import open_dicom, read_dicom
from utils.dicom.window import apply_window
from utils.images.preprocessing import preprocess

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
IN_RANGE = ramp() / 4095
LINE = np.arange(4096)


def flags_of(path) -> tuple[str, ...]:
    with open_dicom(path) as file:
        return file.flags


def assert_shown(path, grey: np.ndarray, *flags: str) -> None:
    np.testing.assert_allclose(read_dicom(path), grey, atol=1e-6)
    assert flags_of(path) == flags


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize(
    "declared, held", [(16, 8), (16, 10), (16, 12), (14, 12), (16, 15), (8, 16), (0, 12), (17, 12), (2000, 12)]
)
def test_voi_lut_whose_entries_have_other_bits_than_declared_has_its_maximum_white(tmp_path, declared, held, vr):
    entries = LINE * (2**held - 1) // 4095
    path = make_dicom(tmp_path, VOILUTSequence=[lut(entries, 0, declared, vr)])
    assert_shown(path, entries[ramp()] / (2**held - 1), "voi_lut_rescaled")


def test_voi_lut_that_uses_its_highest_bit_is_as_declared(tmp_path):
    entries = LINE * 40_000 // 4095
    assert_shown(make_dicom(tmp_path, VOILUTSequence=[lut(entries, 0, 16)]), entries[ramp()] / 65_535)


def test_flags_of_the_header_are_in_the_manifest(tmp_path):
    path = make_dicom(tmp_path, VOILUTSequence=[lut(LINE, 0, 16)], WindowWidth=1)
    assert preprocess(path, 32, 24)[1]["flags"].split()[0] == "voi_lut_rescaled"


@pytest.mark.parametrize("entries", [[0] * 4096, [7] * 4096, [4095], []])
def test_voi_lut_that_shows_nothing_is_ignored(tmp_path, entries):
    broken = lut(entries, 0, 12)
    window = {"WindowCenter": 100, "WindowWidth": 50}
    assert_shown(make_dicom(tmp_path, VOILUTSequence=[broken]), IN_RANGE, "window_ignored")
    assert_shown(make_dicom(tmp_path, VOILUTSequence=[broken, lut(LINE[::-1], 0, 12)]), 1 - IN_RANGE, "window_ignored")
    path = make_dicom(tmp_path, VOILUTSequence=[broken], **window)
    assert_shown(path, apply_window(ramp(), 100, 50), "window_ignored")


@pytest.mark.parametrize("declared", [4097, 5000, 0])  # 0 stands for 65,536
def test_voi_lut_of_fewer_entries_than_declared_is_ignored(tmp_path, declared):
    cut = lut(LINE, 0, 12)
    cut.LUTDescriptor = [declared, 0, 12]
    assert_shown(make_dicom(tmp_path, VOILUTSequence=[cut]), IN_RANGE, "window_ignored")


@pytest.mark.parametrize("missing", ["LUTDescriptor", "LUTData"])
def test_voi_lut_without_a_part_is_ignored(tmp_path, missing):
    broken = lut(LINE, 0, 12)
    delattr(broken, missing)
    assert_shown(make_dicom(tmp_path, VOILUTSequence=[broken]), IN_RANGE, "window_ignored")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("vr, first", [("SS", -2048), ("US", 65_536 - 2048)])
def test_negative_first_value_of_a_voi_lut_is_read_whatever_its_vr(tmp_path, syntax, vr, first):
    pixels, item = ramp(dtype=np.int16, signed=True), lut(LINE, 0, 12)
    item["LUTDescriptor"] = pydicom.DataElement("LUTDescriptor", vr, [4096, first, 12])
    assert_shown(make_dicom(tmp_path, pixels, syntax, VOILUTSequence=[item]), (pixels + 2048) / 4095)


def test_voi_lut_of_8_bits_may_hold_two_entries_a_word(tmp_path):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 8])
    item.add_new("LUTData", "OW", (LINE // 16).astype(np.uint8).tobytes())
    assert_shown(make_dicom(tmp_path, VOILUTSequence=[item]), ramp() // 16 / 255)


UNUSABLE = [
    {"WindowCenter": 0, "WindowWidth": 0},
    {"WindowWidth": 0.5},
    {"WindowWidth": -100},
    {"WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"},
    {"WindowWidth": -1, "VOILUTFunction": "SIGMOID"},
    {"WindowWidth": 100, "VOILUTFunction": "CUBIC"},
    {"WindowWidth": "nan"},
    {"WindowWidth": "inf"},
    {"WindowCenter": "nan", "WindowWidth": 100},
    {"WindowCenter": "", "WindowWidth": 100},
    {"WindowWidth": ""},
]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless])
@pytest.mark.parametrize("changes", UNUSABLE, ids=str)
def test_unusable_window_gives_way_to_the_range(tmp_path, syntax, changes):
    with pydicom.config.disable_value_validation():
        path = make_dicom(tmp_path, syntax=syntax, **{"WindowCenter": 100} | changes)
    assert_shown(path, IN_RANGE, "window_ignored")
    assert preprocess(path, 8, 6)[0].max() > 200


@pytest.mark.parametrize(
    "centers, widths, function",
    [
        ([0, 300], [0, 200], "LINEAR"),
        ([9, 300], [0.5, 200], "LINEAR"),
        ([9, 9, 300], [-4, 0, 200], "SIGMOID"),
        ([9, 300], [0, 200], "LINEAR_EXACT"),
    ],
)
def test_next_usable_window_is_taken(tmp_path, centers, widths, function):
    path = make_dicom(tmp_path, WindowCenter=centers, WindowWidth=widths, VOILUTFunction=function)
    assert_shown(path, apply_window(ramp(), 300, 200, function), "window_ignored")


def test_window_that_is_text_gives_way_to_the_next(tmp_path):
    path = make_dicom(tmp_path, WindowCenter=[2048.5, 300], WindowWidth=[4096, 200])
    whole = path.read_bytes()
    assert whole.count(b"2048.5") == 1
    path.write_bytes(whole.replace(b"2048.5", b"20x8.5"))
    assert_shown(path, apply_window(ramp(), 300, 200), "window_ignored")


def test_fewer_widths_than_centers_pair_in_order(tmp_path):
    path = make_dicom(tmp_path, WindowCenter=[300, 5], WindowWidth=200)
    assert_shown(path, apply_window(ramp(), 300, 200))
