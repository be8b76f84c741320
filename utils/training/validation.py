"""What the predictions of held-out items are worth after an epoch, and which epoch is best."""

import math
from collections.abc import Sequence

import numpy as np

from utils.metrics.scores import area_under_roc, best_threshold, sigmoid
from utils.training.dataset import ImageDataset


def validation_metrics(dataset: ImageDataset, logits: np.ndarray) -> dict[str, float]:
    """Return loss per item, and AUC and pF1 per breast (mean probability of its items; threshold tuned on these breasts)."""
    labels = dataset.labels
    if not len(labels):  # patch training may hold out no box
        return dict.fromkeys(("valid_loss", "valid_auc", "valid_pf1"), math.nan)
    loss = np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean()  # binary cross-entropy
    breasts = dataset.items.assign(probability=sigmoid(logits), cancer=labels)
    breasts = breasts.groupby("prediction_id")[["cancer", "probability"]].mean()
    return {
        "valid_loss": float(loss),
        "valid_auc": area_under_roc(breasts.cancer, breasts.probability),
        "valid_pf1": best_threshold(breasts.cancer, breasts.probability)[1],
    }


def best_epoch(history: Sequence[dict]) -> int:
    """Return the first epoch with the highest AUC, or with the lowest loss if AUC is undefined."""
    if any(math.isnan(row["valid_auc"]) for row in history):
        return int(np.argmin([row["valid_loss"] for row in history]))
    return int(np.argmax([row["valid_auc"] for row in history]))
