"""Facts about threshold.json as a file: what is refused, by which name."""

import json
import math

import pytest

from tests.helpers import TUNED
from utils.core.files import read_json, write_json
from utils.decision.threshold import Threshold
from utils.runs.oof import PredictionError

PLATT = TUNED["calibration"]
ISOTONIC = PLATT | {"method": "isotonic", "inputs": [0.1, 0.5, 0.9], "outputs": [0.1, 0.1, 0.9]}
UNDEFINED = dict.fromkeys(("value", "low", "high"))


def test_what_was_written_is_read(tmp_path):
    for change in ({}, {"calibration": ISOTONIC}, {"auc": UNDEFINED}, {"site_gain": None}, {"threshold": 0}, {"weights": [7]}):
        write_json(tmp_path / "t.json", TUNED | change)
        Threshold.load(tmp_path / "t.json").save(tmp_path / "again.json")
        assert read_json(tmp_path / "again.json") == TUNED | change


WRONG = {
    "threshold": [math.nan, math.inf, -math.inf, 10**400, -1.0, 7.0, 1.0001, "0.5", None, True, [0.5], {}],
    "choice": ["best", None, 0],
    "calibration": [
        "platt",
        None,
        [],
        {},
        {"method": "__import__"},
        PLATT | {"method": "beta"},
        PLATT | {"more": 1},
        *(PLATT | {"slope": value} for value in (math.nan, math.inf, 1e308, -1.0, 0.0, "1", None, True)),
        *(PLATT | {"intercept": value} for value in (math.nan, 1e308, -1e6, "0", None)),
        *(ISOTONIC | {"inputs": value} for value in ([], None, "0.1", [0.1, 0.9], [0.1, math.nan, 0.9], [0.5, 0.5, 0.9])),
        *(ISOTONIC | {"inputs": value} for value in ([0.9, 0.5, 0.1], [-1, 0.5, 0.9], [[0.1], 0.5, 0.9])),
        *(ISOTONIC | {"outputs": value} for value in ([0.9, 0.5, 0.1], [5.0, 6.0, 9.0], [0.1, 0.2], [0.1, None, 0.9])),
        ISOTONIC | {"inputs": [], "outputs": []},
    ],
    "aggregation": ["eval", None, ["mean"]],
    "one_image": ["false", 0, None],
    "pf1": [math.nan, -0.1, 2, "0.4", None],
    "pf1_nested": [0.4, None, {}, {"value": 0.4}, UNDEFINED | {"value": 0.4}, {"value": "a", "low": 0.3, "high": 0.5}],
    "pf1_patient_nested": [{"value": 0.4, "low": 0.5, "high": 0.3}, {"value": 40, "low": 30, "high": 50}],
    "auc": [{"value": math.nan, "low": math.nan, "high": math.nan}, []],
    "optimism": [math.nan, 3, None],
    "site_thresholds": [None, [1], {"x": 0.5}, {"1": math.nan}, {"1": 2.0}, {"1": None}, {"1.0": 0.5}, {"01": 0.5}, {"٣": 0.5}],
    "site_gain": [1, "none", {"value": True, "low": True, "high": True}],
    "breasts": [0, -5, 1.5, "100", None],
    "positives": [-1, 101, 0.5],
    "prevalence": [math.nan, -0.1, 2, "0.02", None],
    "runs": [5, None, "a", [], [1], ["a", "b"]],
    "weights": [None, [], [math.nan], [-1.0], [0.0], ["x"], [1e308], [1e-300], [1.0, 1.0], 1.0, [True]],
    "oof_hashes": [None, [], [1], ["gone"], ["0123456789ab"] * 2, "0123456789ab", ["0123456789AB"]],
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_value_is_refused_by_file_field_and_remedy(tmp_path, field):
    path = tmp_path / "t.json"
    for value in WRONG[field]:
        path.write_text(json.dumps(TUNED | {field: value}))
        with pytest.raises(PredictionError, match=rf"^{path}: .*{field.partition('_')[0]}.* Run tune_threshold.ipynb again"):
            Threshold.load(path)


@pytest.mark.parametrize("field", TUNED)
def test_a_field_that_lacks_is_named(tmp_path, field):
    write_json(tmp_path / "t.json", {name: value for name, value in TUNED.items() if name != field})
    with pytest.raises(PredictionError, match=rf"t.json: it lacks fields .*\({field}\)"):
        Threshold.load(tmp_path / "t.json")


def test_a_field_of_a_newer_version_is_named(tmp_path):
    write_json(tmp_path / "t.json", TUNED | {"machine_thresholds": {}})
    with pytest.raises(PredictionError, match=r"does not know \(machine_thresholds\)"):
        Threshold.load(tmp_path / "t.json")


def test_a_field_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(TUNED)[:-1] + ', "threshold": 0.9}')
    with pytest.raises(PredictionError, match=rf"^{tmp_path}/t.json .*field threshold occurs twice.* Run tune_threshold.ipynb"):
        Threshold.load(tmp_path / "t.json")
