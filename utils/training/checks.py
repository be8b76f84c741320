"""Checks that the data suit a configuration, before any image is preprocessed."""

import pandas as pd

from utils.images.training_data import TrainingData
from utils.runs.config import TrainConfig
from utils.runs.errors import TrainingError
from utils.runs.execution import Execution
from utils.runs.leaks import check_features
from utils.tables.vocabulary import CATEGORIES

NO_BOX = "None of the images has a box. Set boxes_path to the file of this competition, or of a set in extra_competition_dirs."


def check_training(config: TrainConfig, data: TrainingData, execution: Execution) -> TrainingData:
    """Check that a configuration can be trained on the data; the images need not be cached yet.

    Returns
    -------
    TrainingData
        The same, with folds.

    Raises
    ------
    KitError
        As `utils.training.folds.train_run` does because of the data.
    """
    check_boxes(config, data)
    if config.batch_size % execution.world_size:
        raise TrainingError(f"batch_size is {config.batch_size}, which {execution.world_size} processes can't share evenly.")
    if config.model.reads_metadata:
        check_features(data.images, ("age", "implant", *CATEGORIES))
    if data.extra is not None:
        check_apart(data.images, data.extra)
    data = data.with_folds(config.n_folds, config.seed, config.fold_by)
    for fold in config.folds or range(config.n_folds):
        check_classes(data, fold)
        if config.patch_epochs:
            check_patches(data, fold)
    return data


def check_boxes(config: TrainConfig, data: TrainingData) -> None:
    """Raise TrainingError if boxes are needed and there are none, or none in these images."""
    if data.boxes is None and config.needs_boxes:
        raise TrainingError(
            "box_weight and patch_epochs need boxes: give boxes_path, or other sets with a boxes.csv (utils.external"
            " writes it) in extra_competition_dirs."
        )
    if data.boxes is not None and not data.boxes.image_id.isin(pd.concat([data.images, data.extra]).image_id).any():
        raise TrainingError(NO_BOX)


def check_apart(images: pd.DataFrame, extra: pd.DataFrame) -> None:
    """Raise TrainingError if an extra image occurs twice, or is of a patient whom a fold may hold out."""
    shared = extra.patient_id[extra.patient_id.isin(images.patient_id)]
    if len(shared):
        raise TrainingError(
            f"extra_competition_dirs: patient {shared.iloc[0]} is in the competition too, and would train the model that"
            " predicts it. Give other sets, converted by utils.external."
        )
    repeated = extra.image_id[extra.image_id.duplicated() | extra.image_id.isin(images.image_id)]
    if len(repeated):
        raise TrainingError(f"extra_competition_dirs: image {repeated.iloc[0]} occurs twice. Name each set once.")


def check_classes(data: TrainingData, fold: int) -> None:
    """Raise TrainingError if a fold's training images of the competition are all of one class."""
    inside = data.images[data.images.fold != fold]
    if inside.cancer.nunique() < 2:
        found = "cancer" if inside.cancer.any() else "no cancer"
        raise TrainingError(
            f"Fold {fold}: all {len(inside)} images of the other folds show {found}, so there is nothing to learn. Use"
            " fewer folds, or more patients."
        )


def check_patches(data: TrainingData, fold: int) -> None:
    """Raise TrainingError if a fold's training images have no boxes to cut patches around."""
    inside = data.inside(fold)
    if not inside.image_id.isin(data.boxes.image_id).any():
        raise TrainingError(
            f"Fold {fold}: patches need boxes, and none of the {len(inside)} images of the other folds has one. Add a set that"
            " has boxes to extra_competition_dirs, or set patch_epochs to 0."
        )
