"""A table of runs, finished or not: how their configurations differ, their progress, and their results."""

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils.core.errors import KitError
from utils.metrics.intervals import PatientBootstrap
from utils.metrics.thresholds import nested_decisions
from utils.runs.folder import MAY_CHANGE
from utils.runs.found import folders_with, name_runs
from utils.runs.oof import oof_of_runs
from utils.runs.run import Run
from utils.runs.tables import read_history_table

LONGEST_HASH = 6  # characters, of code and data


def find_run_folders(folders: Sequence[Path]) -> list[Path]:
    """List run folders, finished or not, oldest first; each of ``folders`` is a run or contains runs.

    Raises
    ------
    KitError
        If a folder does not exist.
    """
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise KitError(f"{folder} does not exist: name a run folder, or a folder of runs.")
        is_run = (folder / "config.json").is_file()
        runs += [folder] if is_run else folders_with({"config.json", "folds.csv"}, folder)
    return sorted(dict.fromkeys(runs), key=_start)


def list_runs(run_dirs: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Tabulate runs in the given order.

    Returns
    -------
    table : DataFrame
        Indexed by the run's name. The settings in which the runs differ, of which ``code`` and ``data`` are hashes; finished
        folds, and the epochs of unfinished ones; AUC and pF1 per breast, out of fold; seconds of training; start. Breasts
        are scored by the mean of their images, and ``pf1_nested`` decides each fold with the threshold of the others. Both
        are empty as long as there is no fold, or no second one, to compute them from.
    unreadable : dict of str to str
        Name of each run that can't be read, and the reason.
    """
    settings, results, unreadable = {}, {}, {}
    for name, run_dir in name_runs(run_dirs).items():
        run = Run(run_dir)
        try:
            settings[name], results[name] = _settings(run), _results(run)
        except (KitError, OSError) as error:
            settings.pop(name, None)
            unreadable[name] = " ".join(str(error).split())  # one line
    every = pd.DataFrame.from_dict(settings, orient="index", dtype=str)
    differing = [column for column in every if every[column].nunique() > 1]
    return every[differing].join(pd.DataFrame.from_dict(results, orient="index")), unreadable


def _settings(run: Run) -> dict[str, str]:
    """Return the settings that determine a run's weights as text, by field."""
    config = run.config.to_json()
    model, preprocessing = config.pop("model"), config.pop("preprocessing")
    hashes = {"code": run.notes.versions.get("code", ""), "data": run.notes.data_hash}
    fields = preprocessing | model | config | {name: text[:LONGEST_HASH] for name, text in hashes.items()}
    return {name: str(value) for name, value in fields.items() if name not in MAY_CHANGE}


def _results(run: Run) -> dict[str, str]:
    patches, images = _histories(run, "patches/history.csv"), _histories(run, "history.csv")
    finished = [fold_dir.name for fold_dir in run.finished_folds()]
    seconds = sum(table["seconds"].sum() for table in [*patches.values(), *images.values()] if "seconds" in table)
    return {
        "folds": ", ".join([f"{len(finished)}/{run.config.n_folds}", *_unfinished(run, patches, images, finished)]),
        **_scores(run),
        "seconds": f"{seconds:.0f}",
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(_start(run.folder))),
    }


def _histories(run: Run, name: str) -> dict[str, pd.DataFrame]:
    return {fold_dir.name: read_history_table(fold_dir / name) for fold_dir in run.folds_with(name)}


def _unfinished(run: Run, patches: dict, images: dict, finished: Sequence[str]) -> list[str]:
    """Return the epochs of each fold that has begun and is not finished, as text."""
    config = run.config
    progress = {fold: f"{fold} {len(table)}/{config.patch_epochs} epochs of patches" for fold, table in patches.items()}
    progress |= {fold: f"{fold} {len(table)}/{config.epochs} epochs" for fold, table in images.items()}
    return [text for fold, text in progress.items() if fold not in finished]


def _scores(run: Run) -> dict[str, str]:
    scores = {"AUC [95 %]": "", "pf1_nested [95 %]": ""}
    if not (run.folder / "oof.csv").is_file():
        return scores
    breasts = oof_of_runs([run.folder])
    bootstrap = PatientBootstrap(breasts.patient_id)
    scores["AUC [95 %]"] = str(bootstrap.auc(breasts.cancer, breasts.probability))
    if breasts.fold.nunique() > 1:
        decisions = nested_decisions(breasts.cancer, breasts.probability, breasts.fold)
        scores["pf1_nested [95 %]"] = str(bootstrap.pf1(breasts.cancer, decisions))
    return scores


def _start(run_dir: Path) -> float:
    """Return when a run was started, which is when its config.json was written; 0 if that is gone."""
    try:
        return (run_dir / "config.json").stat().st_mtime
    except OSError:
        return 0.0
