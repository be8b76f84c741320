"""Facts about names in figures: matplotlib reads some of them as something else."""

import io

import numpy as np
import pandas as pd
import pytest

from tests.helpers import TUNED
from utils.core.formats import build
from utils.decision.figures import show_curves, show_reliability, show_threshold
from utils.decision.threshold import Threshold
from utils.explore.figures import show_density, show_views
from utils.explore.summary import density_by_age, views_per_breast

NAMES = ["plain", "_old", "__x", "a$b$c", "x$\\frac$", "$", "\\$a$", "_$x^{$", "%s{}", "naïve"]


def table(size: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    patients = [f"p{number // 2}" for number in range(size)]
    return pd.DataFrame({"cancer": np.arange(size) % 2, "probability": rng.random(size), "patient_id": patients})


def saved_legends(figure) -> list[str]:
    """Texts of a figure's legends, after it was drawn."""
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()] + figure.legends
    return [text.get_text() for legend in legends for text in legend.get_texts()]


@pytest.mark.parametrize("name", NAMES)
def test_run_of_any_name_is_in_each_legend(name):
    curves = {name: table(), "other": table()}
    assert sum(name in text for text in saved_legends(show_curves(curves))) > 1  # of both curves
    assert any(name in text for text in saved_legends(show_reliability(curves)))


def test_folder_whose_name_is_not_unicode_is_in_the_legend():
    assert "?ab" in saved_legends(show_curves({"\udcfcab": table()}))


@pytest.mark.parametrize("name", NAMES)
def test_views_and_densities_of_any_name_are_shown(name):
    images = pd.DataFrame({"prediction_id": list("aabb"), "view": [name, "CC", name, "MLO"], "age": 50.0, "density": name})
    figure = show_views(views_per_breast(images))
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    assert all(name in text.get_text() for text in figure.axes[0].get_yticklabels())
    assert any(name in text for text in saved_legends(show_density(density_by_age(images))))


def test_numbers_of_a_logarithmic_axis_are_plain():
    figure = show_threshold(table(400), build(Threshold, TUNED))
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    assert {"0.01", "0.1", "1"} <= {text.get_text() for text in figure.axes[1].get_xticklabels()}
    assert not [text for axis in figure.axes for text in axis.get_xticklabels(which="both") if "$" in text.get_text()]
