"""The folder of a run, as training writes it.

It contains ``config.json``, ``folds.csv``, ``oof.csv`` and ``history.csv``, and for each fold ``fold{k}/`` with
``weights.safetensors`` (averaged weights of the kept epoch), ``history.csv``, ``oof.csv``, ``start.json`` if the fold started
from other weights, and ``checkpoint.pt`` until the fold is finished. ``extra.csv`` lists training images of other sets; they
are in no fold.
"""

import hashlib
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd

from utils.core.files import write_csv, write_json
from utils.images.cached import picture_path
from utils.images.training_data import TrainingData
from utils.runs.code import changed_versions, code_versions
from utils.runs.config import TrainConfig
from utils.runs.errors import TrainingError
from utils.runs.run import Run, RunNotes, read_fold_oof
from utils.runs.tables import EXTRA_COLUMNS, FOLD_COLUMNS, PROBE_FILE, read_history_table, read_oof, read_run_table
from utils.tables.boxes import BOXES_FILE

MAY_CHANGE = ("folds", "micro_batch_size", "activation_checkpointing")  # between calls for the same run
READERS = {  # of the tables of folds
    "oof.csv": read_fold_oof,
    PROBE_FILE: read_oof,
    "history.csv": read_history_table,
    BOXES_FILE: partial(read_run_table, columns=[]),
}
SHOWN = 3


def claim_run(run_dir: Path, config: TrainConfig, data: TrainingData, data_hash: str) -> None:
    """Write the configuration into a new run folder, or check that an existing one contains the same run.

    Warn if an existing run was started with other code.

    Parameters
    ----------
    data : TrainingData
        With folds.
    data_hash : str
        From `hash_data`.

    Raises
    ------
    TrainingError
        If the folder contains a run with other settings, or on other data.
    """
    if (run_dir / "config.json").is_file():
        check_same_run(run_dir, config, data.images)
        _check_same_data(Run(run_dir), data.images, data_hash)
        return
    images, extra = data.images, data.extra
    notes = RunNotes(
        prevalence=float(images.groupby("prediction_id").cancer.first().mean()),
        settings_hash=config.preprocessing.hash,
        data_hash=data_hash,
        phantom=data.is_phantom,
        smoke_test=data.smoke_test,
        extra_sets={} if extra is None else extra.groupby("extra_set", sort=False).size().to_dict(),
        versions=code_versions(),
    )
    write_csv(run_dir / "folds.csv", images[FOLD_COLUMNS].drop_duplicates().sort_values("patient_id"))
    if extra is not None:
        write_csv(run_dir / "extra.csv", extra[EXTRA_COLUMNS])
    write_json(run_dir / "config.json", config.to_json() | asdict(notes))


def check_same_run(run_dir: Path, config: TrainConfig, images: pd.DataFrame) -> None:
    """Refuse to resume a run of another configuration, or on a train table that lacks some of its patients.

    The images need not have folds yet; `claim_run` also compares those.

    Raises
    ------
    KitError
        If the folder contains such a run, or an unreadable one.
    """
    run = Run(run_dir)
    differing = differing_settings(run.config.to_json(), config)
    if differing:
        raise TrainingError(
            f"{run_dir} contains a run with other settings ({', '.join(differing)}): choose another run_dir, or delete it."
        )
    if not run.patients().patient_id.isin(images.patient_id).all():
        raise _other_data(run)


def differing_settings(found: dict, config: TrainConfig) -> list[str]:
    """List the settings in which ``found``, a configuration as a dictionary, differs from ``config``."""
    wanted, found = _comparable(config.to_json()), _comparable(found)
    return [name for name in {**wanted, **found} if name not in MAY_CHANGE and found.get(name) != wanted.get(name)]


def _comparable(content: dict) -> dict:
    """Reduce ``weights_path`` to whether there is one: `utils.training.sources` checks that the weights are the same."""
    model = content.get("model")
    if not isinstance(model, dict):
        return content
    return content | {"model": model | {"weights_path": bool(model.get("weights_path"))}}


def _check_same_data(run: Run, images: pd.DataFrame, data_hash: str) -> None:
    """Refuse folds or data that differ from an existing run's; warn if the code differs."""
    folds, notes = run.patients(), run.notes
    same_folds = dict(zip(folds.patient_id, folds.fold, strict=True)) == dict(zip(images.patient_id, images.fold, strict=True))
    if not same_folds or notes.data_hash not in ("", data_hash):
        raise _other_data(run)
    changed = changed_versions(notes.versions)
    if changed:
        remedy = "To train all folds with the same code, choose another run_dir."
        print(f"Warning: {run.folder} was started with other code: {changed} {remedy}")


def _other_data(run: Run) -> TrainingError:
    sets = ", ".join(run.notes.extra_sets) or "none"
    return TrainingError(
        f"{run.folder} was started on other images, labels or folds, or with other extra_competition_dirs (then: {sets}):"
        " choose another run_dir, or delete it."
    )


def hash_data(data: TrainingData) -> str:
    """Hash a train table, the sizes of its cached images, the boxes, and the images of other sets.

    Raises
    ------
    TrainingError
        If a cache lacks images; names the first.
    """
    tables = [_with_sizes(data.images, data.cache_dir), *([] if data.boxes is None else [data.boxes])]
    if data.extra is not None:  # the location of their caches does not matter
        parts = data.extra.groupby("cache_dir", sort=False)
        tables += [_with_sizes(part.drop(columns="cache_dir"), folder) for folder, part in parts]
    text = "".join(table.to_csv(index=False) for table in tables)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _with_sizes(images: pd.DataFrame, cache_dir: str | Path) -> pd.DataFrame:
    """Add the sizes of the cached images in bytes."""
    sizes, missing = [], []
    for image_id in images.image_id:
        try:
            sizes.append(picture_path(cache_dir, "train", image_id).stat().st_size)
        except FileNotFoundError:
            missing.append(image_id)
    if missing:
        raise TrainingError(
            f"The cache {cache_dir} lacks {len(missing)} of {len(images)} images ({', '.join(missing[:SHOWN])}"
            f"{', …' if len(missing) > SHOWN else ''}): run preprocess.ipynb with the same cache_dir, then train again."
        )
    return images.assign(bytes=sizes)


def collect_folds(run_dir: Path, name: str) -> pd.DataFrame:
    """Concatenate a table of all finished folds, and write it into the run's folder."""
    files = [fold_dir / name for fold_dir in Run(run_dir).finished_folds() if (fold_dir / name).is_file()]
    table = pd.concat([READERS[name](file) for file in files], ignore_index=True)
    write_csv(run_dir / name, table)
    return table
