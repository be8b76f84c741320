"""What a training can't begin with: data that do not suit its configuration, told before any picture is made."""

import pandas as pd

from utils.runs.config import TrainConfig, TrainingError
from utils.runs.execution import Execution
from utils.runs.leaks import check_features
from utils.tables.competition import assign_folds
from utils.tables.vocabulary import CATEGORIES

NO_BOX = "No box lies in any of the images: is boxes_path the file of this competition, or of a set in extra_competition_dirs?"


def check_training(
    config: TrainConfig,
    images: pd.DataFrame,
    execution: Execution,
    boxes: pd.DataFrame | None = None,
    extra: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Refuse data that a configuration can't be trained on; the images need not be cached yet.

    Parameters
    ----------
    config, images, execution, boxes, extra
        As of `train_run`.

    Returns
    -------
    DataFrame
        ``images`` with the column ``fold``.

    Raises
    ------
    KitError
        As `train_run` does of the data.
    """
    check_boxes(config, images, boxes, extra)
    check_shares(config, execution)
    if config.model.reads_metadata:
        check_features(images, ("age", "implant", *CATEGORIES))
    if extra is not None:
        check_apart(images, extra)
    images = assign_folds(images, config.n_folds, config.seed, config.fold_by)
    for fold in config.folds or range(config.n_folds):
        inside = images[images.fold != fold]
        check_classes(inside, fold)
        if config.patch_epochs:
            check_patches(pd.concat([inside, extra]), boxes, fold)
    return images


def check_boxes(
    config: TrainConfig, images: pd.DataFrame, boxes: pd.DataFrame | None, extra: pd.DataFrame | None = None
) -> None:
    """Refuse a configuration that needs boxes where there are none, or none of these images."""
    if boxes is None and (config.box_weight or config.patch_epochs):
        raise TrainingError(
            "box_weight and patch_epochs need boxes: give boxes_path, or other sets that hold a boxes.csv (utils.external"
            " writes it) in extra_competition_dirs."
        )
    if boxes is not None and not boxes.image_id.isin(pd.concat([images, extra]).image_id).any():
        raise TrainingError(NO_BOX)


def check_shares(config: TrainConfig, execution: Execution) -> None:
    """Refuse a batch that the processes of a fold can't share evenly."""
    if config.batch_size % execution.world_size:
        raise TrainingError(f"batch_size is {config.batch_size}, which {execution.world_size} processes can't share evenly.")


def check_apart(images: pd.DataFrame, extra: pd.DataFrame) -> None:
    """Refuse extra images of patients that a fold may hold out, and those that come twice."""
    shared = extra.patient_id[extra.patient_id.isin(images.patient_id)]
    if len(shared):
        raise TrainingError(
            f"extra_competition_dirs: patient {shared.iloc[0]} is in the competition too, and would train the model that"
            " predicts it. Give other sets, converted by utils.external."
        )
    repeated = extra.image_id[extra.image_id.duplicated() | extra.image_id.isin(images.image_id)]
    if len(repeated):
        raise TrainingError(f"extra_competition_dirs: image {repeated.iloc[0]} comes twice. Name each set once.")


def check_classes(inside: pd.DataFrame, fold: int) -> None:
    """Refuse a fold that leaves one class to learn from.

    Parameters
    ----------
    inside : DataFrame
        Images of the other folds.
    fold : int

    Raises
    ------
    TrainingError
        If all training images are of one class.
    """
    if inside.cancer.nunique() < 2:
        found = "cancer" if inside.cancer.any() else "no cancer"
        raise TrainingError(
            f"Fold {fold}: all {len(inside)} images of the other folds show {found}: there is nothing to tell apart. Use"
            " fewer folds, or more patients."
        )


def check_patches(inside: pd.DataFrame, boxes: pd.DataFrame, fold: int) -> None:
    """Refuse a fold whose training images have no boxes to cut patches around.

    Raises
    ------
    TrainingError
        If no training image has a box.
    """
    if not inside.image_id.isin(boxes.image_id).any():
        raise TrainingError(
            f"Fold {fold}: patches need boxes, and none of the {len(inside)} images of the other folds has one. Add a set that"
            " has boxes to extra_competition_dirs, or set patch_epochs to 0."
        )
