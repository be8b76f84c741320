"""Named recipes: sets of training settings, each with its purpose and the results measured so far."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Settings that differ from the defaults of `utils.runs.config` and `utils.runs.execution`.

    Parameters
    ----------
    purpose, source, measured : str
        Its purpose, the work that it follows, and its measured results with their data.
    hours : float or None
        Estimated time of training all folds of the competition on two T4, at 7 TFLOP/s each (2.3 if most convolutions are
        depthwise). None if it depends on the data.
    settings : mapping of str to object
        Value by field name. Missing image sizes follow from the data.
    """

    purpose: str
    source: str
    measured: str
    hours: float | None
    settings: Mapping[str, object]


PAPER = "Gudur et al. 2024 (CNN, RNN hybrid and ResNet50 on square images)"
NOT_YET = "not yet on the competition's images"

RECIPES = {
    "plain": Recipe(
        purpose="the kit's defaults with random weights, for phantoms, smoke tests and your own settings",
        source="nothing published",
        measured="only on the phantom (make demo)",
        hours=None,
        settings={"architecture": "resnet50"},
    ),
    "quick": Recipe(
        purpose="a first experiment on the competition's images",
        source="early public notebooks (a small pretrained network, positives drawn more often)",
        measured=NOT_YET,
        hours=1,
        settings={"architecture": "efficientnet_b0", "pretrained": True, "epochs": 3, "positive_share": 0.2},
    ),
    "paper_256": Recipe(
        purpose="the paper's comparison at 256 px; run it with -p architecture rnn and cnn (and -p pretrained false) too",
        source=PAPER,
        measured="films of 256 x 192 px, AUC 0.750 [0.704, 0.794] for rnn with a lite0 encoder, 0.615 [0.545, 0.686] for cnn",
        hours=1,
        settings={"architecture": "resnet50", "pretrained": True, "epochs": 10, "image_height": 256, "image_width": 256},
    ),
    "paper_512": Recipe(
        purpose="the same at 512 px",
        source=PAPER,
        measured=NOT_YET,
        hours=4,
        settings={"architecture": "resnet50", "pretrained": True, "epochs": 10, "image_height": 512, "image_width": 512},
    ),
    "strong": Recipe(
        purpose="as much training as a week of Kaggle's GPU hours allows",
        source="public top solutions (ConvNeXt at 2048 x 1024, EMA, label smoothing, auxiliary targets)",
        measured=NOT_YET,
        hours=28,
        settings={
            "architecture": "convnext_small",
            "pretrained": True,
            "image_height": 2048,
            "image_width": 1024,
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 1e-4,
            "drop_path": 0.2,
            "label_smoothing": 0.1,
            "auxiliary_weight": 0.1,
            "positive_share": 0.2,
            "ema_decay": 0.999,
        },
    ),
    "probe": Recipe(
        purpose="a logistic regression on features from pretrained weights, as the floor; the network is not trained",
        source="linear probes",
        measured="films of 512 x 384 px, tf_efficientnet_lite0, AUC 0.766 [0.725, 0.808]",
        hours=0.1,
        settings={"architecture": "efficientnet_b0", "pretrained": True, "epochs": 0, "pooling": "stages"},
    ),
    "patches": Recipe(
        purpose="patches around boxes first, then a head for images; needs boxes, from the competition or from extra sets",
        source="patch classifiers that initialise an image classifier (Shen et al. 2019)",
        measured="films of 768 x 576 px, tf_efficientnet_lite0, AUC 0.837 [0.808, 0.865]",
        hours=None,
        settings={
            "architecture": "efficientnet_b0",
            "pretrained": True,
            "epochs": 0,
            "patch_epochs": 10,
            "patch_size": 160,
            "learning_rate": 5e-4,
        },
    ),
}
