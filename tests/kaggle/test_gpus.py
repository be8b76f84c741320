"""Facts about GPUs: those that do not compute are found, and what a training without one would cost is said."""

import types
from pathlib import Path

import pytest
import torch

from utils.kaggle import gpus
from utils.kaggle.gpus import check_gpus, check_processes, describe_gpus

P100, T4 = (6, 0), (7, 5)


class FakeCuda:
    """GPUs of some capabilities, of which torch was built for some."""

    def __init__(self, capabilities, built=("sm_70", "sm_75")):
        self.capabilities, self.built = capabilities, built

    def is_available(self):
        return bool(self.capabilities)

    def device_count(self):
        return len(self.capabilities)

    def get_device_capability(self, number):
        return self.capabilities[number]

    def get_device_name(self, number):
        return f"GPU of sm_{''.join(map(str, self.capabilities[number]))}"

    def get_arch_list(self):
        return list(self.built)

    def get_device_properties(self, number):
        return types.SimpleNamespace(name=self.get_device_name(number), total_memory=15.8e9)

    def ones(self, count, device):
        major, minor = self.capabilities[int(device.removeprefix("cuda:"))]
        if f"sm_{major}{minor}" not in self.built:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")
        return torch.ones(count)


@pytest.fixture
def use_gpus(monkeypatch):
    """Replace torch by one that sees GPUs of these capabilities."""

    def use(*capabilities, cuda_version="12.4", has_mps=False):
        cuda = FakeCuda(capabilities)
        version = types.SimpleNamespace(cuda=cuda_version)
        backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: has_mps))
        fake = types.SimpleNamespace(cuda=cuda, version=version, backends=backends, __version__="2.10.0")
        monkeypatch.setattr(gpus, "torch", fake)
        monkeypatch.setattr(gpus, "try_gpu", lambda device: cuda.ones(8, device))

    monkeypatch.setattr(gpus, "GPU_DRIVER", Path("/nowhere"))
    return use


@pytest.fixture
def kaggle(monkeypatch):
    monkeypatch.setattr(gpus, "on_kaggle", lambda: True)


@pytest.mark.parametrize("is_training", [True, False])
def test_gpu_that_torch_no_longer_supports_is_told_with_the_right_choice(is_training, use_gpus, kaggle):
    use_gpus(P100)
    (finding,) = check_gpus(is_training)
    assert finding.is_fatal == is_training and "GPU T4 x2" in finding.remedy
    assert "sm_60" in finding.problem and "built for sm_70, sm_75" in finding.problem and "no kernel image" in finding.problem
    assert "\n" not in finding.problem


def test_two_gpus_that_work_are_no_problem_and_said_to_be_used(use_gpus):
    use_gpus(T4, T4)
    assert not list(check_gpus(True)) and not list(check_processes(2))
    assert describe_gpus() == "GPU of sm_75 with 15.8 GB and GPU of sm_75 with 15.8 GB, all used"
    (finding,) = check_processes(3)
    assert "num_processes is 3, but there are 2 GPUs" in finding.problem


def test_gpu_of_a_mac_is_said_not_to_be_used(use_gpus):
    use_gpus()
    assert describe_gpus() == "no GPU: the CPU computes"
    use_gpus(has_mps=True)
    assert describe_gpus() == "this Mac has a GPU (MPS), which the kit does not use: the CPU computes"


def test_broken_gpu_beside_a_working_one_is_found(use_gpus):
    use_gpus(T4, P100)
    (finding,) = check_gpus(True)
    assert "sm_60" in finding.problem


@pytest.mark.parametrize("is_training", [True, False])
def test_training_on_kaggles_cpu_is_warned_of(is_training, use_gpus, kaggle):
    use_gpus()
    assert [finding.is_fatal for finding in check_gpus(is_training)] == [False] * is_training


def test_cpu_at_home_is_no_problem_unless_there_is_a_gpu(use_gpus, tmp_path, monkeypatch):
    use_gpus(cuda_version=None)
    assert not list(check_gpus(True))
    monkeypatch.setattr(gpus, "GPU_DRIVER", tmp_path)
    (finding,) = check_gpus(True)
    assert "built without CUDA" in finding.problem
