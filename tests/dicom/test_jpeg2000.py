"""Facts about cutting smaller pictures out of JPEG 2000 codestreams, against OpenJPEG's own discarding of resolutions."""

import io
import struct
from dataclasses import replace
from functools import cache

import imagecodecs
import numpy as np
import pytest
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from tests.dicom.test_file import make_dicom
from utils.dicom.file import DicomError, open_dicom, read_stored
from utils.dicom.jpeg2000 import (
    COD,
    EOC,
    QCD,
    SIZ,
    SOC,
    SOD,
    SOT,
    NotScalableError,
    Prefix,
    check_packets,
    declared_size,
    read_layout,
    shrink,
)

PLT = b"\xff\x58"  # packet lengths, told by the encoder itself (T.800 A.7.3)
SIZES = [(1, 1), (1, 300), (300, 1), (2, 3), (65, 63), (64, 64), (257, 129), (500, 700)]


def noise(shape: tuple[int, int], bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)


def smooth(shape: tuple[int, int], bits: int, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    wave = np.sin(x / 17 + seed) * np.cos(y / 23) + (x + y) / sum(shape)
    return ((wave + 1) / 4 * (2**bits - 1)).clip(0).astype(noise((1, 1), bits).dtype)


def mostly_zero(shape: tuple[int, int], bits: int, seed: int = 0) -> np.ndarray:
    """A few points and one block of noise: most code-blocks hold nothing."""
    picture = np.where(np.random.default_rng(seed).random(shape) < 0.002, noise(shape, bits, seed), 0)
    h, w = shape
    picture[h // 3 : h // 2, w // 3 : w // 2] = noise(shape, bits, seed)[h // 3 : h // 2, w // 3 : w // 2]
    return picture.astype(noise((1, 1), bits).dtype)


def constant(value):
    return lambda shape, bits, seed=0: np.full(shape, value(bits), noise((1, 1), bits).dtype)


CONTENTS = {
    "noise": noise,
    "smooth": smooth,
    "mostly_zero": mostly_zero,
    "zero": constant(lambda bits: 0),
    "mid_grey": constant(lambda bits: 2 ** (bits - 1)),  # every coefficient is zero
    "white": constant(lambda bits: 2**bits - 1),
}


def encode(pixels: np.ndarray, bits: int, resolutions: int = 6, reversible: bool = True) -> bytes:
    options = {"level": 0, "codecformat": "j2k", "numthreads": 1}
    return imagecodecs.jpeg2k_encode(pixels, bitspersample=bits, resolutions=resolutions, reversible=reversible, **options)


def encode_with_pillow(pixels: np.ndarray, **options) -> bytes:
    """8 or 16 bits, with more choices than imagecodecs gives."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000", no_jp2=True, **options)
    return buffer.getvalue()


def layout_of(codestream: bytes):
    return read_layout(Prefix(io.BytesIO(codestream).read))


def cut(codestream: bytes, discard: int) -> bytes:
    prefix = Prefix(io.BytesIO(codestream).read)
    return shrink(prefix, read_layout(prefix), discard)


def decode(codestream: bytes) -> np.ndarray:
    return imagecodecs.jpeg2k_decode(codestream, numthreads=1)


def reduced_by_openjpeg(codestream: bytes, discard: int) -> np.ndarray:
    """Decode at lower resolution by OpenJPEG's own means, which Pillow hands on."""
    image = Image.open(io.BytesIO(codestream))
    # Pillow rounds the size where the standard, and OpenJPEG in it, rounds up.
    image._size = tuple(-(-side >> discard) << discard for side in image.size)
    image.reduce = discard
    return np.asarray(image)


@cache
def unused_bits(bits: int) -> int:
    """How far this Pillow shifts values of so many bits to the left."""
    white = int(reduced_by_openjpeg(encode(np.full((4, 4), 2**bits - 1, np.uint16), bits), 0).max()) if bits > 8 else 255
    return white.bit_length() - bits


def assert_all_sizes_decode_right(codestream: bytes) -> int:
    """Compare every resolution with OpenJPEG's; give their number."""
    layout = layout_of(codestream)
    for discard in range(layout.levels + 1):
        expected = reduced_by_openjpeg(codestream, discard) >> unused_bits(layout.precision)
        assert expected.shape[::-1] == layout.size(discard)
        np.testing.assert_array_equal(decode(cut(codestream, discard)), expected, err_msg=f"{discard} discarded")
    return layout.levels + 1


def header_end(codestream: bytes) -> int:
    """Offset of the first packet."""
    return codestream.index(SOD, codestream.index(SOT)) + 2


def packet_lengths(codestream: bytes) -> list[int]:
    """Lengths of all packets, from the PLT segment of a codestream that has one."""
    start = codestream.index(PLT, codestream.index(SOT))
    length = int.from_bytes(codestream[start + 2 : start + 4], "big")
    lengths, value = [], 0
    for byte in codestream[start + 5 : start + 2 + length]:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            lengths.append(value)
            value = 0
    return lengths


# Every resolution is what a decoder makes that discards the others


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_every_resolution_equals_a_decoder_that_discards_the_others(shape, bits):
    pixels = noise(shape, bits)
    codestream = encode(pixels, bits)
    resolutions = assert_all_sizes_decode_right(codestream)
    assert resolutions == 6 or min(shape) < 300  # the encoder makes fewer of a small picture
    np.testing.assert_array_equal(decode(cut(codestream, 0)), pixels)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("bits", [8, 12])
def test_smooth_and_empty_pictures_decode_right(content, reversible, bits):
    """Of which many code-blocks are not in the packets, and some packets are empty."""
    assert assert_all_sizes_decode_right(encode(CONTENTS[content]((260, 301), bits), bits, reversible=reversible)) == 6


@pytest.mark.parametrize("resolutions", range(1, 8))
def test_any_number_of_resolutions_decodes_right(resolutions):
    pixels = noise((131, 150), 8)
    assert assert_all_sizes_decode_right(encode_with_pillow(pixels, num_resolutions=resolutions)) == resolutions


@pytest.mark.parametrize("size", [(16, 16), (16, 256), (256, 16), (32, 64), (64, 64)], ids=str)
def test_any_code_block_size_decodes_right(size):
    """16 x 16 gives tag trees of five levels, the others trees of unequal sides."""
    codestream = encode_with_pillow(mostly_zero((270, 210), 16), codeblock_size=size)
    assert layout_of(codestream).code_block in (size, size[::-1])
    assert assert_all_sizes_decode_right(codestream) == 6


@pytest.mark.parametrize("progression", ["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"])
def test_any_progression_of_one_layer_and_precinct_decodes_right(progression):
    codestream = encode_with_pillow(noise((90, 131), 16), progression=progression)
    assert layout_of(codestream).cod[1] == ["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"].index(progression)
    assert assert_all_sizes_decode_right(codestream) == 6


@pytest.mark.parametrize("ratio", [2, 20, 200])
@pytest.mark.parametrize("irreversible", [True, False])
def test_truncated_code_blocks_decode_right(ratio, irreversible):
    """One layer at a lower rate: passes are dropped, and with them whole code-blocks and packets."""
    codestream = encode_with_pillow(smooth((190, 250), 16), quality_layers=[ratio], irreversible=irreversible)
    assert assert_all_sizes_decode_right(codestream) == 6


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("options", [{}, {"compression_ratios": [3]}], ids=str)
def test_another_encoders_codestream_decodes_right(bits, options):
    assert assert_all_sizes_decode_right(encode_array(noise((33, 47), bits), **options)) == 6


def test_comment_is_no_hindrance():
    assert assert_all_sizes_decode_right(encode_with_pillow(noise((40, 50), 8), comment="of the technician")) > 3


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_signed_pictures_stay_signed(dtype):
    bits = 8 * np.dtype(dtype).itemsize
    pixels = (noise((97, 130), bits).astype(int) - 2 ** (bits - 1)).astype(dtype)
    codestream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True, numthreads=1)
    for discard in range(layout_of(codestream).levels + 1):
        values = decode(cut(codestream, discard))
        assert values.dtype == dtype
        # Pillow has no signed pictures: it puts them above zero.
        np.testing.assert_array_equal(values.astype(int) + 2 ** (bits - 1), reduced_by_openjpeg(codestream, discard))


def one_row(width: int, levels: int, empty: tuple[int, ...] = ()) -> bytes:
    """A codestream of one row, with more levels than the encoders here would make; those named by ``empty`` have empty packets.

    One row has no LH and HH bands, so each resolution's packet is built like that of a picture without levels.
    """
    sizes = [-(-width >> levels), *(-(-(width - (1 << n >> 1)) >> n) for n in range(levels, 0, -1))]  # T.800 equation B-15
    packets = []
    for band, size in enumerate(sizes):
        single = encode_with_pillow(noise((1, max(size, 1)), 8, band), num_resolutions=1)
        packets.append(b"\0" if band in empty or not size else single[header_end(single) : -len(EOC)])
    layout = layout_of(encode_with_pillow(noise((1, width), 8), num_resolutions=1))
    cod = layout.cod[:5] + bytes((levels,)) + layout.cod[6:]
    qcd = layout.qcd[:1] + layout.qcd[1:2] * (3 * levels + 1)
    tile_part = struct.pack(">HIBB", 0, 14 + len(b"".join(packets)), 0, 1)
    segments = [(SIZ, layout.siz), (COD, cod), (QCD, qcd), (SOT, tile_part)]
    header = b"".join(marker + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return SOC + header + SOD + b"".join(packets) + EOC


@pytest.mark.parametrize("width", [1, 2, 33, 500, 701])
@pytest.mark.parametrize("empty", [(), (0,), (1, 3), (0, 1, 2, 3, 4, 5)], ids=str)
def test_one_row_of_six_resolutions_decodes_right(width, empty):
    codestream = one_row(width, 5, empty)
    assert assert_all_sizes_decode_right(codestream) == 6
    assert len(np.unique(decode(codestream))) > min(width, 50) // 2 or len(empty) == 6  # a picture, not a blank


def random_codestream(random: np.random.Generator, seed: int) -> bytes:
    """A picture of 1 to 200 px a side, of any content, depth and kind that the two encoders allow."""
    height, width = shape = tuple(random.integers(1, 201, 2).tolist())
    content = CONTENTS[random.choice(list(CONTENTS), p=[0.4, 0.2, 0.3, 0.04, 0.03, 0.03])]
    resolutions, reversible = int(random.integers(1, 8)), bool(random.integers(2))
    if seed % 2:
        bits = int(random.integers(8, 17))
        return encode(content(shape, bits, seed), bits, resolutions, reversible)
    return encode_with_pillow(
        content(shape, int(random.choice([8, 16])), seed),
        num_resolutions=min(resolutions, min(shape).bit_length()),
        codeblock_size=tuple((2 ** random.integers(4, 7, 2)).tolist()),
        irreversible=not reversible,
        progression=str(random.choice(["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"])),
    )


def test_random_small_pictures_decode_right():
    random, bits, compared = np.random.default_rng(2024), set(), 0
    for seed in range(300):
        codestream = random_codestream(random, seed)
        bits.add(layout_of(codestream).precision)
        try:
            compared += assert_all_sizes_decode_right(codestream)
        except Exception as error:
            raise AssertionError(f"picture {seed}: {layout_of(codestream)}") from error
    assert compared > 800
    assert bits == set(range(8, 17))


# The codestream that is cut out


def test_result_is_a_codestream_of_the_smaller_picture():
    codestream = encode(noise((257, 129), 12), 12)
    whole = layout_of(codestream)
    for discard in range(whole.levels + 1):
        part = layout_of(cut(codestream, discard))
        assert (part.width, part.height) == (-(-129 // 2**discard), -(-257 // 2**discard))
        assert (part.precision, part.levels, part.code_block) == (12, whole.levels - discard, whole.code_block)
        assert declared_size(cut(codestream, discard)) == (part.height, part.width)


def test_cutting_twice_is_cutting_once():
    codestream = encode(noise((257, 129), 12), 12)
    assert cut(cut(codestream, 1), 2) == cut(codestream, 3)
    assert cut(cut(codestream, 2), 0) == cut(codestream, 2)


def test_tile_part_tells_its_length():
    part = cut(encode(noise((65, 63), 8), 8), 1)
    start = part.index(SOT)
    assert struct.unpack(">HIBB", part[start + 4 : start + 12]) == (0, len(part) - len(EOC) - start, 0, 1)


def test_packets_are_those_of_the_original():
    codestream = encode_with_pillow(noise((300, 200), 16), plt=True)
    plain = encode_with_pillow(noise((300, 200), 16))
    lengths, start = packet_lengths(codestream), header_end(plain)
    assert sum(lengths) == len(plain) - start - len(EOC)
    for discard in range(6):
        part = cut(plain, discard)
        assert part[header_end(part) : -len(EOC)] == plain[start : start + sum(lengths[: 6 - discard])]


# How much is read


class Counting:
    """Bytes to read, and how many have been."""

    def __init__(self, data: bytes):
        self._file, self.total = io.BytesIO(data), 0

    def __call__(self, size: int) -> bytes:
        part = self._file.read(size)
        self.total += len(part)
        return part


@cache
def large_codestream() -> tuple[bytes, list[int]]:
    """A noisy picture of 700 x 500, and the lengths of its packets."""
    pixels = noise((500, 700), 8)
    return encode_with_pillow(pixels), packet_lengths(encode_with_pillow(pixels, plt=True))


@pytest.mark.parametrize("discard", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("chunk", [1, 1000, 2**15])
def test_no_more_is_read_than_the_packets_needed_and_a_chunk(discard, chunk):
    plain, lengths = large_codestream()
    end = header_end(plain) + sum(lengths[: 6 - discard])
    count = Counting(plain)
    prefix = Prefix(count, chunk)
    shrink(prefix, read_layout(prefix), discard)
    assert count.total == len(prefix.data)
    assert end <= count.total < end + chunk
    assert chunk > 1 or count.total == end


def test_quarter_size_needs_few_of_the_bytes():
    codestream, _ = large_codestream()
    count = Counting(codestream)
    prefix = Prefix(count, 1)
    shrink(prefix, read_layout(prefix), 2)
    assert count.total < len(codestream) / 12


@pytest.mark.parametrize("discard", [0, 1, 2])
def test_data_cut_anywhere_before_the_last_packets_end_is_refused(discard):
    pixels = mostly_zero((90, 70), 8, seed=3)
    plain = encode_with_pillow(pixels, num_resolutions=4, codeblock_size=(16, 16))
    with_lengths = encode_with_pillow(pixels, num_resolutions=4, codeblock_size=(16, 16), plt=True)
    end = header_end(plain) + sum(packet_lengths(with_lengths)[: 4 - discard])
    expected = cut(plain, discard)
    for length in range(end):
        with pytest.raises(ValueError, match="truncated") as error:
            cut(plain[:length], discard)
        assert not isinstance(error.value, NotScalableError)  # the caller would take it for a whole one of another kind
    for rest in (b"", plain[end:], b"\xff" * 9, bytes(1000)):
        assert cut(plain[:end] + rest, discard) == expected


def test_prefix_grows_as_it_is_asked():
    count = Counting(bytes(range(100)))
    prefix = Prefix(count, chunk=10)
    assert prefix.peek(3) == bytes((0, 1, 2)) and count.total == 10
    assert prefix[9] == 9 and count.total == 10
    assert prefix[10] == 10 and count.total == 20
    assert bytes(prefix.require(35)) == bytes(range(35)) and count.total == 35
    prefix.skip(40)
    assert prefix[0] == 40
    assert prefix.peek(1000) == bytes(range(40, 100))
    for ask in (lambda: prefix[60], lambda: prefix.require(61), lambda: prefix.skip(61)):
        with pytest.raises(ValueError, match="truncated"):
            ask()


# What is not of the simple kind

SIMPLE = encode_with_pillow(noise((131, 150), 8))
SIZ_AT, COD_AT, QCD_AT, SOT_AT = (SIMPLE.index(marker) for marker in (SIZ, COD, QCD, SOT))


def patched(offset: int, value: bytes) -> bytes:
    return SIMPLE[:offset] + value + SIMPLE[offset + len(value) :]


def with_segment(marker: int, body: bytes = b"\0\0\0", at: int = QCD_AT) -> bytes:
    return SIMPLE[:at] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + SIMPLE[at:]


NOT_SIMPLE = {
    "two layers": encode_with_pillow(noise((131, 150), 8), quality_layers=[20, 5]),
    "tiles": encode_with_pillow(noise((131, 150), 8), tile_size=(64, 64)),
    "precincts": encode_with_pillow(noise((131, 150), 8), precinct_size=(64, 64)),
    "packet lengths in the tile-part": encode_with_pillow(noise((131, 150), 8), plt=True),
    "colour": encode_with_pillow(np.dstack([noise((131, 150), 8)] * 3)),
    "two components": encode_with_pillow(np.dstack([noise((131, 150), 8)] * 2)),
    "tiny code-blocks": encode_with_pillow(noise((131, 150), 8), codeblock_size=(8, 8)),
    "picture off the origin": patched(SIZ_AT + 14, struct.pack(">I", 1)),
    "tile off the origin": patched(SIZ_AT + 34, struct.pack(">I", 1)),
    "narrow tile": patched(SIZ_AT + 22, struct.pack(">I", 149)),
    "low tile": patched(SIZ_AT + 26, struct.pack(">I", 130)),
    "no columns": patched(SIZ_AT + 6, struct.pack(">I", 0)),
    "no rows": patched(SIZ_AT + 10, struct.pack(">I", 0)),
    "subsampled across": patched(SIZ_AT + 41, b"\2"),
    "subsampled down": patched(SIZ_AT + 42, b"\2"),
    "precincts flagged": patched(COD_AT + 4, b"\1"),
    "SOP markers": patched(COD_AT + 4, b"\2"),
    "EPH markers": patched(COD_AT + 4, b"\4"),
    "many levels": patched(COD_AT + 9, b"\x21"),
    "more levels than quantization steps": patched(COD_AT + 9, b"\6"),
    "arithmetic coding bypass": patched(COD_AT + 12, b"\1"),
    "termination on each pass": patched(COD_AT + 12, b"\4"),
    "another tile first": patched(SOT_AT + 4, b"\0\1"),
    "a later tile-part": patched(SOT_AT + 10, b"\1"),
    "two tile-parts": patched(SOT_AT + 11, b"\2"),
    "unknown number of tile-parts": patched(SOT_AT + 11, b"\0"),
    "CAP (high throughput)": with_segment(0x50),
    "COC": with_segment(0x53),
    "QCC": with_segment(0x5D),
    "RGN": with_segment(0x5E),
    "POC": with_segment(0x5F),
    "PPM": with_segment(0x60),
    "unknown marker": with_segment(0x30),
    "second COD": with_segment(0x52, SIMPLE[COD_AT + 4 : QCD_AT]),
    "PPT in the tile-part": with_segment(0x61, at=SOT_AT + 12),
    "no COD": SIMPLE[:COD_AT] + SIMPLE[QCD_AT:],
    "no QCD": SIMPLE[:QCD_AT] + SIMPLE[SIMPLE.index(b"\xff\x64") :],
}


def test_the_simple_kind_is_taken_with_comments_and_lengths_of_tile_parts():
    layout = layout_of(SIMPLE)
    assert (layout.width, layout.height, layout.levels) == (150, 131, 5)
    for marker in (0x64, 0x55, 0x57):  # COM, TLM, PLM
        assert layout_of(with_segment(marker)) == replace(layout, sod=layout.sod + 7)


@pytest.mark.parametrize("kind", NOT_SIMPLE)
def test_other_kinds_are_left_to_a_full_decoder(kind):
    with pytest.raises(NotScalableError):
        layout_of(NOT_SIMPLE[kind])


@pytest.mark.parametrize("shape", [(8, 2**15 + 1), (2**15 + 1, 8), (4, 70_000)])
def test_a_side_longer_than_a_precinct_is_left_to_a_full_decoder(shape):
    """The default precinct is 2^15 on a side (T.800 A.6.1), so this picture's larger resolutions have two packets or more."""
    with pytest.raises(NotScalableError):
        layout_of(encode_with_pillow(noise(shape, 8), num_resolutions=3))


@pytest.mark.parametrize("shape", [(8, 2**15), (2**15, 8)])
def test_a_side_as_long_as_a_precinct_decodes_right(shape):
    assert assert_all_sizes_decode_right(encode_with_pillow(mostly_zero(shape, 8), num_resolutions=3)) == 3


# What is broken


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 10])
def test_cut_main_header_is_refused(length):
    with pytest.raises(ValueError, match="truncated"):
        layout_of(SIMPLE[:length])


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xc3" * 30, bytes(100), b"no codestream at all" * 9])
def test_what_is_no_codestream_is_refused(content):
    with pytest.raises(ValueError, match="does not start with SOC"):
        layout_of(content)
    with pytest.raises(ValueError, match="does not start with SOC"):
        declared_size(content)


def test_declared_size_is_that_of_the_picture_area():
    assert declared_size(SIMPLE) == (131, 150)
    assert declared_size(patched(SIZ_AT + 14, struct.pack(">II", 30, 20))) == (111, 120)
    with pytest.raises(ValueError):
        declared_size(SIMPLE[:23])


def with_packets(packets: bytes) -> Prefix:
    """The main header of the simple kind, and other packets, read in small steps."""
    return Prefix(io.BytesIO(SIMPLE[: header_end(SIMPLE)] + packets).read, chunk=16)


@pytest.mark.parametrize(
    "packets",
    [
        b"\xc0" + bytes(10**4),  # its first code-block lacks bit-planes without end
        b"\xe0" + b"\xff" * 10**4 + b"\x55" * 2 * 10**4,  # the length of its length grows without end
    ],
    ids=["bit-planes", "length"],
)
def test_endless_number_in_a_packet_header_is_refused_at_once(packets):
    prefix = with_packets(packets)
    with pytest.raises(ValueError, match="broken"):
        shrink(prefix, read_layout(prefix), 3)
    assert len(prefix.data) < header_end(SIMPLE) + 200


def test_packet_header_that_ends_in_ff_is_followed_by_a_stuffed_byte():
    """One code-block: included, 6 bit-planes missing, 1 pass, 8 bits of length, of which all are ones (T.800 B.10.1)."""
    packet = bytes((0b11000000, 0b10111110, 0xFF, 0)) + bytes(range(255))
    prefix = with_packets(packet + b"the next packet")
    part = shrink(prefix, read_layout(prefix), 5)
    assert part[header_end(part) : -len(EOC)] == packet


def test_garbage_packets_are_cut_or_refused_but_never_read_beyond_the_data():
    random, outcomes = np.random.default_rng(5), set()
    for _ in range(200):
        packets = random.integers(0, 256, random.integers(1, 400)).astype(np.uint8).tobytes()
        prefix = with_packets(packets)
        layout = read_layout(prefix)
        try:
            part = shrink(prefix, layout, int(random.integers(0, 6)))
        except ValueError as error:
            assert any(reason in str(error) for reason in ("truncated", "broken", "marker"))
            outcomes.add("refused")
        else:
            assert part[header_end(part) : -len(EOC)] == packets[: len(part) - header_end(part) - len(EOC)]
            outcomes.add("cut")
    assert outcomes == {"refused", "cut"}


# In a file


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 0)], ids=str)
@pytest.mark.parametrize("boxed", [True, False])
def test_resolutions_of_a_file_can_be_asked_for_in_any_order(tmp_path, order, boxed):
    pixels = noise((256, 250), 16)  # half of it is more than is read at once
    codestream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="jp2" if boxed else "j2k", reversible=True)
    window = {"WindowCenter": 2**15, "WindowWidth": 2**16}
    path = make_dicom(tmp_path, pixels, JPEG2000Lossless, 16, PixelData=encapsulate([codestream]), **window)
    with open_dicom(path) as file:
        for discard in order:
            expected = reduced_by_openjpeg(codestream, discard)
            np.testing.assert_array_equal(file.stored(discard), expected, err_msg=f"{discard} discarded")


WINDOW = {"WindowCenter": 2**11, "WindowWidth": 2**12}
PICTURE = smooth((300, 250), 12) + noise((300, 250), 5)
RAW = encode(PICTURE, 12)
BOXED = imagecodecs.jpeg2k_encode(PICTURE, level=0, codecformat="jp2", reversible=True, bitspersample=12, numthreads=1)


def file_of(folder, frame: bytes, pixels: np.ndarray = PICTURE, **options):
    """A file of a frame, which is padded to an even length; ``options`` of pydicom's `encapsulate`."""
    data = encapsulate([frame + bytes(len(frame) % 2)], **options)
    return make_dicom(folder, pixels, JPEG2000Lossless, min(12, 8 * pixels.itemsize), PixelData=data, **WINDOW)


def outcome(path, discard: int) -> str:
    """ "refused", or "accepted" where the quarter size, or the complete picture, can be read."""
    try:
        with open_dicom(path) as file:
            assert file.levels
            file.stored(discard)
    except DicomError as error:
        assert "fetch the file again" in error.reason
        return "refused"
    return "accepted"


def with_tile_part_length(codestream: bytes, length: int) -> bytes:
    at = codestream.index(SOT) + 6
    return codestream[:at] + struct.pack(">I", length) + codestream[at + 4 :]


def with_box(length: int, long: int | None = None, codestream: bytes = RAW) -> bytes:
    """A JP2 file whose codestream box tells a length, if need be in 64 bits."""
    head = BOXED[: BOXED.index(b"jp2c") - 4]
    return head + struct.pack(">I", length) + b"jp2c" + (b"" if long is None else struct.pack(">Q", long)) + codestream


@pytest.mark.parametrize("codestream", [RAW, BOXED], ids=["raw", "boxed"])
@pytest.mark.parametrize("change", [-300, -7, -2, 2, 7, 300])
@pytest.mark.parametrize("place", ["early", "middle", "late"])
@pytest.mark.parametrize("follows", [True, False], ids=["fragment's length follows", "fragment's length stays"])
def test_lost_and_doubled_bytes_are_refused_at_every_size(tmp_path, codestream, change, place, follows):
    start, end = header_end(codestream), len(codestream) - 310
    at = {"early": start + 5, "middle": (start + end) // 2, "late": end}[place]
    frame = codestream[:at] + codestream[at - change if change < 0 else at - min(change, at) :]
    frame = codestream[: at + change] + codestream[at:] if change > 0 else frame
    path = file_of(tmp_path, frame)
    if not follows:
        content, was = path.read_bytes(), len(codestream) + len(codestream) % 2
        length = struct.pack("<I", len(frame) + len(frame) % 2)
        path.write_bytes(content.replace(b"\xfe\xff\x00\xe0" + length, b"\xfe\xff\x00\xe0" + struct.pack("<I", was)))
    assert outcome(path, 2) == outcome(path, 0) == "refused"


@pytest.mark.parametrize(
    "frame",
    [
        RAW[: len(RAW) // 2] + RAW,
        RAW[: len(RAW) // 2] + RAW[: len(RAW) // 2] + RAW[len(RAW) // 2 :],
        RAW + RAW[-20:],
        with_tile_part_length(RAW, 20),
        with_tile_part_length(RAW, 3),
        with_tile_part_length(RAW, 2**32 - 1),
        with_box(len(RAW) + 10),
        with_box(len(RAW) + 6),
        with_box(1, len(RAW) + 18),
        with_box(1, 2**63),
        with_box(4),
        RAW[:-2],
        RAW + b"rubbish",
    ],
    ids=lambda frame: f"{len(frame) - len(RAW)} bytes more",
)
def test_lengths_that_do_not_agree_are_refused_at_every_size(tmp_path, frame):
    path = file_of(tmp_path, frame)
    for discard in (0, 2):
        with pytest.raises(DicomError), open_dicom(path) as file:
            file.stored(discard)


@pytest.mark.parametrize(
    "frame",
    [
        RAW + bytes(1),
        RAW + bytes(60),
        with_tile_part_length(RAW, 0),
        with_tile_part_length(RAW, 0) + bytes(8),
        with_box(0),
        with_box(0, codestream=RAW + bytes(5)),
        with_box(len(RAW) + 8),
        with_box(len(RAW) + 8, codestream=with_tile_part_length(RAW, 0)),
        with_box(1, len(RAW) + 16),
        with_box(len(RAW) + 8) + bytes(3),
        with_box(len(RAW) + 8) + b"\0\0\0\x0cxml more",
        RAW[: RAW.index(SOT)] + b"\xff\x64\0\x04\0\1" + RAW[RAW.index(SOT) :],
        RAW[: RAW.index(SOT)] + b"\xff\x64\0\x34" + bytes(50) + RAW[RAW.index(SOT) :],
    ],
    ids=lambda frame: f"{len(frame) - len(RAW)} bytes more",
)
@pytest.mark.parametrize("options", [{}, {"has_bot": False}, {"fragments_per_frame": 3}, {"fragments_per_frame": 40}], ids=str)
def test_legal_variations_are_accepted_at_every_size(tmp_path, frame, options):
    path = file_of(tmp_path, frame, **options)
    with open_dicom(path) as file:
        np.testing.assert_array_equal(file.stored(2), reduced_by_openjpeg(RAW, 2) >> unused_bits(12))
        np.testing.assert_array_equal(file.stored(0), PICTURE)


def test_elements_behind_the_pixel_data_and_a_cut_sequence_end_are_accepted(tmp_path):
    content = file_of(tmp_path, RAW).read_bytes()
    padding = b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0\0\0\0\0"
    for changed in (content + padding, content[:-8], content[:-3]):
        (tmp_path / "image.dcm").write_bytes(changed)
        assert outcome(tmp_path / "image.dcm", 2) == outcome(tmp_path / "image.dcm", 0) == "accepted"


def test_several_tile_parts_are_accepted_and_missed_where_bytes_are_lost(tmp_path):
    pixels = noise((131, 150), 8)
    codestream = encode_with_pillow(pixels, tile_size=(64, 64))
    assert codestream.count(SOT) == 9
    np.testing.assert_array_equal(read_stored(file_of(tmp_path, codestream, pixels)), pixels)
    at = codestream.index(SOT, codestream.index(SOT) + 2)  # of the second tile-part
    for broken in (codestream[: at - 4] + codestream[at:], codestream[:at] + codestream[at - 4 :]):
        with pytest.raises(DicomError, match="4 bytes|less|more"):
            read_stored(file_of(tmp_path, broken, pixels))


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("boxed", [True, False])
def test_no_packet_of_an_encoder_looks_damaged(content, boxed):
    for bits in (8, 12, 16):
        codestream = encode(CONTENTS[content]((150, 131), bits), bits)
        check_packets(codestream[header_end(codestream) : -len(EOC)])


@pytest.mark.parametrize(
    "damage", [bytes(32), bytes(200), b"\xff\xd9", b"\xff\x90"], ids=["32 zeros", "200 zeros", "EOC", "SOT"]
)
def test_hole_or_marker_among_the_packets_needed_is_refused(tmp_path, damage):
    at = header_end(RAW) + 300  # in those of the quarter size, and behind their headers
    path = file_of(tmp_path, RAW[:at] + damage + RAW[at + len(damage) :])
    assert outcome(path, 2) == outcome(path, 0) == "refused"


def test_bytes_lost_early_and_made_up_with_zeros_at_the_end_are_refused(tmp_path):
    at = header_end(RAW) + 300
    path = file_of(tmp_path, RAW[:at] + RAW[at + 64 : -2] + bytes(64) + EOC)
    assert outcome(path, 2) == outcome(path, 0) == "refused"


def test_checks_read_no_more_than_the_ends_of_the_file(tmp_path):
    path = file_of(tmp_path, RAW, fragments_per_frame=5)
    with open_dicom(path) as file:
        file.stored(3)
        assert file.bytes_read < 0.7 * file.bytes_total
        file.stored(0)
        assert file.bytes_read == file.bytes_total
