"""From train.ipynb's parameters to what `utils.training.folds` takes; its preflight builds the same, before any picture."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

from utils.core.devices import cpu_count
from utils.core.folders import resolve, runs_dir
from utils.images.settings import CacheSettings
from utils.runs.config import ModelConfig, TrainConfig
from utils.runs.execution import Execution, as_numbers

SMOKE_FOLDS, SMOKE_EPOCHS, SMOKE_BATCH = 2, 1, 8


def train_config(values: Mapping[str, object], settings: CacheSettings) -> TrainConfig:
    """Make the configuration of a run.

    Parameters
    ----------
    values : mapping of str to object
        train.ipynb's parameters.
    settings : CacheSettings
        Of the pictures.

    Raises
    ------
    KitError
        Of the first value that is out of range, or of values that do not go together.
    """
    given = SimpleNamespace(**values)
    return TrainConfig(
        _model_config(given, settings),
        settings,
        n_folds=SMOKE_FOLDS if given.smoke_test else given.n_folds,
        fold_by=given.fold_by,
        folds=as_numbers(given.folds),
        epochs=SMOKE_EPOCHS if given.smoke_test else given.epochs,
        batch_size=SMOKE_BATCH if given.smoke_test else given.batch_size,
        learning_rate=given.learning_rate,
        freeze_stages=given.freeze_stages,
        freeze_norms=given.freeze_norms,
        label_smoothing=given.label_smoothing,
        positive_weight=given.positive_weight,
        auxiliary_weight=given.auxiliary_weight,
        box_weight=given.box_weight,
        positive_share=given.positive_share or None,
        mixup=given.mixup,
        ema_decay=given.ema_decay,
        augment_strength=given.augment_strength,
        test_time_flip=given.test_time_flip,
        max_views=given.max_views or None,
        patch_epochs=given.patch_epochs,
        patch_size=given.patch_size,
        keep_epoch=given.keep_epoch,
        micro_batch_size=given.micro_batch_size,
        activation_checkpointing=given.activation_checkpointing,
        precision=given.precision,
        deterministic=given.deterministic,
        seed=given.seed,
    )


def _model_config(given: SimpleNamespace, settings: CacheSettings) -> ModelConfig:
    return ModelConfig(
        architecture=given.architecture,
        image_height=settings.image_height,
        image_width=settings.image_width,
        level=given.level,
        pretrained=given.pretrained,
        weights_path=str(resolve(given.weights_path)) if given.weights_path else "",
        pooling=given.pooling,
        drop_path=given.drop_path,
        box_head=given.box_weight > 0,
        metadata=given.metadata,
        encoders=tuple(name.strip() for name in given.encoders.split(",")),
        recurrent_cell=given.recurrent_cell,
    )


def make_execution(values: Mapping[str, object], has_gpu: bool) -> Execution:
    """Make the execution of a run; without a GPU, extra processes that load data are not worth it.

    Raises
    ------
    KitError
        If a value is out of range, or values do not go together.
    """
    given = SimpleNamespace(**values)
    usual = cpu_count() if has_gpu else 0
    return Execution(
        num_workers=usual if given.num_workers == -1 else given.num_workers,
        num_processes=given.num_processes,
        num_machines=given.num_machines,
        rendezvous=given.rendezvous,
        parallel_folds=given.parallel_folds,
        cluster=given.cluster,
        compile=given.compile_model,
        tensorboard=given.tensorboard,
    )


def run_folder(values: Mapping[str, object], is_phantom: bool) -> Path:
    """Folder of the run: the one that is named, else the architecture's under the working folder."""
    named, smoke_test = values["run_dir"], values["smoke_test"]
    return resolve(named) if named else runs_dir(is_phantom, smoke_test) / values["architecture"]
