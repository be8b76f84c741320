"""How long a person waits for the first useful line of each notebook, and for two commands.

``python -m benchmarks.startup [--rounds 5] [--quick] [--out outputs/bench]`` from the project's root prints one table and
writes startup.json into the folder. On two cores it takes about three minutes.

- *notebook*: from its first cell to the first line that a cell after the imports prints, in a kernel that has just started.
  The lines before it (where the kit is, versions) do not count. The table shows the line.
- *command*: from its call to its end.
- *kernel*: from its call until it answers. This comes before a notebook's first cell.
- *papermill*: from its call to the first cell of a notebook, the kernel's start included.

The notebooks work on a small phantom, its cache, and one trained run. A round measures everything once, so that a noisy machine
is as noisy for each. The first round fills the page cache and does not count.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median

import nbformat
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel
from nbformat.v4 import new_code_cell, new_notebook

from benchmarks.tables import markdown
from utils.core.devices import cpu_count
from utils.core.files import write_json
from utils.core.versions import versions
from utils.decision.tuning import tune
from utils.images.inputs import open_inputs
from utils.kaggle.machine import cpu_name
from utils.phantom.competition import make_competition
from utils.runs.config import ModelConfig, TrainConfig
from utils.training.folds import train_run

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ("explore", "preprocess", "train", "tune_threshold", "report", "submit")
RUNS, KAGGLE = "python -m utils.runs", "python -m utils.kaggle --help"
KERNEL, PAPERMILL = "a kernel", "papermill and its kernel"  # nothing of the kit runs there
LIMITS = dict.fromkeys((*NOTEBOOKS, RUNS, KAGGLE), 3) | {"train": 8}  # seconds; train needs torch, to look for a GPU
SIZE = (64, 48)  # height and width of the images, px
ROUNDS = 5
PATIENCE_S = 120  # with a kernel that says nothing
OUTPUTS = {"stream", "display_data", "execute_result"}  # Jupyter's kinds of messages
SHOWN = 70  # characters of a line


class StartupError(RuntimeError):
    """A notebook failed, or showed nothing."""


def main() -> None:
    """Measure, print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="one round: shows that everything works")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(make_parameters(Path(folder)), Path(folder), 1 if given.quick else given.rounds)
    print(table(results))
    write_json(given.out / "startup.json", results)


def make_parameters(folder: Path) -> dict[str, object]:
    """Make what the notebooks work on, and return the parameters that name it, those of all notebooks together."""
    competition = make_competition(folder / "phantom", n_train_patients=16, n_test_patients=4, height=96, positive_share=0.5)
    inputs = open_inputs(competition, folder / "cache", *SIZE)
    config = TrainConfig(ModelConfig("cnn", *SIZE), inputs.settings, n_folds=2, epochs=1, batch_size=8)
    train_run(config, inputs.cached_training_data(cpu_count()), folder / "run")
    tune([folder / "run"]).save(folder / "threshold.json")
    files = {"cache_dir": "cache", "run_dir": "new", "run_dirs": "run", "threshold_path": "threshold.json"}
    files |= {"competition_dir": competition.name, "report_path": "report.html", "submission_path": "submission.csv"}
    return {"image_height": SIZE[0], "image_width": SIZE[1]} | {name: str(folder / file) for name, file in files.items()}


def measure(parameters: dict[str, object], folder: Path, rounds: int) -> dict:
    """Measure everything in interleaved rounds, after one that does not count.

    Returns
    -------
    dict
        ``machine``; ``seconds``: by name, one number a round, and of a kernel one for each notebook too; ``lines``: the first
        useful line of each notebook.
    """
    commands = {
        RUNS: partial(time_command, "utils.runs", parameters["run_dirs"]),
        KAGGLE: partial(time_command, "utils.kaggle", "--help"),
        PAPERMILL: partial(time_papermill, folder),
    }
    lines = {}
    for number in range(1 + rounds):
        if number < 2:
            seconds = defaultdict(list)
        for name in NOTEBOOKS:
            kernel_s, waited_s, line = time_notebook(name, parameters)
            seconds[KERNEL].append(kernel_s)
            seconds[name].append(waited_s)
            lines[name] = line.replace(str(folder), "…")
        for name, run in commands.items():
            seconds[name].append(run())
    return {"machine": {"cpus": cpu_count(), "cpu": cpu_name()} | versions(), "seconds": seconds, "lines": lines}


def time_notebook(name: str, parameters: dict[str, object]) -> tuple[float, float, str]:
    """Return the seconds until a kernel answers, then those until the first useful line, and that line."""
    start = time.perf_counter()
    manager, client = start_new_kernel(kernel_name="python3", cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        ready = time.perf_counter()
        line = first_line(client, name, parameters)
        return ready - start, time.perf_counter() - ready, line
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def first_line(client: BlockingKernelClient, name: str, parameters: dict[str, object]) -> str:
    """Run a notebook's cells in order until one after the imports shows something; return its first line."""
    is_after_imports = False
    for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type != "code":
            continue
        source = cell.source
        if cell.id == "parameters":  # papermill too sets them after this cell
            given = {key: value for key, value in parameters.items() if f"\n{key}: " in f"\n{source}"}
            source += "".join(f"\n{key} = {value!r}" for key, value in given.items())
        line = run_cell(client, source, to_first_output=is_after_imports)
        if line:
            return line
        is_after_imports = is_after_imports or cell.id == "imports"
    raise StartupError(f"{name}.ipynb showed nothing after its imports.")


def run_cell(client: BlockingKernelClient, source: str, to_first_output: bool) -> str:
    """Run a cell to its end, or to its first output with ``to_first_output``; return that output's first line, or ''."""
    request = client.execute(source)
    while True:
        message = client.get_iopub_msg(timeout=PATIENCE_S)
        kind, content = message["msg_type"], message["content"]
        if message["parent_header"].get("msg_id") != request:
            continue
        if kind == "error":
            raise StartupError("\n".join(content["traceback"]))
        if kind == "status" and content["execution_state"] == "idle":
            return ""
        if to_first_output and kind in OUTPUTS:
            text = content["text"] if kind == "stream" else content["data"]["text/plain"]
            return text.strip().split("\n")[0]


def time_command(module: str, argument: str) -> float:
    """Return the seconds that ``python -m`` takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, argument], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def time_papermill(folder: Path) -> float:
    """Return the seconds until papermill runs a first cell, which prints the time."""
    source, executed = folder / "clock.ipynb", folder / "clock-executed.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell("import time\n\nprint(time.time())")], metadata=kernel), source)
    start = time.time()
    subprocess.run([sys.executable, "-m", "papermill", source, executed], check=True, capture_output=True)
    (output,) = nbformat.read(executed, as_version=4).cells[0].outputs
    return float(output.text) - start


def table(results: dict) -> str:
    """Return the Markdown table."""
    machine, seconds = results["machine"], results["seconds"]
    head = ("from the start of", "to its first useful line, s", "limit, s", "the line")
    rows = []
    for name in (*LIMITS, KERNEL, PAPERMILL):
        times = f"{median(seconds[name]):.1f} [{min(seconds[name]):.1f}, {max(seconds[name]):.1f}]"
        rows.append([name, times, str(LIMITS.get(name, "–")), results["lines"].get(name, "–")[:SHOWN]])
    caption = f"On {machine['cpus']} CPUs ({machine['cpu']}): medians of {len(seconds[PAPERMILL])} rounds [lowest, highest]."
    return "\n".join([caption, "", *markdown(head, rows)]) + "\n"


if __name__ == "__main__":
    main()
