"""Facts about the answer of tuning: it names what to expect, and the parameter that uses what is better beyond noise."""

from dataclasses import replace

import pandas as pd
import pytest

from tests.helpers import TUNED
from utils.core.formats import build
from utils.decision.answer import answer
from utils.decision.comparison import Ensemble
from utils.decision.threshold import Estimate, Threshold
from utils.metrics.intervals import Interval

ONE = replace(build(Threshold, TUNED), site_gain=None, site_thresholds={})
TWO = replace(ONE, runs=("/runs/a", "/runs/b"), weights=(1.0, 1.0), oof_hashes=ONE.oof_hashes * 2)
NOTHING = "not measurably different"
BETTER = Ensemble({"a": 0.75, "b": 0.25}, Interval(0, 0, 0), Interval(0.02, 0.01, 0.03))
NOISE = replace(BETTER, gain_over_average=Interval(0.01, -0.01, 0.03))


def say(tuned=ONE, found=NOISE, folds=(0, 1), **verdicts):
    aggregations = pd.DataFrame({"verdict": {"mean": "", "max": NOTHING, "top_k": NOTHING} | verdicts})
    return answer(tuned, pd.DataFrame({"fold": folds}), found, aggregations)


def test_answer_begins_with_the_threshold_and_what_to_expect():
    first, second = say().splitlines()
    assert first.startswith("Threshold: 0.3000 on the calibrated probability (plateau; 100 breasts, 2 positive)")
    assert "pf1_nested 0.400 [0.300, 0.500]. pf1 0.450 is measured on the breasts that chose the threshold" in second


def test_with_one_fold_there_is_no_estimate_over_folds():
    said = say(replace(ONE, pf1_patient_nested=Estimate(0.25, 0.2, 0.3)), folds=(0, 0))
    assert "pf1_patient_nested 0.250 [0.200, 0.300]. With one fold there is no pf1_nested" in said


@pytest.mark.parametrize(
    ("found", "weights", "says"),
    [
        (NOISE, (1.0, 1.0), "the plain average. The best weights found gain no more than noise"),
        (BETTER, (1.0, 1.0), "a 0.75, b 0.25; AUC +0.020 [+0.010, +0.030] over the plain average). To use them: -p ensemble"),
        (BETTER, (0.75, 0.25), "averaged with the weights found, which are better beyond noise"),
    ],
)
def test_weights_better_beyond_noise_are_used_or_their_parameter_is_named(found, weights, says):
    said = say(replace(TWO, weights=weights), found)
    assert says in said
    assert ("-p ensemble True" in said) == (found is BETTER and weights == (1.0, 1.0))


def test_one_run_has_no_weights():
    assert "Runs:" not in say(found=BETTER)


def test_aggregation_better_than_the_one_in_use_is_named_with_its_parameter():
    assert "Aggregation" not in say()
    assert "better than mean beyond noise: max, top_k. To use it: -p aggregation max" in say(max="better", top_k="better")
    in_use = replace(ONE, aggregation="max")
    assert "Aggregation" not in say(in_use, max="better")
    assert "max is worse than mean beyond noise. To use the mean: -p aggregation mean" in say(in_use, max="worse")


def test_thresholds_by_site_are_used_or_gain_no_more_than_noise():
    gain = Estimate(0.02, -0.01, 0.05)
    assert "Sites: one threshold for all" in say(replace(ONE, site_gain=gain))
    assert "Sites: each has its own" in say(replace(ONE, site_gain=gain, site_thresholds={"1": 0.2}))
