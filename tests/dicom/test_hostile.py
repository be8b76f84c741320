"""Facts about broken and hostile files, and decoders that die: each costs its own image, told by a reason, and no other."""

import ast
import errno
import functools
import multiprocessing
import os
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.dicom.test_file import ENCODERS, IMAGE_GROUP, J2K, LOSSY_ENCODERS, PIXEL_DATA_TAG, lut, make_dicom
from utils.core.isolation import IsolatedPool, IsolationError, Limits
from utils.core.parallel import map_items
from utils.dicom.file import DicomError, read_dicom
from utils.dicom.jpeg2000 import SIZ, SOD, SOT
from utils.images.cache import build_cache
from utils.images.cached import load_picture
from utils.images.preprocessing import preprocess
from utils.images.settings import CacheSettings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")

SETTINGS = CacheSettings(image_height=32, image_width=24)
LARGE = (320, 200)  # JPEG 2000 is never decoded in full
SMALL = (120, 90)  # it is first decoded in full, then at half size
SYNTAXES = {
    "jpeg": JPEGExtended12Bit,
    "jpeg_ls": JPEGLSLossless,
    "boxed": JPEG2000Lossless,
    "raw": JPEG2000Lossless,
    "lossless": JPEGLosslessSV1,
    "rle": RLELossless,
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big_endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
} | ({"htj2k": HTJ2KLossless} if HTJ2KLossless in ENCODERS else {})
# Damaged where the pixels, or those of the small picture, don't show it; and the whole file that they then equal.
HARMLESS = {
    "cut before the sequence's end, JPEG": "lossless",
    "cut in the sequence's end, JPEG": "lossless",
    "cut in the sequence's end, JPEG 2000": "boxed",
    "cut before the sequence's end, JPEG 2000": "boxed",
    "length of raw pixels 4 GB": "explicit",
}
PIXELS_AT = 12  # bytes of the pixel data's tag, VR and length


def breast(shape: tuple[int, int]) -> np.ndarray:
    """Half an ellipse of 12-bit tissue on dark air."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = (2 * y / shape[0] - 1) ** 2 + (x / shape[1] / 0.8) ** 2
    texture = np.random.default_rng(0).integers(0, 40, shape)
    return (np.where(inside < 1, 3000 - 1500 * inside, 20) + texture).astype(np.uint16)


def jpeg2000(pixels: np.ndarray, codecformat: str) -> bytes:
    return imagecodecs.jpeg2k_encode(pixels, bitspersample=12, numthreads=1, **J2K | {"codecformat": codecformat})


def mammogram(folder: Path, kind: str, shape: tuple[int, int] = LARGE, **changes) -> bytes:
    """A whole file of a kind; ``changes`` set header elements."""
    pixels = breast(shape)
    header = {"WindowCenter": 2048, "WindowWidth": 4096} | changes
    if kind in ("boxed", "raw"):
        data = encapsulate([jpeg2000(pixels, "jp2" if kind == "boxed" else "j2k")])
        header = {"PixelData": data} | header
    if kind == "jpeg":
        header = {"PixelData": encapsulate([LOSSY_ENCODERS[JPEGExtended12Bit](pixels)])} | header
    return make_dicom(folder, pixels, SYNTAXES[kind], **header).read_bytes()


def with_frame(folder: Path, kind: str, frame: bytes, **changes) -> bytes:
    """A file whose header is as it should be around some other compressed frame."""
    return mammogram(folder, kind, PixelData=encapsulate([frame + b"\0" * (len(frame) % 2)]), **changes)


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    return content[:offset] + value + content[offset + len(value) :]


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1 and len(old) == len(new)
    return content.replace(old, new)


def cuts(whole: dict[str, bytes]) -> dict[str, bytes]:
    """Files cut at every kind of place."""
    pixels = {kind: content.index(PIXEL_DATA_TAG) for kind, content in whole.items() if PIXEL_DATA_TAG in content}
    frame = {kind: pixels[kind] + PIXELS_AT + 16 for kind in ("boxed", "raw", "lossless", "rle")}  # behind table and item
    boxed, raw, lossless = whole["boxed"], whole["raw"], whole["lossless"]
    packets = raw.index(SOD, raw.index(SOT)) + 2
    scan = lossless.index(b"\xff\xda", frame["lossless"])
    places = {
        "nothing": ("boxed", 0),
        "in the preamble": ("boxed", 64),
        "behind the preamble": ("boxed", 128),
        "in the magic": ("boxed", 130),
        "in the meta header's length": ("boxed", 142),
        "in the meta header": ("boxed", 200),
        "in an element's tag": ("boxed", boxed.index(IMAGE_GROUP) + 2),
        "in an element's length": ("boxed", boxed.index(IMAGE_GROUP) + 7),
        "in an element's value": ("boxed", boxed.index(IMAGE_GROUP) + 9),
        "between two elements": ("boxed", boxed.index(IMAGE_GROUP) + 10),
        "before the pixel data": ("boxed", pixels["boxed"]),
        "in the pixel data's tag": ("boxed", pixels["boxed"] + 2),
        "in the pixel data's VR": ("boxed", pixels["boxed"] + 5),
        "in the pixel data's length": ("boxed", pixels["boxed"] + 10),
        "before the offset table": ("boxed", pixels["boxed"] + 12),
        "in the offset table": ("boxed", pixels["boxed"] + 18),
        "before the fragment": ("boxed", pixels["boxed"] + 20),
        "in the fragment's tag": ("boxed", pixels["boxed"] + 22),
        "in the fragment's length": ("boxed", pixels["boxed"] + 26),
        "behind the fragment's length": ("boxed", frame["boxed"]),
        "in the signature box": ("boxed", frame["boxed"] + 6),
        "in the file type box": ("boxed", frame["boxed"] + 17),
        "in the header box": ("boxed", boxed.index(b"ihdr") + 9),
        "in the codestream box's head": ("boxed", boxed.index(b"jp2c") + 2),
        "in SIZ": ("raw", frame["raw"] + 20),
        "in COD": ("raw", raw.index(b"\xff\x52") + 6),
        "in SOT": ("raw", raw.index(SOT) + 5),
        "before the first packet": ("raw", packets),
        "in a packet's head": ("raw", packets + 1),
        "in a packet's body": ("raw", packets + 30),
        "in the higher resolutions": ("raw", len(raw) - 1000),
        "in the last packet": ("boxed", len(boxed) - 30),
        "in JPEG's SOI": ("lossless", frame["lossless"] + 1),
        "in JPEG's SOF": ("lossless", frame["lossless"] + 8),
        "in JPEG's scan header": ("lossless", scan + 3),
        "in JPEG's scan": ("lossless", scan + 5000),
        "before JPEG's end marker": ("lossless", len(lossless) - 12),
        "in RLE's table": ("rle", frame["rle"] + 20),
        "in RLE's segment": ("rle", frame["rle"] + 5000),
        "before the sequence's end, JPEG": ("lossless", len(lossless) - 8),
        "in the sequence's end, JPEG": ("lossless", len(lossless) - 3),
        "before the sequence's end, JPEG 2000": ("boxed", len(boxed) - 8),
        "in the sequence's end, JPEG 2000": ("boxed", len(boxed) - 3),
        "in raw pixels": ("explicit", pixels["explicit"] + 5000),
        "before the last raw pixel": ("explicit", len(whole["explicit"]) - 1),
        "in implicit pixels": ("implicit", len(whole["implicit"]) - 3000),
        "in big endian pixels": ("big_endian", len(whole["big_endian"]) - 3000),
        "in deflated data": ("deflated", len(whole["deflated"]) - 3000),
    }
    return {f"cut {place}": whole[kind][:length] for place, (kind, length) in places.items()}


def wrong_lengths(whole: dict[str, bytes]) -> dict[str, bytes]:
    boxed, lossless, explicit = whole["boxed"], whole["lossless"], whole["explicit"]
    table, fragment = (boxed.index(PIXEL_DATA_TAG) + offset for offset in (PIXELS_AT + 4, PIXELS_AT + 12))
    rows, box = explicit.index(b"\x28\x00\x10\x00US"), boxed.index(b"jp2c") - 4
    length = {kind: whole[kind].index(PIXEL_DATA_TAG) + 8 for kind in ("boxed", "explicit", "rle")}
    return {
        "length of Rows 0": patched(explicit, rows + 6, b"\0\0"),
        "length of Rows 1": patched(explicit, rows + 6, b"\1\0"),
        "length of Rows 65534": patched(explicit, rows + 6, b"\xfe\xff"),
        "length of raw pixels 0": patched(explicit, length["explicit"], bytes(4)),
        "length of raw pixels too small": patched(explicit, length["explicit"], struct.pack("<I", 1000)),
        "length of raw pixels 4 GB": patched(explicit, length["explicit"], b"\xfe\xff\xff\xff"),
        "length of raw pixels undefined": patched(explicit, length["explicit"], b"\xff\xff\xff\xff"),
        "length of compressed pixels defined": patched(boxed, length["boxed"], struct.pack("<I", 1000)),
        "length of RLE pixels defined": patched(whole["rle"], length["rle"], struct.pack("<I", 1000)),
        "offset table 4 GB": patched(boxed, table, b"\xfe\xff\xff\xff"),
        "offset table swallows the fragment": patched(boxed, table, struct.pack("<I", 5000)),
        "fragment 4 GB": patched(boxed, fragment + 4, b"\xfe\xff\xff\xff"),
        "fragment 0": patched(boxed, fragment + 4, bytes(4)),
        "fragment too long": patched(boxed, fragment + 4, struct.pack("<I", len(boxed))),
        "fragment too short": patched(boxed, fragment + 4, struct.pack("<I", 200)),
        "JPEG fragment too short": patched(lossless, lossless.index(PIXEL_DATA_TAG) + PIXELS_AT + 12, struct.pack("<I", 200)),
        "codestream box ends in its own head": patched(boxed, box, struct.pack(">I", 4)),
        "codestream box 1 byte": patched(boxed, box, struct.pack(">I", 9)),
        "file type box 4 GB": patched(boxed, boxed.index(b"ftyp") - 4, b"\xff\xff\xff\xff"),
        "file type box of 64 bits": patched(boxed, boxed.index(b"ftyp") - 4, b"\0\0\0\1ftyp" + b"\xff" * 8),
    }


def wrong_frames(folder: Path) -> dict[str, bytes]:
    pixels, random = breast(LARGE), np.random.default_rng(1)
    raw, lossless = jpeg2000(pixels, "j2k"), ENCODERS[JPEGLosslessSV1](pixels, 12)
    siz, sof = raw.index(SIZ), lossless.index(b"\xff\xc3")
    garbage = random.integers(0, 256, 5000).astype(np.uint8).tobytes()
    deep = imagecodecs.jpeg2k_encode(pixels.astype(np.uint32) << 13, bitspersample=25, numthreads=1, **J2K)
    colour = np.dstack([pixels >> 4] * 3).astype(np.uint8)
    return {
        "JPEG Lossless called JPEG 2000": with_frame(folder, "raw", lossless),
        "JPEG 2000 called JPEG Lossless": with_frame(folder, "lossless", raw),
        "JPEG 2000 called RLE": with_frame(folder, "rle", raw),
        "raw pixels in a fragment": with_frame(folder, "raw", pixels.tobytes()),
        "garbage called JPEG 2000": with_frame(folder, "raw", garbage),
        "garbage called JPEG Lossless": with_frame(folder, "lossless", garbage),
        "garbage called RLE": with_frame(folder, "rle", garbage),
        "no frame": mammogram(folder, "raw", PixelData=encapsulate([b"\0\0"])),
        "zeros": with_frame(folder, "raw", bytes(5000)),
        "codestream of 60,000 x 60,000": with_frame(folder, "raw", patched(raw, siz + 6, struct.pack(">II", 60_000, 60_000))),
        "tile and codestream of 60,000 x 60,000": with_frame(
            folder,
            "raw",
            patched(patched(raw, siz + 6, struct.pack(">II", 60_000, 60_000)), siz + 22, struct.pack(">II", 60_000, 60_000)),
        ),
        "JPEG of 60,000 x 60,000": with_frame(
            folder, "lossless", patched(lossless, sof + 5, struct.pack(">HH", 60_000, 60_000))
        ),
        "codestream of 32 columns more": with_frame(folder, "raw", jpeg2000(breast((320, 232)), "j2k")),
        "codestream in colour": with_frame(folder, "raw", imagecodecs.jpeg2k_encode(colour, numthreads=1, **J2K)),
        "JPEG in colour": with_frame(folder, "lossless", imagecodecs.jpeg_encode(colour, lossless=True, predictor=1)),
        "codestream of 25 bits": with_frame(folder, "raw", deep),
        "compressed data called raw": replaced(
            mammogram(folder, "raw"), JPEG2000Lossless.encode(), ExplicitVRLittleEndian.ljust(22, "\0").encode()
        ),
    }


def wrong_headers(folder: Path) -> dict[str, bytes]:
    explicit, boxed = mammogram(folder, "explicit"), mammogram(folder, "boxed")
    return {
        "no rows": mammogram(folder, "boxed", Rows=0),
        "no columns": mammogram(folder, "explicit", Columns=0),
        "60,000 x 60,000": mammogram(folder, "boxed", Rows=60_000, Columns=60_000),
        "60,000 x 60,000, raw": mammogram(folder, "explicit", Rows=60_000, Columns=60_000),
        "40,000 x 3,000": mammogram(folder, "boxed", Rows=40_000, Columns=3000),
        "40,000 x 3,000, JPEG": mammogram(folder, "lossless", Rows=40_000, Columns=3000),
        "40,000 x 3,000, RLE": mammogram(folder, "rle", Rows=40_000, Columns=3000),
        "40,000 x 3,000, raw": mammogram(folder, "explicit", Rows=40_000, Columns=3000),
        "two frames": mammogram(folder, "boxed", NumberOfFrames=2),
        "colour": mammogram(folder, "explicit", SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        "palette": mammogram(folder, "explicit", PhotometricInterpretation="PALETTE COLOR"),
        "no pixel data": mammogram(folder, "explicit", PixelData=None),
        "no pixel data, JPEG 2000": mammogram(folder, "boxed", PixelData=None),
        "empty pixel data": mammogram(folder, "explicit", PixelData=b""),
        "no size": mammogram(folder, "explicit", Rows=None),
        "float pixels' bits": mammogram(folder, "explicit", BitsAllocated=32),
        "unknown transfer syntax": replaced(boxed, JPEG2000Lossless.encode(), b"1.2.840.10008.1.2.4.99"),
        "no magic": patched(explicit, 128, b"MCID"),
        "deflated garbage": mammogram(folder, "deflated")[:400] + bytes(500),
    }


def no_dicoms() -> dict[str, bytes]:
    picture = imagecodecs.png_encode(breast(SMALL))
    return {
        "text": b"not found\n" * 100,
        "all zeros": bytes(10_000),
        "all ones": b"\xff" * 10_000,
        "random": np.random.default_rng(2).integers(0, 256, 10_000).astype(np.uint8).tobytes(),
        "PNG": picture,
        "bare codestream": jpeg2000(breast(SMALL), "j2k"),
        "magic and no more": bytes(128) + b"DICM",
    }


def make_folder(path: Path) -> None:
    path.mkdir()


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere.dcm"))


def make_looping_link(path: Path) -> None:
    path.symlink_to(path)


SPECIAL = {
    "folder": make_folder,
    "dangling link": make_dangling_link,
    "link to itself": make_looping_link,
    "pipe": os.mkfifo,
    "missing": lambda path: None,
}


@functools.cache
def contents() -> dict[str, dict[str, bytes]]:
    """Name and content of the files of each group."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = {kind: mammogram(folder, kind) for kind in SYNTAXES}
        groups = {"cut": cuts(whole), "wrong length": wrong_lengths(whole), "wrong frame": wrong_frames(folder)}
        return groups | {"wrong header": wrong_headers(folder), "no DICOM": no_dicoms(), "whole": whole}


def failures_of(group: str, check) -> dict[str, str]:
    """What ``check(name, content)`` said of the files of a group, where it said anything."""
    said = {name: check(name, content) for name, content in contents()[group].items()}
    return {name: text for name, text in said.items() if text}


# One bad file, one row


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A cache of all these files and whole ones among them: its folder, each file's path, and the manifest by file name."""
    data, cache_dir = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("cache")
    paths, makers = (
        {},
        SPECIAL
        | {
            (group, name): functools.partial(Path.write_bytes, data=content)
            for group, members in contents().items()
            for name, content in members.items()
        },
    )
    for number, (key, make) in enumerate(makers.items()):
        paths[key] = data / "train_images" / str(number % 7) / f"{number}.dcm"
        paths[key].parent.mkdir(parents=True, exist_ok=True)
        make(paths[key])
    images = pd.DataFrame({"image_id": [p.stem for p in paths.values()], "patient_id": [p.parent.name for p in paths.values()]})
    manifest = build_cache(images, data, "train", cache_dir, SETTINGS, num_workers=2)
    assert manifest.image_id.tolist() == images.image_id.tolist()  # one row each, in order
    return cache_dir, paths, dict(zip(paths, manifest.to_dict("records"), strict=True))


def test_whole_files_among_broken_ones_get_their_pictures(built):
    cache_dir, paths, rows = built
    for kind in SYNTAXES:
        path, row = paths["whole", kind], rows["whole", kind]
        expected, description = preprocess(path, *SETTINGS.arguments)
        assert row["error"] == "", kind
        assert row["codec"] == description["codec"]
        np.testing.assert_array_equal(load_picture(cache_dir, "train", path.stem), expected, err_msg=kind)
        assert expected.std() > 20


def accused(key, built) -> str:
    """Say what is wrong with the row of a broken file: it must have no picture, and a reason that names the file."""
    cache_dir, paths, rows = built
    path, row = paths[key], rows[key]
    if (cache_dir / "train" / f"{path.stem}.png").exists():
        return "it has a picture"
    if not row["error"].startswith("DicomError: ") or str(path) not in row["error"]:
        return f"its reason is {row['error']!r}"
    return "" if row["error"].split(path.name)[-1].strip(": ") else "it has no reason"


@pytest.mark.parametrize("group", ["cut", "wrong length", "wrong frame", "wrong header", "no DICOM"])
def test_broken_file_is_a_row_with_a_reason_that_names_it(built, group):
    assert failures_of(group, lambda name, _: "" if name in HARMLESS else accused((group, name), built)) == {}


@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_no_file_is_a_row_with_a_reason_that_names_it(built, name):
    assert accused(name, built) == ""


def test_damage_behind_the_pixels_changes_nothing_or_is_told(built):
    """A file that lost less than its picture may give that picture, but no other."""
    cache_dir, paths, rows = built
    for group, members in contents().items():
        for name in members.keys() & HARMLESS.keys():
            if not rows[group, name]["error"]:
                same = load_picture(cache_dir, "train", paths["whole", HARMLESS[name]].stem)
                np.testing.assert_array_equal(load_picture(cache_dir, "train", paths[group, name].stem), same, err_msg=name)
            else:
                assert accused((group, name), built) == ""


def refusal(read, path: Path) -> str:
    """Reason for which a file is refused; empty if it is read."""
    try:
        read(path)
    except DicomError as error:
        assert error.path == path
        return error.reason
    return ""


@pytest.mark.parametrize("group", ["cut", "wrong length", "wrong frame", "wrong header", "no DICOM"])
def test_full_picture_of_a_broken_file_is_refused(tmp_path, group):
    path = tmp_path / "broken.dcm"

    def check(name, content):
        path.write_bytes(content)
        try:
            return "" if refusal(read_dicom, path) or name in HARMLESS else "it is read"
        except Exception as error:
            return f"not a DicomError: {error!r}"

    assert failures_of(group, check) == {}


def test_reason_says_what_is_wrong(tmp_path):
    path = tmp_path / "broken.dcm"
    expected = {
        ("wrong frame", "codestream of 60,000 x 60,000"): "the compressed image has 60000 rows by 60000 columns",
        ("wrong frame", "JPEG of 60,000 x 60,000"): "the compressed image has 60000 rows by 60000 columns",
        ("wrong header", "60,000 x 60,000"): "60000 rows by 60000 columns is not a usable size",
        ("wrong header", "two frames"): "2 frames",
        ("wrong header", "no pixel data, JPEG 2000"): "no pixel data",
        ("wrong frame", "JPEG Lossless called JPEG 2000"): "does not start with SOC",
        ("cut", "cut in the last packet"): "the file ends 22 bytes before its pixel data does",
    }
    for (group, name), reason in expected.items():
        path.write_bytes(contents()[group][name])
        assert reason in refusal(lambda path: preprocess(path, 32, 24), path)


def test_file_that_may_not_be_read_is_a_row(tmp_path, monkeypatch):
    for name in ("secret", "public"):
        path = tmp_path / "train_images" / "patient" / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents()["whole"]["boxed"])

    def deny(path, mode):
        if Path(path).stem == "secret":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, mode)

    monkeypatch.setattr("utils.dicom.file.open", deny, raising=False)  # chmod keeps nothing from root
    images = pd.DataFrame({"image_id": ["secret", "public"], "patient_id": "patient"})
    errors = build_cache(images, tmp_path, "train", tmp_path / "cache", SETTINGS).error.tolist()
    assert "secret.dcm" in errors[0] and "Permission denied" in errors[0]
    assert errors[1] == ""


def refusal_and_memory(path: Path) -> tuple[str, int]:
    """Why a file is refused, and the bytes by which this process' peak grew over it."""
    import resource  # not on every system

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reason = refusal(lambda path: preprocess(path, 32, 24), path)
    return reason, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


@on_linux
def test_claimed_size_costs_no_memory(tmp_path):
    whole, claims = tmp_path / "whole.dcm", {}
    whole.write_bytes(contents()["whole"]["boxed"])
    for members in contents().values():
        claims |= {name: content for name, content in members.items() if "60,000" in name or "4 GB" in name}
    assert len(claims) > 7
    with IsolatedPool(1) as pool:
        assert pool.call(refusal_and_memory, whole)[0] == ""  # what any file needs is there from here on
        for number, (name, content) in enumerate(claims.items()):
            path = tmp_path / f"{number}.dcm"
            path.write_bytes(content)
            reason, memory = pool.call(refusal_and_memory, path)
            assert reason or name in HARMLESS, name
            assert memory < 30 * 2**20, name


@on_linux
def test_deflated_bomb_is_refused_within_the_memory_limit(tmp_path):
    packer = zlib.compressobj(wbits=-15)
    megabyte = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    head = contents()["whole"]["deflated"]
    path = tmp_path / "bomb.dcm"
    path.write_bytes(head[: 144 + int.from_bytes(head[140:144], "little")] + megabyte * 1000 + packer.flush())
    with IsolatedPool(1, Limits(seconds=30, memory=300 * 2**20)) as pool:
        assert "not a readable DICOM file" in pool.call(refusal_and_memory, path)[0]


# Processes that die


# Python code as items, for `eval`: a process that has nothing to import is there at once.
PID = "__import__('os').getpid()"
DEATHS = {
    "SIGSEGV": "__import__('ctypes').string_at(0)",
    "SIGABRT": "__import__('os').abort()",
    "SIGBUS": "__import__('signal').raise_signal(7)",
    "SIGKILL": f"__import__('os').kill({PID}, 9)",  # as the system does where memory is short
    "exit code 3": "__import__('os')._exit(3)",
}
FAILURES = {
    "no memory": "bytearray(2**50)",
    "endless recursion": "(lambda f: f(f))(lambda f: f(f))",
    "result that can't be pickled": "lambda: 0",
    "SystemExit": "__import__('sys').exit('a library that takes itself for a program')",
    # Its pickle holds one of the two arguments that it is made of.
    "exception that can't be unpickled": (
        "(_ for _ in ()).throw(__import__('urllib.error').error.ContentTooShortError('one argument', 'two'))"
    ),
}


def assert_only_these_fail(outcomes: list, failing: list[str], values: dict[str, int]) -> None:
    assert Counter(outcome.item for outcome in outcomes) == Counter([*failing, *values])
    assert {outcome.item: outcome.value for outcome in outcomes if not outcome.error} == values
    assert all(outcome.error.strip(": ") for outcome in outcomes if outcome.item in failing)


@on_linux
@pytest.mark.parametrize("num_workers", [1, 2])
def test_item_that_kills_its_process_costs_no_other(num_workers):
    values = {f"{n} * {n}": n * n for n in range(8)}
    plain, deaths = iter(values), list(DEATHS.values())
    items = [item for death in deaths for item in (next(plain), death)] + list(plain)
    outcomes = list(map_items(eval, items, num_workers, "dying", "item"))
    assert_only_these_fail(outcomes, deaths, values)
    errors = {outcome.item: outcome.error for outcome in outcomes}
    for death, code in DEATHS.items():
        assert errors[code] == f"the process that worked on it died ({death})"


@on_linux
@pytest.mark.parametrize("failure", FAILURES)
def test_item_that_fails_in_an_odd_way_costs_no_other(failure):
    code = FAILURES[failure]
    values = {f"{n} * {n}": n * n for n in range(6)}
    first, second, *others = values
    outcomes = list(map_items(eval, [first, second, code, *others], 2, "failing", "item"))
    assert_only_these_fail(outcomes, [code], values)


def test_processes_end_with_the_map():
    others = multiprocessing.active_children()
    outcomes = list(map_items(eval, [PID, PID, DEATHS["SIGABRT"], PID], 2, "dying", "item"))
    assert sum(bool(outcome.error) for outcome in outcomes) == 1
    assert multiprocessing.active_children() == others
    assert not any(running(outcome.value) for outcome in outcomes if outcome.value)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("code", ["__import__('time').sleep(60)", "any(0 for _ in iter(int, 1))"], ids=["sleeps", "works"])
def test_item_that_takes_too_long_is_ended_and_the_next_is_done(code):
    with IsolatedPool(1, Limits(seconds=2)) as pool:
        first = pool.call(eval, PID)
        start = time.monotonic()
        with pytest.raises(IsolationError, match="it took more than 2 seconds"):
            pool.call(eval, code)
        assert 1 < time.monotonic() - start < 20
        assert not running(first)
        assert pool.call(eval, PID) not in (first, os.getpid())


@on_linux
def test_memory_beyond_the_limit_is_an_error_of_its_item_alone():
    with IsolatedPool(1, Limits(memory=200 * 2**20)) as pool:
        process = pool.call(eval, PID)
        assert pool.call(eval, "len(bytearray(100 * 2**20))") == 100 * 2**20
        for _ in range(2):
            with pytest.raises(MemoryError):
                pool.call(eval, "bytearray(300 * 2**20)")
        assert pool.call(eval, PID) == process


# Thousands of damaged files

FUZZED = 3000
BATCH = 75
EXTREMES = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
SEEDS_OF_FUZZ = [  # kind, shape, header elements
    ("boxed", LARGE, {}),
    ("raw", LARGE, {}),
    ("raw", SMALL, {"WindowCenter": "", "WindowWidth": ""}),
    ("boxed", SMALL, {"RescaleSlope": 2, "RescaleIntercept": -100}),
    ("lossless", SMALL, {}),
    ("lossless", SMALL, {"PhotometricInterpretation": "MONOCHROME1"}),
    ("jpeg", SMALL, {}),
    ("jpeg_ls", SMALL, {}),
    ("rle", SMALL, {}),
    ("explicit", SMALL, {}),
    ("implicit", SMALL, {"VOILUTFunction": "SIGMOID"}),
    ("deflated", SMALL, {}),
    ("explicit", SMALL, {"ModalityLUTSequence": [lut(range(0, 640, 10), 0, 16)], "VOILUTSequence": [lut(range(64), 99, 6)]}),
]
if "htj2k" in SYNTAXES:
    SEEDS_OF_FUZZ.append(("htj2k", SMALL, {}))


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Change a file in one of the ways in which files break, or in which someone would break them."""
    data = bytearray(content)
    pixels = max(content.find(PIXEL_DATA_TAG), 0)
    regions = [(0, len(data)), (132, max(pixels, 300)), (pixels, pixels + 250), (pixels + 100, len(data))]
    first, last = regions[random.integers(len(regions))]
    at, run = int(random.integers(first, min(last, len(data)))), int(random.choice([1, 2, 4, 16, 300]))
    match random.integers(7):
        case 0:
            for place in random.integers(first, min(last, len(data)), random.integers(1, 9)):
                data[place] ^= 1 << random.integers(8)
        case 1:
            data[at : at + run] = random.integers(0, 256, run).astype(np.uint8).tobytes()
        case 2:
            data[at : at + run] = bytes([random.choice([0, 0xFF])]) * run
        case 3:
            del data[at:]
        case 4:
            del data[at : at + run]
        case 5:
            data[at:at] = data[int(random.integers(len(data))) :][:run]
        case _:
            extreme, size, order = int(random.choice(EXTREMES)), int(random.choice([1, 2, 4])), random.choice(["little", "big"])
            data[at : at + size] = (extreme % 256**size).to_bytes(size, order)
    return bytes(data)


def outcome_of(path: Path) -> str:
    """Say what `preprocess` makes of a file: "picture", "refused", or what it should not."""
    try:
        picture, row = preprocess(path, 32, 24)
    except DicomError as error:
        told = str(error).startswith(f"{path}: ") and error.reason
        return "refused" if told else f"a DicomError that says {str(error)!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    whole = picture.shape == (32, 24) and picture.dtype == np.uint8 and row["codec"]
    return "picture" if whole else f"a picture of {picture.shape}, {picture.dtype}, {row}"


def fuzz(job: tuple[int, int, Path]) -> None:
    """Write the seeds from ``first`` to before ``last``, each followed by its outcome, into a file named by the first."""
    first, last, folder = job
    path, whole = folder / f"{first}.dcm", [file.read_bytes() for file in sorted(folder.glob("whole*"))]
    with warnings.catch_warnings(), open(folder / f"{first}.txt", "w") as log:
        warnings.simplefilter("ignore")
        for seed in range(first, last):
            random = np.random.default_rng(seed)
            path.write_bytes(damage(whole[random.integers(len(whole))], random))
            print(seed, file=log, flush=True)  # before, so that it is known if it kills this process
            print(repr(outcome_of(path)), file=log, flush=True)


def fuzz_outcomes(seeds: range, folder: Path) -> dict[int, str]:
    """Outcome of each seed, that of one which killed its process included."""
    jobs, found = [(first, min(first + BATCH, seeds.stop), folder) for first in seeds[::BATCH]], {}
    while jobs:
        unfinished = []
        for outcome in map_items(fuzz, jobs, 2, "fuzzing", "batches"):
            first, last, _ = outcome.item
            lines = (folder / f"{first}.txt").read_text().splitlines() + [repr(outcome.error)] * bool(outcome.error)
            found |= {int(seed): ast.literal_eval(text) for seed, text in zip(lines[::2], lines[1::2], strict=True)}
            if int(lines[-2]) + 1 < last:
                unfinished.append((int(lines[-2]) + 1, last, folder))
        jobs = unfinished
    return found


def test_thousands_of_damaged_files_give_a_picture_or_a_reason(tmp_path):
    for number, (kind, shape, changes) in enumerate(SEEDS_OF_FUZZ):
        (tmp_path / f"whole{number:02}.bin").write_bytes(mammogram(tmp_path, kind, shape, **changes))
        assert outcome_of(tmp_path / "image.dcm") == "picture"
    found = fuzz_outcomes(range(FUZZED), tmp_path)
    assert sorted(found) == list(range(FUZZED))
    kinds = Counter(found.values())
    assert kinds["picture"] > FUZZED / 10 and kinds["refused"] > FUZZED / 10, kinds
    # A decoder's crash is no fault of this kit, and is told as well; anything else is.
    crashes = {seed: text for seed, text in found.items() if text.startswith("the process that worked on it died (SIG")}
    odd = {seed: text for seed, text in found.items() if text not in ("picture", "refused") and seed not in crashes}
    assert not odd, f"{len(odd)} of {FUZZED}: {odd}; crashes: {crashes}"
    assert len(crashes) < FUZZED / 100, crashes
