"""The settings that determine a run's weights: the configuration of its network and of its training."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from utils.core.formats import build, check, check_types, is_number, is_whole, select_fields
from utils.images.settings import LARGEST_SIDE, CacheSettings
from utils.runs.errors import ModelError, TrainingError
from utils.tables.folds import FOLD_BY, MOST_FOLDS

LEVELS = ("image", "breast")
RECURRENT_CELLS = ("gru", "lstm", "rnn")
MOST_HIDDEN = 2**16
PLAIN_NAME = r"[A-Za-z0-9_.-]+"  # of an architecture: no path, and no address of a hub
OFF_IS_ZERO = ("positive_share", "max_views")  # None in a configuration, 0 in a notebook
KEEP_EPOCH = ("best_auc", "last")
STRONGEST = 3.0  # times the tuned augmentation: its rectangles' probability reaches 1 a little above
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
# Fields that configurations of older runs have, and the value that every run has now.
RETIRED = {"layer_decay": 1.0, "loss": "bce", "cutmix": 0.0}
RETIRED_OF_MODEL = {"view_pooling": "attention"}


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a network.

    Parameters
    ----------
    architecture : str
        ``cnn``, ``rnn``, or a timm name such as ``resnet50``, ``efficientnet_b0`` or ``maxvit_nano_rw_256``.
    image_height, image_width : int
        In pixels.
    level : {"image", "breast"}
        What it reads at once: an image, or all images of a breast. ``rnn`` always reads breasts.
    pretrained : bool
        Load timm's weights, which needs internet access. ``rnn`` loads them into its timm encoders.
    weights_path : str
        Load a local file instead; see `utils.networks.encoders.build_encoder`. Empty for none. In a `TrainConfig` it may be the
        folder of another run; see `utils.training.sources`.
    pooling : {"", "stages"}
        Pooling of the encoder's maps: the network's own, or mean and maximum of the last stages; see
        `utils.networks.encoders.Encoder`.
    dropout, drop_path : float
        Dropout before the head, and dropout of residual branches if the network has them.
    box_head : bool
        Also predict a box.
    metadata : bool
        Add a logit from age, implant, view, machine and site to that of the images. ``rnn`` always reads them as features of
        each image.
    encoders : tuple of str
        Image encoders of ``rnn``.
    recurrent_cell : {"gru", "lstm", "rnn"}
    hidden_size : int
        Size of the recurrent cell's state.

    Raises
    ------
    ModelError
        If a value has the wrong type, is unknown or out of range, or contradicts another one.
    """

    architecture: str
    image_height: int
    image_width: int
    level: str = "image"
    pretrained: bool = False
    weights_path: str = ""
    pooling: str = ""
    dropout: float = 0.2
    drop_path: float = 0.0
    box_head: bool = False
    metadata: bool = False
    encoders: tuple[str, ...] = ("cnn", "resnet50")
    recurrent_cell: str = "gru"
    hidden_size: int = 128

    def __post_init__(self):
        """Check types and ranges: they may come from a notebook, or from somebody else's config.json."""
        check_types(self, ModelError)
        for name in ("image_height", "image_width"):
            value = getattr(self, name)
            check(1 <= value <= LARGEST_SIDE, name, value, f"from 1 to {LARGEST_SIDE}", ModelError)
        for field, name in (("architecture", self.architecture), *(("encoders", name) for name in self.encoders)):
            check(re.fullmatch(PLAIN_NAME, name) is not None, field, name, "cnn, rnn or a timm name", ModelError)
        for name, choices in {"level": LEVELS, "recurrent_cell": RECURRENT_CELLS}.items():
            value = getattr(self, name)
            _require(value in choices, f"{name} is {value!r}; choose from {', '.join(choices)}.")
        for name in ("dropout", "drop_path"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1", ModelError)
        check(1 <= self.hidden_size <= MOST_HIDDEN, "hidden_size", self.hidden_size, f"from 1 to {MOST_HIDDEN}", ModelError)
        _require(not self.box_head or self.item == "image", "A box is predicted for an image: box_head needs level image.")
        if self.architecture == "rnn":
            check(bool(self.encoders), "encoders", self.encoders, "one network or more", ModelError)

    @property
    def item(self) -> str:
        """The kind of item in its data set: ``image`` or ``breast``."""
        return "breast" if self.architecture == "rnn" else self.level

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """Names of the image encoders: several for ``rnn``, else the architecture."""
        return self.encoders if self.architecture == "rnn" else (self.architecture,)

    @property
    def reads_metadata(self) -> bool:
        """Whether it reads age, implant, view, machine or site, which then must not be labels."""
        return self.metadata or self.item != "image"


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a run's weights; saved as JSON next to them.

    Parameters
    ----------
    model : ModelConfig
    preprocessing : CacheSettings
        Settings of the cache that the run trains on.
    n_folds : int
    fold_by : {"patient", "machine"}
        Groups that are held out together; ``machine`` tests the model on machines that it never saw.
    folds : tuple of int
        Folds to train; empty for all.
    epochs, batch_size : int
        A batch counts items: images, or breasts if the model reads those. It is the batch of one step, over all processes. With
        0 epochs the encoder stays as it is, and the head is a logistic regression on its features (`utils.training.probe`).
    learning_rate, weight_decay : float
        Of AdamW, at the peak of the schedule, which is a linear warm-up followed by a cosine to zero. Biases and norms do not
        decay.
    freeze_stages : int
        Number of first encoder stages that keep their starting weights; see `utils.networks.encoders.Encoder.freeze`.
    freeze_norms : bool
        Keep the batch-normalisation statistics of the starting weights.
    warmup_share : float
        Share of all steps.
    label_smoothing : float
        Moves the labels to ``label_smoothing / 2`` and ``1 - label_smoothing / 2``.
    positive_weight : float
        Weight of a positive item in the loss.
    auxiliary_weight : float
        Weight of the auxiliary targets' loss (`utils.networks.auxiliary`); 0 trains without that head.
    box_weight : float
        Weight of the box loss, on images that have a box; 0 trains without that head. The total is L_cancer + box_weight *
        L_box.
    positive_share : float or None
        Share of positives that the sampler draws; None draws every item once.
    mixup : float
        Parameter of the beta distribution from which the share of the mixed-in image is drawn; 0 for no mixup.
    ema_decay : float
        Decay of the running average of weights, which is evaluated and kept; 0 keeps the raw weights.
    clip_norm : float
        Largest gradient norm.
    augment_strength : float
        See `utils.training.augment.Augment`.
    test_time_flip : bool
        Predict the mean logit of an image and its mirror image.
    max_views : int or None
        Maximum number of a breast's images that are seen at once, drawn at random; None for all.
    patch_epochs, patch_size : int
        Epochs on patches around boxes, and the patches' side in pixels. The image model then starts from their encoder.
    keep_epoch : {"best_auc", "last"}
        ``best_auc`` keeps the epoch with the highest AUC per breast on the held-out fold (the lowest loss if AUC is undefined).
        The out-of-fold predictions are then a little too good, since the fold chose its epoch. ``last`` keeps them honest.
    micro_batch_size : int
        Number of items computed at once; their gradients add up to a step's. 0 starts with ``batch_size``. If memory runs out,
        it is halved automatically.
    activation_checkpointing : bool
        Compute activations twice instead of keeping them: a third more time, a fraction of the memory.
    precision : {"auto", "float32", "bfloat16", "float16"}
    deterministic : bool
        Make weights reproducible on a GPU too, at some cost in speed; on a CPU they always are.
    seed : int
    """

    model: ModelConfig
    preprocessing: CacheSettings
    n_folds: int = 4
    fold_by: str = "patient"
    folds: tuple[int, ...] = ()
    epochs: int = 8
    batch_size: int = 16
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    freeze_stages: int = 0
    freeze_norms: bool = False
    warmup_share: float = 0.1
    label_smoothing: float = 0.0
    positive_weight: float = 1.0
    auxiliary_weight: float = 0.0
    box_weight: float = 0.0
    positive_share: float | None = None
    mixup: float = 0.0
    ema_decay: float = 0.99
    clip_norm: float = 1.0
    augment_strength: float = 1.0
    test_time_flip: bool = False
    max_views: int | None = None
    patch_epochs: int = 0
    patch_size: int = 64
    keep_epoch: str = "last"
    micro_batch_size: int = 0
    activation_checkpointing: bool = False
    precision: str = "auto"
    deterministic: bool = False
    seed: int = 0

    def __post_init__(self):
        """Check types and ranges: papermill passes ``-p`` values that are not plain numbers as text."""
        counts = ("n_folds", "epochs", "batch_size", "freeze_stages", "patch_epochs", "patch_size", "micro_batch_size", "seed")
        for name in counts:
            value = getattr(self, name)
            _check(is_whole(value) and value >= 0, name, value, "a whole number of 0 or more")
        for name in (field.name for field in fields(self) if field.type is float):
            value = getattr(self, name)
            wanted = "a number of 0 or more (YAML wants 1.0e-4, not 1e-4)"
            _check(is_number(value) and value >= 0, name, value, wanted)
        check_types(self, TrainingError)
        for name, choices in {"keep_epoch": KEEP_EPOCH, "precision": PRECISIONS}.items():
            _check(getattr(self, name) in choices, name, getattr(self, name), f"one of {', '.join(choices)}")
        _check(self.fold_by in FOLD_BY, "fold_by", self.fold_by, f"one of {', '.join(FOLD_BY)}")
        _check(self.seed < 2**32, "seed", self.seed, "below 2**32")  # NumPy's limit
        _check(2 <= self.n_folds <= MOST_FOLDS, "n_folds", self.n_folds, f"2 or more, and at most {MOST_FOLDS}")
        inside = all(0 <= fold < self.n_folds for fold in self.folds) and len(set(self.folds)) == len(self.folds)
        _check(inside, "folds", self.folds, f"different numbers from 0 to {self.n_folds - 1}")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        self._check_shares()
        share = self.positive_share
        _check(share is None or 0 < share < 1, "positive_share", share, "between 0 and 1, or None")
        _check(self.max_views is None or self.max_views >= 1, "max_views", self.max_views, "1 or more, or None")
        _check(1 <= self.patch_size <= LARGEST_SIDE, "patch_size", self.patch_size, f"from 1 to {LARGEST_SIDE}")
        self._check_combinations()

    def _check_shares(self) -> None:
        """Check weights and shares: beyond these bounds, a network learns nothing or its images fail."""
        for name in ("learning_rate", "positive_weight", "clip_norm"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("label_smoothing", "ema_decay"):
            _check(getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        _check(self.warmup_share <= 1, "warmup_share", self.warmup_share, "at most 1")
        strength = self.augment_strength
        _check(strength <= STRONGEST, "augment_strength", strength, f"from 0 to {STRONGEST}")

    def _check_combinations(self) -> None:
        item = self.model.item
        if item != "image" and self.mixup:
            raise TrainingError(f"mixup mixes single images: it is for level image, not {item}.")
        if self.model.box_head != (self.box_weight > 0):
            raise TrainingError("box_weight above 0 and the model's box_head belong together.")
        if self.box_weight and self.mixup:
            raise TrainingError("A mixed image has no box of its own: use box_weight without mixup.")
        if not self.starts_trained and (self.freeze_stages or self.freeze_norms or not self.epochs):
            raise TrainingError(
                "epochs 0, freeze_stages and freeze_norms keep what an encoder has learned, and this one starts from scratch:"
                " give weights_path or pretrained."
            )
        if not self.epochs and item != "image":
            raise TrainingError(f"With epochs 0 the head is fitted to images: that is for level image, not {item}.")
        if self.patch_epochs and self.model.architecture == "rnn":
            raise TrainingError("patch_epochs trains one encoder, and rnn has several: choose another architecture.")

    @property
    def needs_boxes(self) -> bool:
        """Whether the training needs boxes: to predict them, or to cut patches around them."""
        return self.box_weight > 0 or self.patch_epochs > 0

    @property
    def starts_trained(self) -> bool:
        """Whether the encoders of complete images start from weights that were trained before."""
        return self.model.pretrained or bool(self.model.weights_path) or self.patch_epochs > 0

    @property
    def fits_head(self) -> bool:
        """Whether the head starts from a logistic regression on the encoder's features (`utils.training.probe`)."""
        return self.starts_trained and self.model.item == "image"

    def to_json(self) -> dict:
        """Return a plain dictionary, as written to config.json."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_parameters(cls, values: Mapping[str, object], preprocessing: CacheSettings) -> "TrainConfig":
        """Make the configuration of a training from values by field name, including those of the network.

        Parameters
        ----------
        values : mapping of str to object
            Other names are ignored, and fields without a value keep their default. 0 is None for ``positive_share`` and
            ``max_views``.
        preprocessing : CacheSettings
            Of the images.

        Raises
        ------
        KitError
            If a value is out of range, or contradicts another one.
        """
        model = select_fields(ModelConfig, values) | {
            "image_height": preprocessing.image_height,
            "image_width": preprocessing.image_width,
            "box_head": bool(values.get("box_weight")),
        }
        training = select_fields(cls, values)
        for name in OFF_IS_ZERO:
            training[name] = values.get(name) or None
        return build(cls, training | {"model": build(ModelConfig, model), "preprocessing": preprocessing})

    @classmethod
    def from_json(cls, content: dict) -> "TrainConfig":
        """Undo `to_json`.

        Raises
        ------
        KitError
            If a field is unknown, a field without a default is missing, or a value is refused.
        """
        config = build(cls, without_retired(content))
        for name in ("image_height", "image_width"):
            wanted = getattr(config.preprocessing, name)
            value = getattr(config.model, name)
            _check(value == wanted, f"model: {name}", value, f"that of preprocessing ({wanted})")
        return config


def without_retired(content: dict) -> dict:
    """Remove obsolete fields from an older run's configuration, unless they ask for something that no longer exists."""
    kept = _without(content, RETIRED)
    if isinstance(kept.get("model"), dict):
        kept["model"] = _without(kept["model"], RETIRED_OF_MODEL)
    return kept


def _without(content: dict, retired: dict) -> dict:
    return {name: value for name, value in content.items() if name not in retired or value != retired[name]}


def _check(holds: bool, name: str, value: object, wanted: str) -> None:
    check(holds, name, value, wanted, TrainingError)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ModelError(message)
