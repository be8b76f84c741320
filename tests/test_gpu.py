"""Facts about routing files to a GPU decoder: a decoder that works, one that lies, one that fails, and none."""

import imagecodecs
import numpy as np
import pytest

from utils import cache, gpu
from utils.cache import build_cache
from utils.dicom import DECODERS, open_dicom
from utils.gpu import GpuDecoder, preprocess_batch
from utils.preprocessing import preprocess
from utils.tables import image_paths

SIZE = (64, 48, 0.03, False)


def decode_on_cpu(streams: list[bytes]) -> list[np.ndarray]:
    """What a GPU that works would give."""
    return [(imagecodecs.jpeg_decode if stream[:2] == b"\xff\xd8" else imagecodecs.jpeg2k_decode)(stream) for stream in streams]


def decode_lossless_to_zeros(streams: list[bytes]) -> list[np.ndarray]:
    return [
        values * 0 if stream[:2] == b"\xff\xd8" else values
        for stream, values in zip(streams, decode_on_cpu(streams), strict=True)
    ]


def decode_one_off(streams: list[bytes]) -> list[np.ndarray]:
    return [values + 1 for values in decode_on_cpu(streams)]


@pytest.fixture
def paths(competition, images):
    """Files of all codecs of the phantom's training set, and one that is no DICOM."""
    return list(image_paths(images.head(24), competition, "train"))


def codecs(paths) -> list[str]:
    found = []
    for path in paths:
        with open_dicom(path) as file:
            found.append(file.codec)
    return found


def assert_as_on_the_cpu(done, paths) -> None:
    for result, path in zip(done, paths, strict=True):
        picture, row = preprocess(path, *SIZE)
        np.testing.assert_array_equal(result[0], picture)
        assert result[1] == row


def test_pictures_are_those_of_the_cpu(paths):
    assert {"jpeg2000", "jpeg_lossless"} <= set(codecs(paths))
    decoder = GpuDecoder(decode_on_cpu)
    assert_as_on_the_cpu(preprocess_batch(paths, *SIZE, decoder=decoder), paths)
    assert not decoder.distrusted


def test_gpu_decodes_every_compressed_file_that_it_can(paths, monkeypatch):
    sent = []
    decoder = GpuDecoder(lambda streams: sent.extend(streams) or decode_on_cpu(streams))
    preprocess_batch(paths, *SIZE, decoder=decoder)
    assert len(sent) == sum(codec in DECODERS for codec in codecs(paths))


def test_jpeg_lossless_decoded_to_zeros_is_left_to_the_cpu(paths):
    assert_as_on_the_cpu(preprocess_batch(paths, *SIZE, decoder=GpuDecoder(decode_lossless_to_zeros)), paths)


def test_kind_that_differs_from_the_cpu_is_not_sent_again(paths, capsys):
    sent = []
    decoder = GpuDecoder(lambda streams: sent.append(len(streams)) or decode_one_off(streams))
    assert_as_on_the_cpu(preprocess_batch(paths, *SIZE, decoder=decoder), paths)
    assert ("jpeg2000", 12) in decoder.distrusted
    assert "The GPU decodes jpeg2000 of 12 bits wrongly: the CPU does it." in capsys.readouterr().out
    sent.clear()
    preprocess_batch(paths, *SIZE, decoder=decoder)
    assert sent == []


def test_file_that_the_gpu_refuses_is_decoded_on_the_cpu(paths):
    decoder = GpuDecoder(lambda streams: [None] * len(streams))
    assert_as_on_the_cpu(preprocess_batch(paths, *SIZE, decoder=decoder), paths)


def test_broken_file_is_left_out_and_the_others_are_done(paths, tmp_path):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(paths[0].read_bytes()[:-50])
    none, *others = preprocess_batch([broken, *paths[:4]], *SIZE, decoder=GpuDecoder(decode_on_cpu))
    assert none is None
    assert_as_on_the_cpu(others, paths[:4])


def test_without_nvimagecodec_the_cpu_does_everything(competition, images, settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "is_installed", lambda: False)
    manifest = build_cache(images.head(3), competition, "train", tmp_path, settings, gpu_decode=True)
    assert (manifest.error == "").all()
    assert "nvImageCodec is not installed (pip install nvidia-nvimgcodec" in capsys.readouterr().out


def test_what_the_gpu_path_could_not_do_is_done_on_the_cpu(competition, images, settings, tmp_path, monkeypatch, capsys):
    def only_the_first(paths, *arguments):
        return [preprocess(paths[0], *arguments), *[None] * (len(paths) - 1)]

    monkeypatch.setattr(gpu, "is_installed", lambda: True)
    monkeypatch.setattr(gpu, "preprocess_batch", only_the_first)
    monkeypatch.setattr(cache, "GPU_WORKERS", 0)  # in this process, where the patch holds
    with_gpu = build_cache(images.head(5), competition, "train", tmp_path / "gpu", settings, gpu_decode=True)
    without = build_cache(images.head(5), competition, "train", tmp_path / "cpu", settings)
    assert with_gpu.equals(without)
    for image_id in images.image_id.head(5):
        assert (tmp_path / f"gpu/train/{image_id}.png").read_bytes() == (tmp_path / f"cpu/train/{image_id}.png").read_bytes()


def test_machine_without_a_working_gpu_falls_back_and_says_so(competition, images, settings, tmp_path, monkeypatch, capsys):
    def no_driver(paths, *arguments):
        raise RuntimeError("CUDA driver version is insufficient")

    monkeypatch.setattr(gpu, "is_installed", lambda: True)
    monkeypatch.setattr(gpu, "preprocess_batch", no_driver)
    monkeypatch.setattr(cache, "GPU_WORKERS", 0)
    manifest = build_cache(images.head(3), competition, "train", tmp_path, settings, gpu_decode=True)
    assert (manifest.error == "").all()
    assert "CUDA driver version is insufficient" in capsys.readouterr().out
