"""Facts about datasets of weights: timm's own loading and local files, on a small network with local weights."""

import pytest
import safetensors.torch
import timm
import torch
from timm.models import ResNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock

from tests.kaggle.test_bundle import files_under
from utils.core.errors import KitError
from utils.core.files import read_json
from utils.kaggle import pretrained
from utils.kaggle.findings import Finding
from utils.kaggle.metadata import slug_of
from utils.kaggle.pretrained import PretrainedError, find_pretrained, write_pretrained
from utils.networks.encoders import build_encoder
from utils.runs.config import ModelConfig

NETWORK = "kit_tiny_resnet"


def kit_tiny_resnet(pretrained=False, **options):
    layers = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
    return build_model_with_cfg(ResNet, NETWORK, pretrained, **layers, **options)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A network of timm's whose pretrained weights are a local file; the file."""
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    facts = {"input_size": (3, 64, 64), "num_classes": 7, "first_conv": "conv1", "classifier": "fc", "license": "mit"}
    globals()["default_cfgs"] = generate_default_cfgs({f"{NETWORK}.local": {**facts, "file": str(path)}})
    register_model(kit_tiny_resnet)
    torch.manual_seed(1)
    safetensors.torch.save_file(timm.create_model(NETWORK, num_classes=7).state_dict(), path)
    return path


@pytest.fixture
def closed(monkeypatch):
    """A machine that reaches no hub and has downloaded nothing."""
    monkeypatch.setattr(pretrained, "check_hub", lambda: [Finding("The hub does not answer.", "check the network.")])


def encoder_of(path):
    return build_encoder(ModelConfig(NETWORK, 64, 48, weights_path=str(path)))


def test_weights_that_timm_loads_become_a_dataset_that_a_training_starts_from(tmp_path, hub, closed):
    written = write_pretrained(tmp_path, "reader", NETWORK)
    names = ["LICENCE.txt", "dataset-metadata.json", f"{NETWORK}.safetensors", "weights.json"]
    assert files_under(written.folder) == names
    expected = safetensors.torch.load_file(hub)
    found = safetensors.torch.load_file(written.folder / written.file)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    stem = encoder_of(written.folder / written.file).backbone.conv1.weight
    torch.testing.assert_close(stem, expected["conv1.weight"].sum(dim=1, keepdim=True))
    assert find_pretrained(tmp_path) == [written]


def test_the_metadata_are_those_that_kaggle_takes(tmp_path, hub):
    written = write_pretrained(tmp_path, "reader", NETWORK)
    metadata = read_json(written.folder / "dataset-metadata.json")
    assert metadata["id"] == "reader/pretrained-kit-tiny-resnet" == f"reader/{slug_of(metadata['title'])}"
    assert str(written.mounted) == f"/kaggle/input/pretrained-kit-tiny-resnet/{NETWORK}.safetensors"


def test_the_licence_note_says_what_timm_knows_and_no_local_path(tmp_path, hub):
    folder = write_pretrained(tmp_path, "reader", NETWORK).folder
    note = (folder / "LICENCE.txt").read_text()
    assert "Licence: mit" in note and f"timm {timm.__version__}" in note
    assert not any(str(hub.parent).encode() in path.read_bytes() for path in folder.iterdir())


def test_a_local_file_is_converted_to_timms_names_and_safetensors(tmp_path, hub, closed):
    file, state = tmp_path / "checkpoint.pth", safetensors.torch.load_file(hub)
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, file)
    written = write_pretrained(tmp_path / "out", "reader", NETWORK, file)
    found = safetensors.torch.load_file(written.folder / written.file)
    assert found.keys() == state.keys() and torch.equal(found["conv1.weight"], state["conv1.weight"])
    note = (written.folder / "LICENCE.txt").read_text()
    assert "the file checkpoint.pth" in note and "Licence: write it here" in note


def test_a_file_that_does_not_fit_is_refused_by_its_own_name_and_nothing_is_written(tmp_path, hub):
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(8, 3, 7, 7)}, file)
    with pytest.raises(KitError, match=f"weights_path {file} does not fit {NETWORK}"):
        write_pretrained(tmp_path / "out", "reader", NETWORK, file)
    assert not list((tmp_path / "out").iterdir())


def test_a_run_of_the_kit_is_refused_since_its_patients_must_stay_known(tmp_path, hub):
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(1)}, file, {"vocabulary": "{}"})
    with pytest.raises(PretrainedError, match="patients that it saw"):
        write_pretrained(tmp_path / "out", "reader", NETWORK, file)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet_50", "neither a file nor a network of timm: the nearest are .*resnet50"),
        ("resnet18.a2_in1k_x", "the nearest are resnet18.a2_in1k"),
        ("resnet18", "does not answer.*weights FILE --architecture resnet18"),
        ("convnext_small_in22k", "does not answer"),
        ("test_resnet_none", "neither a file"),
    ],
)
def test_what_timm_can_not_give_is_told_with_a_remedy(tmp_path, closed, name, told):
    with pytest.raises(PretrainedError, match=told):
        write_pretrained(tmp_path / "out", "reader", name)


def test_weights_that_timm_fails_to_load_are_told_in_one_message(tmp_path, hub, monkeypatch):
    content = hub.read_bytes()
    hub.write_bytes(content[:100])
    try:
        with pytest.raises(PretrainedError, match=f"timm can't load the weights of {NETWORK} .*: try again, or give a file"):
            write_pretrained(tmp_path / "out", "reader", NETWORK)
    finally:
        hub.write_bytes(content)


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path, hub):
    mine = tmp_path / "pretrained-kit-tiny-resnet" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("work of years")
    with pytest.raises(PretrainedError, match="is not from this kit"):
        write_pretrained(tmp_path, "reader", NETWORK)
    assert mine.read_text() == "work of years"
