"""Where the kit's own path spends its time, beside the floor: reading the needed bytes and decoding just the needed levels."""

import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import cv2

from benchmarks.files import KINDS, first_files
from utils.dicom import file as dicom
from utils.dicom import jpeg2000
from utils.dicom.file import DECODERS, open_dicom
from utils.images import cache, preprocessing
from utils.images.preprocessing import make_plan
from utils.images.settings import CacheSettings

DISTINCT = 4  # pictures of a kind
REPEATS = 5
STAGES = {
    "decode": [(dicom.DECODERS, "jpeg2000"), (dicom.DECODERS, "jpeg_lossless")],
    "find packets": [(jpeg2000, "read_layout"), (jpeg2000, "shrink")],
    "low-pass": [(preprocessing, "low_pass")],
    "find breast": [(preprocessing, "find_breast")],
    "window": [(dicom.DicomFile, "grey")],
    "shrink": [(preprocessing, "average_areas"), (preprocessing, "resize")],
    "write": [(cache, "_write_picture")],
}


def measure_stages(files: Path, targets: tuple[tuple[int, int], ...]) -> list[dict]:
    """Measure every kind of file at every target in this process, on one core.

    Returns
    -------
    list of dict
        ``kind``, ``target``, ``ms`` an image, ``floor_ms``, ``ratio`` of the two, ``share_read`` of the files' bytes, and
        ``stages``: milliseconds of each, "rest" being what is left (opening, header, reading, padding). Medians over the
        pictures of the best of some repeats.
    """
    cv2.setNumThreads(1)
    return [_measure(kind, first_files(files / kind, DISTINCT), target) for kind in KINDS for target in targets]


def _measure(kind: str, paths: list[Path], target: tuple[int, int]) -> dict:
    settings = CacheSettings(*target)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            floor, read = _floor(path, settings)
            make = partial(cache.Cache(Path(folder), "train", settings).make, (path.stem, path))
            whole, stages = _best(make), _stages(make)
            rows.append({"ms": whole, "floor_ms": floor, "share_read": read / path.stat().st_size, "stages": stages})
    summed = {key: median(row[key] for row in rows) for key in ("ms", "floor_ms", "share_read")}
    stages = {stage: median(row["stages"][stage] for row in rows) for stage in STAGES}
    ratio = median(row["ms"] / row["floor_ms"] for row in rows)
    rest = {"rest": max(0.0, summed["ms"] - sum(stages.values()))}
    return {"kind": kind, "target": target, **summed, "ratio": ratio, "stages": stages | rest}


def _floor(path: Path, settings: CacheSettings) -> tuple[float, int]:
    """Milliseconds to read the needed bytes and to decode the needed levels, and how many bytes that are."""
    with open_dicom(path) as file:
        plan = make_plan(file, *settings.arguments)
        codestream = file.codestream(min(plan.discard, file.levels))
        codec, size = file.codec, file.bytes_read
    read = _best(lambda: _read(path, size))
    return read + _best(lambda: DECODERS[codec](codestream)), size


def _read(path: Path, size: int) -> None:
    with open(path, "rb") as file:
        file.read(size)


def _best(function: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def _stages(function: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each stage, the least of some repeats."""
    best = dict.fromkeys(STAGES, float("inf"))
    for _ in range(REPEATS):
        spent: defaultdict[str, float] = defaultdict(float)
        with _timers(spent):
            function()
        best = {stage: min(least, spent[stage] * 1e3) for stage, least in best.items()}
    return best


@contextlib.contextmanager
def _timers(spent: dict[str, float]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for stage, places in STAGES.items():
            for owner, name in places:
                if isinstance(owner, dict):
                    stack.enter_context(mock.patch.dict(owner, {name: _timed(owner[name], stage, spent)}))
                else:
                    stack.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), stage, spent)))
        yield


def _timed(function: Callable, stage: str, spent: dict[str, float]) -> Callable:
    def call(*arguments, **options):
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[stage] += time.perf_counter() - start

    return call
