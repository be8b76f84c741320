"""What a training step would gain from other choices than the kit's: memory layout, number format, batch.

``python -m benchmarks.choices [--quick] [--out outputs/bench]`` from the project's root prints one table and writes
choices.json into the folder. On two cores it takes about four minutes.

Measured is the bare step of `benchmarks.loops`. A round does a step of each choice, so that a noisy machine is as noisy for
each. The ratios of images a second are within a round; above 1, a choice is faster than the kit's.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.loops import BareModel, make_config, make_table
from benchmarks.tables import markdown, spread
from benchmarks.timing import seconds
from benchmarks.training import ARCHITECTURES, CPU_BATCHES, describe_machine
from utils.core.devices import pick_device
from utils.core.files import write_json
from utils.tables.vocabulary import Vocabulary
from utils.training.learner import encoders_of

SIZE, QUICK_SIZE = (256, 256), (64, 64)  # height, width
BATCH = CPU_BATCHES[SIZE]
KIT = "the kit's"
ROUNDS = 9


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="small images, one round: shows that everything works")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    given = parser.parse_args()
    device = pick_device()
    size, rounds = (QUICK_SIZE, 1) if given.quick else (SIZE, ROUNDS)
    rows = {network: measure(network, size, rounds, device) for network in ARCHITECTURES}
    print(table(rows, size))
    write_json(given.out / "choices.json", {"machine": describe_machine(device), "size": size, "seconds_per_image": rows})


def measure(network: str, size: tuple[int, int], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds per image of each choice, one number a round."""
    makers = choices(network, size, device)
    steps = {name: make() for name, make in makers.items()}
    for bare in steps.values():
        bare.step()
    measured = {name: [] for name in steps}
    for _ in range(rounds):
        for name, bare in steps.items():
            measured[name].append(seconds(bare.step, device) / len(bare.images))
    return measured


def choices(network: str, size: tuple[int, int], device: torch.device) -> dict[str, Callable[[], BareModel]]:
    """Return what makes the network under each choice, the kit's first."""
    vocabulary = Vocabulary.from_images(make_table(BATCH))
    config = make_config(network, size, BATCH)
    return {
        KIT: lambda: BareModel(config, vocabulary, device),
        "contiguous": lambda: _contiguous(BareModel(config, vocabulary, device)),
        "bfloat16": lambda: BareModel(replace(config, precision="bfloat16"), vocabulary, device),
        "half the batch": lambda: BareModel(make_config(network, size, BATCH // 2), vocabulary, device),
        "twice the batch": lambda: BareModel(make_config(network, size, 2 * BATCH), vocabulary, device),
    }


def _contiguous(bare: BareModel) -> BareModel:
    """Keep weights and maps channel by channel, torch's default."""
    bare.model.to(memory_format=torch.contiguous_format)
    for encoder in encoders_of(bare.model):
        first = next(module for module in encoder.modules() if isinstance(module, torch.nn.Conv2d))
        # A clone, as an image of one channel counts as contiguous in both layouts.
        first.register_forward_pre_hook(lambda _, given: (given[0].clone(memory_format=torch.contiguous_format),))
    return bare


def table(rows: dict[str, dict[str, list[float]]], size: tuple[int, int]) -> str:
    """Return the Markdown table: images a second of the kit's choice, then each other choice relative to it."""
    others = [name for name in next(iter(rows.values())) if name != KIT]
    head = (f"network at {size[0]} px", "images/s", *others)
    return "\n".join(markdown(head, [_row(network, measured, others) for network, measured in rows.items()])) + "\n"


def _row(network: str, measured: dict[str, list[float]], others: list[str]) -> list[str]:
    kit = measured[KIT]
    ratios = [[one / other for one, other in zip(kit, measured[name], strict=True)] for name in others]
    return [f"`{network}`", spread([1 / s for s in kit], ".3g"), *(spread(ratio, ".2f") for ratio in ratios)]


if __name__ == "__main__":
    main()
