"""What the training loop adds to the bare model, and how it compares with a plain loop around timm.

``python -m benchmarks.training [--architectures cnn,resnet50] [--rounds 5] [--quick] [--out outputs/bench]`` from the project's
root prints two tables and writes training.json into the folder. On two cores it takes about eleven minutes.

- *bare model*: forward, backward and optimizer step of the very same network, with the same optimizer, number format and memory
  layout, on one batch that lies on the device; no data, average of weights, clipping, schedule, nor bookkeeping.
- *loop*: `utils.training.fitting.Fitting` with its defaults (augmentation, running average, clipping, schedule), an epoch
  without its validation, from phantom pictures as PNG files in the page cache. On a CPU its own threads load, on a GPU a
  process a core.
- *plain loop*: `benchmarks.timm_loop`, on the same files. It runs in this process, so the kit's setting for OpenMP's threads
  (`utils.__init__`) is its own too, which on few cores is to its advantage.

A round measures bare steps, a loop's epoch, bare steps again, and a plain loop's epoch, so that a noisy machine is as noisy for
each; the ratios are within a round. A round also measures what the machine can do: the multiplication of large matrices, and a
convolution that suits it. A batch counts pictures: of ``rnn`` half as many breasts, each with two.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

import torch

from benchmarks.loops import LEAST_ROUNDS, measure, overheads, shares, speeds, write_pictures
from benchmarks.tables import markdown, spread
from utils.core.devices import cpu_count, pick_device
from utils.core.files import write_json
from utils.core.versions import versions

ARCHITECTURES = ("cnn", "resnet50", "rnn", "tf_efficientnet_lite0", "efficientnet_b0")
SIZES, QUICK_SIZES = ((128, 128), (256, 256), (512, 512)), ((64, 64), (96, 96))  # height, width
CPU_BATCHES = {(128, 128): 16, (256, 256): 8, (512, 512): 2}  # pictures; where nothing is said, `BATCH`
BATCH, GPU_BATCH = 8, 16
ROUNDS = 15
RATE_HEAD = ("network", "px", "batch", "images/s", "GFLOP/s", "of the matrix rate", "of the convolution rate")
RATIO_HEAD = ("network", "px", "loop over bare", "waits for data", "plain loop, images/s", "kit over plain")


def main() -> None:
    """Measure, print the tables, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="names with commas between")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at most; at least {LEAST_ROUNDS} if this allows")
    parser.add_argument("--quick", action="store_true", help="small pictures, one round: shows that everything works")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    given = parser.parse_args()
    device = pick_device()
    architectures = [name.strip() for name in given.architectures.split(",")]
    sizes, rounds = (QUICK_SIZES, 1) if given.quick else (SIZES, given.rounds)
    results = {"machine": describe_machine(device), "rows": measure_all(architectures, sizes, rounds, device)}
    print(table(results["rows"], results["machine"]), flush=True)
    write_json(given.out / "training.json", results)


def measure_all(architectures: list[str], sizes: tuple, rounds: int, device: torch.device) -> list[dict]:
    """Measure every network at every size; a dict for each, as from `measure`."""
    rows = []
    for size in sizes:
        batch = GPU_BATCH if device.type == "cuda" else CPU_BATCHES.get(size, BATCH)
        with tempfile.TemporaryDirectory() as folder:
            write_pictures(Path(folder), size)
            for architecture in architectures:
                rows.append(measure(architecture, size, batch, Path(folder), rounds, device))
                print(_progress(rows[-1]), flush=True)
    return rows


def table(rows: list[dict], machine: dict) -> str:
    """Return two Markdown tables: how fast networks train, and next to what else."""
    rounds = [len(row["loop_s"]) for row in rows]
    gflops = {rate: median(sum((row[rate] for row in rows), [])) / 1e9 for rate in ("matrix", "convolution")}
    lines = [
        "",
        f"On {machine['device']}, {machine['threads']} threads, {rows[0]['precision']}: medians of {min(rounds)} to",
        f"{max(rounds)} rounds [95 % interval; of fewer than six, the lowest and highest].",
        f"Matrices {gflops['matrix']:.0f} GFLOP/s, convolution {gflops['convolution']:.0f} GFLOP/s.",
    ]
    lines += ["", *markdown(RATE_HEAD, map(_rate_row, rows)), "", *markdown(RATIO_HEAD, map(_ratio_row, rows))]
    return "\n".join(lines) + "\n"


def _rate_row(row: dict) -> list[str]:
    """Return the cells of a row: the loop's images and operations a second, and the shares of what the device can do."""
    gflops = [row["flops"] / step / 1e9 for step in row["loop_s"]]
    cells = [f"`{row['architecture']}`", str(row["size"][0]), str(row["batch"])]
    cells += [spread(speeds(row, "loop_s"), ".3g"), f"{median(gflops):.0f}"]
    return cells + [f"{median(shares(row, 'loop_s', rate)):.0%}" for rate in ("matrix", "convolution")]


def _ratio_row(row: dict) -> list[str]:
    """Return the cells of a row: the loop next to the bare step and to the plain loop."""
    over_plain = [plain / loop for plain, loop in zip(row["plain_s"], row["loop_s"], strict=False)]
    cells = [f"`{row['architecture']}`", str(row["size"][0]), spread(overheads(row), ".3f"), spread(row["data_wait"], ".1%")]
    return cells + [f"{median(speeds(row, 'plain_s')):.3g}" if row["plain_s"] else "–", spread(over_plain, ".2f")]


def _progress(row: dict) -> str:
    ratios = " ".join(f"{ratio:.3f}" for ratio in overheads(row))
    name = f"{row['architecture']} {row['size'][0]}x{row['size'][1]}"
    return f"{name:24} {row['steps']:4} steps of {median(row['bare_s']):.3f} s, loop over bare model: {ratios}"


def describe_machine(device: torch.device) -> dict:
    """Say what the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU of {cpu_count()} cores"
    return {"device": name, "threads": torch.get_num_threads()} | versions()


if __name__ == "__main__":
    main()
