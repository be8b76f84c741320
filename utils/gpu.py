"""Decode batches of files on an NVIDIA GPU with nvImageCodec, trusting it only where the CPU agrees.

nvJPEG before 13.0.2 decodes JPEG Lossless of 9 to 15 bits to zeros without an error (its issue 50 on GitHub), so one file of
each kind in every batch is decoded on the CPU as well, and a kind that differs once is left to the CPU from then on.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils.dicom import DECODERS, DicomError, DicomFile, open_dicom
from utils.preprocessing import finish, make_plan

BATCH_SIZE = 16  # files: full frames of the largest take 53 MB each on the GPU
DecodeBatch = Callable[[list[bytes]], list[np.ndarray | None]]


class GpuDecoder:
    """Route files to the GPU by codec and bits, and check every batch.

    Parameters
    ----------
    decode : callable
        Takes codestreams, and gives for each an array of shape (height, width), or None where it could not.
    """

    def __init__(self, decode: DecodeBatch):
        self._decode = decode
        self.distrusted: set[tuple[str, int]] = set()

    def decode(self, wanted: Sequence[tuple[DicomFile, int]]) -> None:
        """Put decoded values into files; those that the GPU must not or can't decode are left for the CPU.

        Parameters
        ----------
        wanted : sequence of (DicomFile, int)
            Files, and how many resolutions to discard of each.
        """
        kinds = defaultdict(list)
        for file, discard in wanted:
            kind = file.codec, int(file.header.BitsStored)
            if file.codec in DECODERS and kind not in self.distrusted:
                kinds[kind].append((file, discard))
        for kind, members in kinds.items():
            self._decode_kind(kind, members)

    def _decode_kind(self, kind: tuple[str, int], members: list[tuple[DicomFile, int]]) -> None:
        streams = []
        for file, discard in members:
            with contextlib.suppress(DicomError):  # the CPU will say what is wrong with it
                streams.append((file, discard, file.codestream(discard)))
        decoded = self._decode([stream for *_, stream in streams])
        # A picture of one value is what a decoder that fails silently leaves: the CPU decides.
        good = [
            (values, *entry)
            for values, entry in zip(decoded, streams, strict=True)
            if values is not None and np.ptp(values) > 0
        ]
        if not self._agrees(kind[0], good):
            self.distrusted.add(kind)
            print(f"The GPU decodes {kind[0]} of {kind[1]} bits wrongly: the CPU does it.")
            return
        for values, file, discard, _ in good:
            with contextlib.suppress(DicomError):
                file.put_stored(values, discard)

    def _agrees(self, codec: str, decoded: list) -> bool:
        if not decoded:
            return True
        values, file, discard, stream = decoded[len(decoded) // 2]
        return np.array_equal(values, DECODERS[codec](stream))


def preprocess_batch(
    paths: Sequence[Path], height: int, width: int, margin: float, exact: bool, decoder: GpuDecoder | None = None
) -> list[tuple[np.ndarray, dict] | None]:
    """Do what `utils.preprocessing.preprocess` does, for a batch of files, decoding on the GPU.

    Parameters
    ----------
    paths : sequence of paths
    height, width, margin, exact
        As there.
    decoder : GpuDecoder, optional
        By default nvImageCodec's on the first GPU.

    Returns
    -------
    list
        For each file its picture and manifest columns; None where anything went wrong: the CPU's path says what.
    """
    decoder = decoder or default_decoder()
    files, plans, done = {}, {}, {}
    with contextlib.ExitStack() as stack:
        whole, reduced = [], []  # a file without lower resolutions is decoded before the breast is looked for
        for path in paths:
            with contextlib.suppress(DicomError):
                file = stack.enter_context(open_dicom(path))
                (reduced if file.levels else whole).append((path, file))
        decoder.decode([(file, 0) for _, file in whole])
        for path, file in whole + reduced:
            with contextlib.suppress(DicomError):
                files[path], plans[path] = file, make_plan(file, height, width, margin, exact)
        decoder.decode([(file, min(plans[path].discard, file.levels)) for path, file in reduced if path in plans])
        for path, file in files.items():
            with contextlib.suppress(DicomError):
                done[path] = finish(file, plans[path], height, width)
    return [done.get(path) for path in paths]


def is_installed() -> bool:
    """Tell whether nvImageCodec is installed."""
    return bool(importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.nvimgcodec"))


@lru_cache(maxsize=1)
def default_decoder() -> GpuDecoder:
    """Decoder of nvImageCodec on the first GPU, made once a process."""
    from nvidia import nvimgcodec

    decoder = nvimgcodec.Decoder()
    params = nvimgcodec.DecodeParams(allow_any_depth=True, color_spec=nvimgcodec.ColorSpec.UNCHANGED)

    def decode(codestreams: list[bytes]) -> list[np.ndarray | None]:
        images = decoder.decode([nvimgcodec.CodeStream(stream) for stream in codestreams], params=params)
        return [None if image is None else np.asarray(image.cpu())[..., 0] for image in images]

    return GpuDecoder(decode)
