"""Store phantom images as DICOM files in the styles of RSNA's machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)


@dataclass(frozen=True)
class Machine:
    """How a machine frames and stores its images; ``windows`` are (center, width) pairs on the stored scale."""

    machine_id: int
    site_id: int
    transfer_syntax: str
    photometric: str
    bits_stored: int
    windows: tuple[tuple[int, int], ...] = ()
    voi_function: str = ""
    boxed: bool = False
    scale: float = 1.0
    aspect: float = 0.8
    mirrored_share: float = 0.05
    train_share: float = 0.0
    test_share: float = 0.0


SIGMOID_WINDOWS = ((32768, 22000), (30500, 22000), (35000, 22000), (32768, 26000))
# Styles of the real files: JPEG 2000 with and without the JP2 box, JPEG Lossless SV1, MONOCHROME1 with a SIGMOID of
# four windows, files without a window. The last two machines are in the test alone, so no model has trained on them.
# In the real set too, 42 % of machine 49's images face the other side.
MACHINES = (
    Machine(
        49, 1, JPEG2000Lossless, "MONOCHROME2", bits_stored=12, windows=((1600, 3000),), voi_function="LINEAR",
        boxed=True, aspect=0.8125, mirrored_share=0.42, train_share=0.40, test_share=0.34,
    ),
    Machine(
        48, 1, JPEG2000Lossless, "MONOCHROME1", bits_stored=10, windows=((520, 900),),
        scale=0.9, aspect=0.75, train_share=0.20, test_share=0.17,
    ),
    Machine(
        29, 2, JPEGLosslessSV1, "MONOCHROME1", bits_stored=16, windows=SIGMOID_WINDOWS, voi_function="SIGMOID",
        scale=1.25, aspect=0.918, train_share=0.20, test_share=0.17,
    ),
    Machine(21, 2, JPEGLosslessSV1, "MONOCHROME2", bits_stored=12, aspect=0.75, train_share=0.20, test_share=0.16),
    Machine(
        101, 1, ExplicitVRLittleEndian, "MONOCHROME2", bits_stored=12, windows=((2048, 4000),), voi_function="LINEAR",
        test_share=0.08,
    ),
    Machine(
        102, 1, RLELossless, "MONOCHROME1", bits_stored=14, windows=((8000, 14000),), voi_function="LINEAR",
        test_share=0.08,
    ),
)  # fmt: skip


def picture_shape(machine: Machine, height: int) -> tuple[int, int]:
    """Return the rows and columns of ``machine``'s images if the phantom's nominal height is ``height``."""
    rows = round(machine.scale * height)
    return rows, round(machine.aspect * rows)


def stored_values(picture: np.ndarray, machine: Machine) -> np.ndarray:
    """Map an image to the values, uint16, that ``machine`` stores: its first window and the inversion restore it.

    The image is 0 for air and 1 for the brightest tissue. Solves DICOM PS3.3 C.11.2.1.2.1 (LINEAR) and C.11.2.1.3.1
    (SIGMOID) for the stored value.
    """
    shown = 1 - picture if machine.photometric == "MONOCHROME1" else picture
    largest = 2**machine.bits_stored - 1
    if not machine.windows:
        values = shown * largest
    elif machine.voi_function == "SIGMOID":
        center, width = machine.windows[0]
        shown = np.clip(shown, 0.002, 0.998)  # 0 and 1 are at infinity
        values = center + width / 4 * np.log(shown / (1 - shown))
    else:
        center, width = machine.windows[0]
        values = (shown - 0.5) * (width - 1) + center - 0.5
    return np.clip(np.rint(values), 0, largest).astype(np.uint16)


def encode_frame(stored: np.ndarray, machine: Machine) -> bytes:
    """Encode stored values losslessly as JPEG 2000 or JPEG Lossless, with a precision of ``bits_stored``.

    JPEG 2000 has 5 levels of lower resolution, one layer and LRCP order, as in the real files, so that half, quarter
    and eighth sizes can be decoded alone. imagecodecs gives images under about 400 pixels fewer levels, but at least
    3.
    """
    if machine.transfer_syntax == JPEG2000Lossless:
        return imagecodecs.jpeg2k_encode(
            stored,
            level=0,
            codecformat="jp2" if machine.boxed else "j2k",
            reversible=True,
            bitspersample=machine.bits_stored,
            resolutions=6,
            numthreads=1,
        )
    # SV1 is predictor 1
    return imagecodecs.jpeg_encode(stored, lossless=True, predictor=1, bitspersample=machine.bits_stored)


def write_dicom(path: Path, picture: np.ndarray, machine: Machine, patient_id: str, image_id: str) -> None:
    """Write one image as ``machine`` would store it; Modality is absent, as in RSNA's files.

    ``picture`` is float32 (height, width), 0 for air and 1 for the brightest tissue.
    """
    stored = stored_values(picture, machine)
    dataset = _header(machine, patient_id, image_id)
    dataset.set_pixel_data(stored, machine.photometric, machine.bits_stored, generate_instance_uid=False)
    if machine.transfer_syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif machine.transfer_syntax != ExplicitVRLittleEndian:
        dataset.add_new("PixelData", "OB", encapsulate([encode_frame(stored, machine)]))
        dataset.file_meta.TransferSyntaxUID = machine.transfer_syntax
    dataset.save_as(path, enforce_file_format=True)


def _header(machine: Machine, patient_id: str, image_id: str) -> Dataset:
    """Return everything but the image; UIDs follow from the ids, so that the same seed gives the same bytes."""
    dataset = Dataset()
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["phantom image", patient_id, image_id])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["phantom study", patient_id])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["phantom series", patient_id, image_id])
    dataset.PatientID = patient_id
    dataset.InstanceNumber = image_id
    dataset.RescaleIntercept = "0"
    dataset.RescaleSlope = "1"
    if machine.windows:
        centers, widths = zip(*machine.windows, strict=True)
        dataset.WindowCenter = list(centers)
        dataset.WindowWidth = list(widths)
    if machine.voi_function:  # if absent, LINEAR applies
        dataset.VOILUTFunction = machine.voi_function
    return dataset
