"""``python -m utils.runs [FOLDER ...]`` lists runs in a table, the newest last."""

import argparse
from pathlib import Path

from utils.core.errors import KitError
from utils.core.folders import KAGGLE_INPUT, runs_dir
from utils.runs.code import warn_of_other_code
from utils.runs.listing import find_run_folders, list_runs


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.runs", description="List runs in a table, the newest last.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help=f"a run, or runs; default: {runs_dir()}")
    folders = parser.parse_args().folders or [folder for folder in (runs_dir(), KAGGLE_INPUT) if folder.is_dir()]
    try:
        runs = find_run_folders(folders)
    except KitError as error:
        parser.error(str(error))
    if not runs:
        print("No run found: run train.ipynb, or name a folder of runs.")
        return
    table, unreadable = list_runs(runs)
    if len(table):
        print(table.to_string())
    for name, reason in unreadable.items():
        print(f"{name} can't be listed. {reason}")
    warn_of_other_code(runs)


if __name__ == "__main__":
    _main()
