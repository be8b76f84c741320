"""What a model says of patients that trained it: how much it has learnt by heart."""

from pathlib import Path

import pandas as pd

from utils.core.environment import pick_device
from utils.metrics.scores import sigmoid
from utils.runs.oof import aggregate, one_image_per_breast
from utils.runs.run import Run
from utils.training.folds import load_fold, make_dataset
from utils.training.inference import predict_logits

TRAINING_PATIENTS = 200  # that a model is asked about again


def predict_training_rows(
    run_dir: Path, images: pd.DataFrame, cache_dir: Path, aggregation: str = "mean", one_image: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Ask a run's first model about some patients that trained it: how much it has learnt by heart.

    Parameters
    ----------
    run_dir : Path
    images : DataFrame
        The train table.
    cache_dir : Path
    aggregation, one_image
        As in `utils.runs.oof.oof_of_runs`.
    seed : int
        Of the draw of `TRAINING_PATIENTS` patients.

    Returns
    -------
    DataFrame
        Columns prediction_id, patient_id, cancer, probability. **No estimate of anything on new patients.**
    """
    config, fold_dir = Run(run_dir).config, Run(run_dir).finished_folds()[0]
    folds = Run(run_dir).patients()
    patients = folds.patient_id[folds.fold != int(fold_dir.name.removeprefix("fold"))].drop_duplicates()
    chosen = patients.sample(min(TRAINING_PATIENTS, len(patients)), random_state=seed)
    model, vocabulary = load_fold(config, fold_dir)
    device = pick_device()
    dataset = make_dataset(config, images[images.patient_id.isin(chosen)], cache_dir, "train", vocabulary)
    probability = sigmoid(predict_logits(model.to(device), dataset, config, device))
    table = dataset.items.assign(probability=probability)
    table = one_image_per_breast(table, seed) if one_image else table
    breasts = table.drop_duplicates("prediction_id").set_index("prediction_id")[["patient_id", "cancer"]]
    return breasts.assign(probability=aggregate(table, aggregation)).reset_index()
