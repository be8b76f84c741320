"""Facts about a fold's weights: what is refused from the header alone."""

import json
import pickle
from dataclasses import asdict

import pytest
import safetensors.torch
import torch

from tests.helpers import TINY, make_config
from utils.core.errors import KitError
from utils.runs.config import TrainingError
from utils.tables.vocabulary import Vocabulary
from utils.training.fold_weights import build_empty, kept_state, load_fold

VOCABULARY = Vocabulary(50.0, 10.0, ("CC", "MLO"), ("29", "48"), ("1", "2"))
CONFIG = make_config(TINY, "rnn", model={"hidden_size": 8})
STATE = kept_state(build_empty(CONFIG.model, VOCABULARY))
FIRST = next(iter(STATE))


def write(folder, state=STATE, vocabulary=None):
    metadata = {} if vocabulary == "" else {"vocabulary": vocabulary or json.dumps(asdict(VOCABULARY))}
    safetensors.torch.save_file(state, folder / "weights.safetensors", metadata)


def refused(folder, message, config=CONFIG):
    with pytest.raises(TrainingError, match=message) as caught:
        load_fold(config, folder)
    assert str(caught.value).startswith(str(folder / "weights.safetensors"))


def test_weights_that_were_written_are_read(tmp_path):
    write(tmp_path)
    model, vocabulary = load_fold(CONFIG, tmp_path)
    assert vocabulary == VOCABULARY
    assert all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FIRST: torch.zeros(2, 3)}, f"1 of its tensors do not fit .*{FIRST} is F32 2 x 3, not F32"),
        ({FIRST: STATE[FIRST].half()}, f"{FIRST} is F16"),
        ({FIRST: STATE[FIRST].double()}, f"{FIRST} is F64"),
        ({FIRST: STATE[FIRST].int()}, f"{FIRST} is I32"),
        ({"extra.weight": torch.zeros(1)}, "extra.weight is F32 1, not missing"),
    ],
)
def test_tensors_of_another_network_are_refused(tmp_path, change, message):
    write(tmp_path, STATE | change)
    refused(tmp_path, message)


def test_a_missing_tensor_is_named(tmp_path):
    write(tmp_path, {name: value for name, value in STATE.items() if name != FIRST})
    refused(tmp_path, f"{FIRST} is missing, not F32")
    write(tmp_path, {})
    refused(tmp_path, "of its tensors do not fit")


def test_weights_of_another_configuration_are_refused(tmp_path):
    write(tmp_path)
    refused(tmp_path, "do not fit the network of config.json", make_config(TINY, "rnn", model={"hidden_size": 9}))


GOOD = asdict(VOCABULARY)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ("", "it was not written by this kit"),
        ("{", "can't be read"),
        ("[]", r"it contains \[\]"),
        ("{}", "it lacks fields .*age_mean"),
        (json.dumps(GOOD | {"density": []}), "does not know .*density"),
        (json.dumps(GOOD | {"age_mean": float("nan")}), "age_mean is nan"),
        (json.dumps(GOOD | {"age_std": "10"}), "age_std is '10'"),
        (json.dumps(GOOD | {"age_std": 0}), "age_std is 0, but must be above 0"),
        (json.dumps(GOOD | {"view": "CC"}), "view is 'CC'"),
        (json.dumps(GOOD | {"view": ["CC", "CC"]}), "view is .* different values"),
        (json.dumps(GOOD | {"machine_id": [29, 48]}), "machine_id is .* list of text"),
        (json.dumps(GOOD | {"site_id": None}), "site_id is None"),
        (json.dumps(GOOD | {"machine_id": ["29"]}), "1 of its tensors do not fit"),
    ],
)
def test_a_wrong_vocabulary_is_refused(tmp_path, vocabulary, message):
    write(tmp_path, vocabulary=vocabulary)
    refused(tmp_path, message)


def test_a_file_that_is_cut_or_something_else_is_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "weights.safetensors"
    whole = path.read_bytes()
    contents = [whole[:-10], whole[:100], whole[:4], b"", b"PK\x03\x04" + whole, pickle.dumps(STATE), b"\xff" * 100]
    for content in (*contents, json.dumps(GOOD).encode()):
        path.write_bytes(content)
        refused(tmp_path, "it is cut or not a safetensors file")
    torch.save(STATE, path)
    refused(tmp_path, "it is cut or not a safetensors file")


def test_a_network_that_does_not_exist_is_refused_by_its_field(tmp_path):
    write(tmp_path)
    with pytest.raises(KitError, match="config.json: 'resnet_50' is neither cnn, rnn nor a network of timm's"):
        load_fold(make_config(TINY, "resnet_50"), tmp_path)
