"""Predictions for patients that trained the model: how much it has memorised."""

from pathlib import Path

import pandas as pd

from utils.core.devices import pick_device
from utils.metrics.scores import sigmoid
from utils.runs.oof import aggregate, one_image_per_breast
from utils.runs.run import Run
from utils.tables.breasts import by_breast
from utils.training.dataset import make_dataset
from utils.training.fold_weights import load_fold
from utils.training.inference import predict_logits

TRAINING_PATIENTS = 200  # patients to predict again


def predict_training_rows(
    run_dir: Path, images: pd.DataFrame, cache_dir: Path, aggregation: str = "mean", one_image: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Predict `TRAINING_PATIENTS` patients that trained a run's first model: how much it has memorised.

    Return prediction_id, patient_id, cancer, probability. **This estimates nothing on new patients.** ``aggregation``
    and ``one_image`` are as in `utils.runs.oof.oof_of_runs`.
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
    breasts = by_breast(table)[["patient_id", "cancer"]]
    return breasts.assign(probability=aggregate(table, aggregation)).reset_index()
