"""Where the kit's own path spends its time, beside the floor: reading the needed bytes and decoding just the needed levels."""

import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import cv2
import numpy as np

from benchmarks.files import KINDS, first_files
from utils.dicom import file as dicom
from utils.dicom import jpeg2000
from utils.dicom.file import DECODERS, open_dicom
from utils.images import cache, preprocessing
from utils.images.preprocessing import make_plan
from utils.images.settings import CacheSettings

DISTINCT = 4  # pictures of a kind
ROUNDS = 9
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
        ``kind``, ``target``, ``ms`` an image, ``floor_ms``, ``ratios`` of the two, one a round, ``share_read`` of the files'
        bytes, and ``stages``: milliseconds of each, "rest" being what is left (opening, header, reading, checks, padding).
        Medians over pictures and repeats.
    """
    cv2.setNumThreads(1)
    return [_measure(kind, first_files(files / kind, DISTINCT), target) for kind in KINDS for target in targets]


def _measure(kind: str, paths: list[Path], target: tuple[int, int]) -> dict:
    settings = CacheSettings(*target)
    floors, sizes = zip(*(_floor(path, settings) for path in paths), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        make = cache.Cache(Path(folder), "train", settings).make
        makes = [partial(make, (path.stem, path)) for path in paths]
        times = _rounds(floors, makes)
        stages = [_stages(function) for function in makes]
    floor_ms, ms = np.median(times, axis=(0, 1)).tolist()
    usual = {stage: median(row[stage] for row in stages) for stage in STAGES}
    return {
        "kind": kind,
        "target": target,
        "ms": ms,
        "floor_ms": floor_ms,
        "ratios": np.median(times[..., 1] / times[..., 0], axis=1).tolist(),
        "share_read": median(size / path.stat().st_size for size, path in zip(sizes, paths, strict=True)),
        "stages": usual | {"rest": max(0.0, ms - sum(usual.values()))},
    }


def _rounds(floors: Sequence[Callable], makes: Sequence[Callable]) -> np.ndarray:
    """Milliseconds of floor and kit, in turn for each picture: (round, picture, 2); the first round is not measured."""
    times = [[(_ms(floor), _ms(make)) for floor, make in zip(floors, makes, strict=True)] for _ in range(1 + ROUNDS)]
    return np.array(times[1:])


def _floor(path: Path, settings: CacheSettings) -> tuple[Callable[[], None], int]:
    """Return what reads the needed bytes and decodes the needed levels, and how many bytes that are."""
    with open_dicom(path) as file:
        plan = make_plan(file, *settings.arguments)
        codestream = file.codestream(min(plan.discard, file.levels))
        decode, size = DECODERS[file.codec], file.bytes_read

    def read_and_decode() -> None:
        _read(path, size)
        decode(codestream)

    return read_and_decode, size


def _read(path: Path, size: int) -> None:
    with open(path, "rb") as file:
        file.read(size)


def _ms(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def _stages(function: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each stage, the median of some repeats."""
    runs = []
    for _ in range(REPEATS):
        spent: defaultdict[str, float] = defaultdict(float)
        with _timers(spent):
            function()
        runs.append(spent)
    return {stage: 1e3 * median(run[stage] for run in runs) for stage in STAGES}


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
    """Add a function's time to its stage, less that of other stages inside."""

    def call(*arguments, **options):
        inside = sum(spent.values())
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[stage] += time.perf_counter() - start - (sum(spent.values()) - inside)

    return call
