"""Facts about a run's folder: configurations and folds that are refused."""

import json
import math

import pandas as pd
import pytest

from tests.helpers import TINY, make_config
from utils.core.files import write_csv
from utils.runs.errors import TrainingError
from utils.runs.run import Run

CONFIG = make_config(TINY).to_json()
NOTES = {"prevalence": 0.02, "settings_hash": TINY.hash, "phantom": False, "versions": {"torch": "2.6"}}


def write(run_dir, change):
    content = CONFIG | NOTES
    for name, value in change.items():
        section, _, field = name.partition(".")
        content = content | {section: content[section] | {field: value} if field else value}
    (run_dir / "config.json").write_text(json.dumps(content))
    return run_dir


def test_what_was_written_is_read(tmp_path):
    assert Run(write(tmp_path, {})).config == make_config(TINY)
    assert Run(tmp_path).notes.prevalence == 0.02 and Run(tmp_path).notes.phantom is False


SIZES = [10**9, -64, 0, "64", 64.0, True, None, [64], 65]  # 65: the other of the two says 64
WRONG = {
    "model.image_height": SIZES,
    "model.image_width": SIZES,
    "preprocessing.image_height": SIZES,
    "preprocessing.image_width": SIZES,
    "preprocessing.margin": [-1, 1.0, math.nan, "0.03", None],
    "preprocessing.exact": ["false", 0, None],
    "preprocessing.version": [0, "2", 2.5],
    "preprocessing.codec": ["new"],
    "model.architecture": ["../../etc/passwd", "/tmp/net", "hf-hub:a/b", "local-dir:x", "", 5, None, ["cnn"]],
    "model.encoders": ["cnn", [1], ["../x"], None],
    "model.level": ["exam", "patient", None],
    "model.view_pooling": ["concat", None],  # of older versions
    "model.dropout": [1.0, -0.1, math.nan, "0.2"],
    "model.hidden_size": [0, -1, 10**9, "128"],
    "model.pretrained": ["false", 0],
    "model.layers": [3],
    "model": [None, [], "cnn", {}],
    "preprocessing": [None, [], "64x48"],
    "n_folds": [0, 1, -2, "4", 2.0, True, None],
    "folds": ["0", [5], [-1], [0, 0], ["0"], [0.0], None, 0],
    "fold_by": ["image", None],
    "epochs": [0, "3", True],
    "learning_rate": ["1e-3", math.inf, math.nan, -1, None],
    "positive_share": [0, 1, "half", math.nan],
    "max_views": [0, "2", True],
    "test_time_flip": ["true", 1],
    "momentum": [0.9],
    "prevalence": [math.nan, 0, 1, 2, -0.5, "0.02", None, True],
    "settings_hash": [5, None],
    "phantom": ["false", 0, None],
    "smoke_test": ["no"],
    "extra_sets": [[], {"vindr": "many"}],
    "versions": [[], {"torch": 2.6}],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_file_field_and_remedy(tmp_path, name):
    for value in WRONG[name]:
        run_dir = write(tmp_path, {name: value})
        with pytest.raises(TrainingError, match=rf"^{run_dir}/config.json: .*{name.partition('.')[2] or name}.* Copy the run"):
            _ = Run(run_dir).config, Run(run_dir).notes


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}"])
def test_a_configuration_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    for name in ("config", "notes"):
        with pytest.raises(TrainingError, match=rf"^{tmp_path}/config.json"):
            getattr(Run(tmp_path), name)


def test_a_fold_whose_predictions_are_empty_or_of_another_fold_is_refused(tmp_path):
    write(tmp_path, {})
    row = {"prediction_id": "1_L", "patient_id": "1", "laterality": "L", "image_id": "1", "fold": 1, "cancer": 0}
    table = pd.DataFrame([row | {"logit": 0.0, "probability": 0.5}])
    write_csv(tmp_path / "fold1" / "oof.csv", table)
    assert Run(tmp_path).usable_folds() == [tmp_path / "fold1"]
    for broken in (table.iloc[:0], table.assign(fold=0), table.assign(probability=7)):
        write_csv(tmp_path / "fold1" / "oof.csv", broken)
        with pytest.raises(TrainingError, match=rf"^{tmp_path}/fold1/oof.csv: "):
            Run(tmp_path).usable_folds()
