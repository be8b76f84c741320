"""Facts about what `make bench` says of training."""

import pytest
import torch
from torch import nn

from benchmarks import choices, training
from benchmarks.loops import measure, write_pictures
from benchmarks.rates import count_flops
from benchmarks.tables import spread

CPU = torch.device("cpu")


@pytest.mark.parametrize(("groups", "wanted"), [(1, 4 * 9), (4, 9)])
def test_a_step_is_counted_as_three_forwards_also_if_convolutions_are_depthwise(groups, wanted):
    convolution = nn.Conv2d(4, 4, kernel_size=3, padding=1, groups=groups)
    assert count_flops(convolution, torch.zeros(2, 4, 8, 8)) == 3 * 2 * wanted * (2 * 4 * 8 * 8)


def test_interval_of_a_median_is_that_of_order_statistics():
    # The second lowest and second highest of nine values contain the median with 96 %: 1 - 2 * (1 + 9) / 2**9.
    assert spread([9.0, 1, 2, 3, 4, 5, 6, 7, 8], ".0f") == "5 [2, 8]"
    assert spread([3.0, 1, 2], ".0f") == "2 [1, 3]"  # too few for 95 %: the lowest and highest
    assert spread([], ".0f") == "–"


def test_tables_have_a_row_per_network_and_size(tmp_path):
    write_pictures(tmp_path, (32, 32))
    rows = [measure(network, (32, 32), 4, tmp_path, 1, CPU) for network in ("cnn", "rnn")]
    lines = training.table(rows, training.describe_machine(CPU)).splitlines()
    assert [row["at_once"] for row in rows] == [4, 4]  # pictures: of rnn, two breasts of two
    rates, ratios = ([line for line in lines if line.startswith("| `")][place] for place in (slice(0, 2), slice(2, 4)))
    assert [row.split(" | ")[1] for row in rates] == ["32", "32"] and "rnn" in rates[1]
    assert [row.split(" | ")[-1] == "– |" for row in ratios] == [False, True]  # the plain loop knows no rnn


def test_choices_are_relative_to_the_kits_own():
    measured = {choices.KIT: [0.2, 0.2], "contiguous": [0.4, 0.4]}
    assert choices.table({"cnn": measured}, (64, 64)).splitlines()[2] == "| `cnn` | 5 [5, 5] | 0.50 [0.50, 0.50] |"


def test_contiguous_choice_keeps_maps_channel_by_channel():
    made = choices.choices("cnn", (32, 32), CPU)
    layouts = {}
    for name in (choices.KIT, "contiguous"):
        bare = made[name]()
        last = [module for module in bare.model.modules() if isinstance(module, nn.Conv2d)][-1]
        last.register_forward_hook(lambda _, given, maps, name=name: layouts.update({name: maps.stride()[1]}))
        bare.gradients()
    assert layouts[choices.KIT] == 1 and layouts["contiguous"] > 1
