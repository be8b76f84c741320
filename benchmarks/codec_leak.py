"""Can a model tell from a cached picture in which codec its file was? ``python -m benchmarks.codec_leak [FOLDER]``.

Each JPEG 2000 file is stored once more as JPEG Lossless, and both are preprocessed. A small CNN then learns from patches of
two thirds of the pictures which codec they come from, and is asked about the others (three folds, so that each is asked about
once). Beside it, as a check that such a CNN finds a trace where there is one: the same with the JPEG Lossless file averaged
over areas of the full picture (``exact``), as if the two codecs had a filter each.
"""

import argparse
import tempfile
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import torch
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1
from torch import nn

from utils.dicom.file import read_stored
from utils.images.preprocessing import preprocess
from utils.phantom.dicom import MACHINES, write_dicom
from utils.phantom.pictures import Drawing, draw_breast, draw_image

PATCH = 48  # px
PATCHES = 60  # a picture
EPOCHS = 12
FOLDS = 3
PHANTOMS = 36
SHAPE = (2000, 1600)
DETECTOR_NOISE = 0.02  # of the brightest tissue


def store_as_jpeg_lossless(source: Path, target: Path) -> None:
    """Write a JPEG 2000 file's pixels as JPEG Lossless SV1, its header unchanged."""
    dataset, stored = pydicom.dcmread(source), read_stored(source)
    bits = max(int(dataset.BitsStored), int(stored.max()).bit_length())
    frame = imagecodecs.jpeg_encode(stored, lossless=True, predictor=1, bitspersample=bits)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = encapsulate([frame])
    dataset.save_as(target)


def patches(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Random patches that lie in tissue, of shape (PATCHES, PATCH, PATCH), uint8."""
    found = []
    while len(found) < PATCHES:
        y, x = (generator.integers(side - PATCH) for side in picture.shape)
        patch = picture[y : y + PATCH, x : x + PATCH]
        if (patch > 10).mean() > 0.9:
            found.append(patch)
    return np.stack(found)


def make_cnn() -> nn.Module:
    """Build a CNN small enough to train in seconds; it sees a patch without its mean, where noise is what differs."""
    layers = [nn.Conv2d(1, 16, 5), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1)]
    return nn.Sequential(*layers)


def tell_apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Held-out logits, of shape (2, pictures), of a CNN that tells two versions of the same pictures apart.

    Parameters
    ----------
    first, second : ndarray of shape (pictures, PATCHES, PATCH, PATCH), uint8
    """
    both = np.stack([first, second]).astype(np.float32) / 255
    both = torch.from_numpy((both - both.mean(axis=(-1, -2), keepdims=True)) * 20)
    fold = np.arange(len(first)) % FOLDS
    logits = np.zeros((2, len(first)))
    for held_out in range(FOLDS):
        torch.manual_seed(held_out)
        model = make_cnn()
        train(model, both[:, fold != held_out])
        model.eval()
        with torch.inference_mode():
            for picture in np.flatnonzero(fold == held_out):
                logits[:, picture] = model(both[:, picture].reshape(-1, 1, PATCH, PATCH)).reshape(2, -1).mean(dim=1)
    return logits


def train(model: nn.Module, both: torch.Tensor) -> None:
    """Fit on patches of shape (2, pictures, PATCHES, PATCH, PATCH)."""
    inputs = both.reshape(-1, 1, PATCH, PATCH)
    labels = torch.arange(2).repeat_interleave(len(inputs) // 2).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(inputs[batch]).squeeze(1), labels[batch]).backward()
            optimizer.step()


def draw_phantoms(folder: Path, count: int) -> None:
    """Write phantom mammograms with a real detector's noise as JPEG 2000."""
    for number in range(count):
        generator = np.random.default_rng(number)
        breast = draw_breast(generator, "ABCD"[number % 4], implant=False)
        drawing = Drawing(("CC", "MLO")[number % 2], "LR"[number // 2 % 2], breast)
        picture, _, mask = draw_image(drawing, SHAPE, generator)
        picture += np.where(mask, np.float32(DETECTOR_NOISE), 0) * generator.standard_normal(SHAPE, dtype=np.float32)
        write_dicom(folder / f"{number:03}.dcm", picture.clip(0, 1), MACHINES[0], "1", str(number + 1))


def three_ways(source: Path, height: int, width: int) -> list[np.ndarray]:
    """Pictures of a JPEG 2000 file, of the same pixels in JPEG Lossless, and of the latter averaged over areas."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.dcm"
        store_as_jpeg_lossless(source, copy)
        ways = ((source, False), (copy, False), (copy, True))
        return [preprocess(path, height, width, exact=exact)[0] for path, exact in ways]


def share_told_right(logits: np.ndarray) -> str:
    """Of how many pictures the second version has the higher logit, with Wilson's 95 % interval; half of them is chance.

    Parameters
    ----------
    logits : ndarray of shape (2, pictures)
    """
    right, count, z = int((logits[1] > logits[0]).sum()), logits.shape[1], 1.96
    middle, spread = (
        (right + z**2 / 2) / (count + z**2),
        z / (count + z**2) * (right * (count - right) / count + z**2 / 4) ** 0.5,
    )
    return f"{right} of {count} told right [{middle - spread:.0%}, {middle + spread:.0%}]"


def main() -> None:
    """Print how well the codecs are told apart with and without the common filter."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="JPEG 2000 files to use in place of phantoms")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as drawn:
        if not given.folder:
            draw_phantoms(Path(drawn), PHANTOMS)
        sources = sorted((given.folder or Path(drawn)).rglob("*.dcm"))
        pictures = [three_ways(source, given.height, given.width) for source in sources]
    different = [np.abs(first.astype(int) - second)[first > 10].mean() for first, second, _ in pictures]
    print(f"{len(pictures)} pictures of {given.height} x {given.width} px; mean difference {np.mean(different):.3f} of 255")
    cut = [[patches(way, np.random.default_rng(number)) for way in ways] for number, ways in enumerate(pictures)]
    jpeg2000, lossless, exact = (np.stack(way) for way in zip(*cut, strict=True))
    for name, other in (("the same filter", lossless), ("a filter each", exact)):
        print(f"{name}: {share_told_right(tell_apart(jpeg2000, other))}")


if __name__ == "__main__":
    main()
