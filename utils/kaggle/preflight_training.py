"""Preflight of a training: its configuration, network, weights and data, all built or read as the training will."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from utils.core.environment import KitError
from utils.core.parameters import Parameters
from utils.kaggle.preflight_data import check_tables, image_problem, spread
from utils.kaggle.preflight_job import Finding, Job, refusals
from utils.kaggle.preflight_runs import check_weights_file


def check_configuration(job: Job) -> Iterator[Finding]:
    """Every value is of its type and range, and goes with the others."""
    for build in (_config, _execution):
        yield from (Finding(problem, "") for problem in _build(partial(build, job), job.parameters)[1])


def check_network(job: Job) -> Iterator[Finding]:
    """The network exists, takes pictures of the size, and the weights fit it; so does the one that learns patches."""
    from utils.training.folds import patch_model

    config = _made(job, _config)
    if config:
        weights_path = _file_to_try(job, config)
        one_by_one = _learns_one_by_one(config, _made(job, _execution))
        model = replace(config.model, weights_path=weights_path)
        yield from _refused(lambda: _try_network(model, one_by_one, config.freeze_stages))
        if config.patch_epochs:
            yield from _refused(lambda: _try_network(replace(patch_model(config), weights_path=weights_path), one_by_one))
        if config.model.pretrained and not job.weights_path:
            yield from _without_pretrained(config.model)


def _file_to_try(job: Job, config) -> str:
    """Give a file of weights that the network must take; empty where another check refuses weights_path."""
    from utils.training.sources import check_source, example_file

    path = config.model.weights_path
    refused = path and (any(check_weights_file(job)) or any(refusals(lambda: check_source(config.model))))
    return example_file(path) if path and not refused else ""


def check_start(job: Job) -> Iterator[Finding]:
    """Where weights_path is a run, it has the network that is trained, and none of the patients whom a fold holds out."""
    from utils.runs.parameters import run_folder
    from utils.tables.competition import assign_folds
    from utils.training.sources import check_source, find_starts

    config, images = _made(job, _config), _images(job)
    if not config or not config.model.weights_path or any(check_weights_file(job)):
        return
    if (found := [*_refused(lambda: check_source(config.model))]) or images is None:
        yield from found
        return
    run_dir, (readable, is_sure) = run_folder(job.parameters.values, job.is_phantom), _readable(job, images)
    with contextlib.suppress(KitError):  # which check_folds tells
        images = assign_folds(readable, config.n_folds, config.seed, config.fold_by)
        # The folds of a table some of whose pictures turn out to be unreadable may be others.
        yield from refusals(lambda: find_starts(config, images, run_dir), fatal=is_sure)


def _readable(job: Job, images) -> tuple:
    """Leave out images that a cache marks as unreadable; and tell whether it knows all."""
    from utils.images.cache import read_manifest

    for cache, settings in job.caches.items():
        with contextlib.suppress(KitError, OSError, ValueError):  # which check_cache tells
            errors = read_manifest(cache, "train", settings).set_index("image_id").error
            known = images.image_id.isin(errors.index)
            return images[~images.image_id.isin(errors.index[errors != ""])], bool(known.all())
    return images, False


def check_shares(job: Job) -> Iterator[Finding]:
    """A batch can be shared by the processes of a fold."""
    from utils.training import folds as training

    config, execution = _made(job, _config), _made(job, _execution)
    if config and execution:
        yield from _refused(lambda: training.check_shares(config, execution))


def check_shared_memory(job: Job) -> Iterator[Finding]:
    """Shared memory holds the batches that processes load ahead: Docker gives 64 MB, unless it is told to give more."""
    from utils.training.loading import REMEDY, SHARED_MEMORY, free_shared_memory, shared_bytes

    config, execution, images, free = _made(job, _config), _made(job, _execution), _images(job), free_shared_memory()
    if not config or not execution or execution.cluster or images is None or free is None:
        return
    pictures = config.batch_size / execution.world_size * _pictures_of_item(config, images)
    needed = shared_bytes(pictures * config.model.image_height * config.model.image_width, execution.num_workers)
    if free < needed:
        problem = (
            f"The batches that {execution.num_workers} processes load ahead may take {needed / 1e6:.0f} MB of shared memory."
        )
        yield Finding(f"{problem} {SHARED_MEMORY} has {free / 1e6:.0f} MB free.", f"{REMEDY}.")


def _pictures_of_item(config, images) -> float:
    """Mean number of pictures that are loaded for an item."""
    if config.model.item == "image":
        return 1.0
    return images.groupby("prediction_id").size().clip(upper=config.max_views).mean()


def check_run_folder(job: Job) -> Iterator[Finding]:
    """A run in the folder is this one: of the same configuration, and of the same patients."""
    from utils.runs.folder import check_same_config, check_same_patients
    from utils.runs.parameters import run_folder

    run_dir, config = run_folder(job.parameters.values, job.is_phantom), _made(job, _config)
    if config and (run_dir / "config.json").is_file():
        yield from _refused(lambda: check_same_config(run_dir, config))
        if (images := _images(job)) is not None:
            yield from _refused(lambda: check_same_patients(run_dir, images))


def check_boxes(job: Job) -> Iterator[Finding]:
    """Boxes are there where they are needed."""
    from utils.training import folds as training

    config, images = _made(job, _config), _images(job)
    if config and images is not None and (config.box_weight or config.patch_epochs):
        with contextlib.suppress(KitError):  # which check_extra_sets tells
            extra = _extra(job)
            yield from _refused(lambda: training.check_boxes(config, images, _boxes(job), extra))


def check_extra_sets(job: Job) -> Iterator[Finding]:
    """Other sets are there, can be read, and share no patient with the competition."""
    from utils.images.inputs import extra_folders
    from utils.tables.competition import image_paths, read_images
    from utils.training.folds import check_apart

    images = _images(job)
    if images is None:
        return
    for folder in extra_folders(job.parameters.values["extra_competition_dirs"], job.is_phantom):
        paths = spread(image_paths(read_images(folder, "train"), folder, "train"))
        problems = [problem for problem in map(image_problem, paths) if problem]
        if paths and len(problems) == len(paths):
            problem = f"extra_competition_dirs {folder}: none of {len(paths)} images that were looked at can be read:"
            yield Finding(f"{problem} {paths[0]} {problems[0]}.", "convert the set again with python -m utils.external.")
    extra = _extra(job)
    if extra is not None:
        yield from _refused(lambda: check_apart(images, extra))


def check_folds(job: Job) -> Iterator[Finding]:
    """The patients can be split into the folds, each fold can be trained, and no column that is read is the label."""
    import pandas as pd

    from utils.runs.leaks import check_features
    from utils.tables.competition import assign_folds
    from utils.tables.vocabulary import CATEGORIES
    from utils.training import folds as training

    config, images = _made(job, _config), _images(job)
    if not config or images is None:
        return
    if config.model.reads_metadata:
        yield from _refused(lambda: check_features(images, ("age", "implant", *CATEGORIES)))
    images, boxes, extra = assign_folds(images, config.n_folds, config.seed, config.fold_by), None, None
    if config.patch_epochs:
        with contextlib.suppress(KitError):  # which check_boxes and check_extra_sets tell
            boxes, extra = _boxes(job), _extra(job)
    for fold in config.folds or range(config.n_folds):
        inside = images[images.fold != fold]
        yield from _refused(partial(training.check_classes, inside, fold))
        if boxes is not None:
            yield from _refused(partial(training.check_patches, pd.concat([inside, extra]), boxes, fold))


def check_services(job: Job) -> Iterator[Finding]:
    """What is asked for besides is there: TensorBoard, a compiler, the Dask cluster, a GPU for each process."""
    values = job.parameters.values
    if values.get("tensorboard") and not importlib.util.find_spec("tensorboard"):
        yield Finding("tensorboard is not installed.", "%pip install tensorboard, or leave out the parameter tensorboard.")
    if values.get("compile_model"):
        yield from _compile_problem()
    if values.get("cluster"):
        from utils.core.parallel import dask_client

        yield from _refused(lambda: dask_client(values["cluster"]).close())
    yield from _too_few_gpus(values.get("num_processes", 1))


def _made(job: Job, build: Callable):
    """Build something from the parameters, those that are refused at their defaults; None where that does not help."""
    return _build(partial(build, job), job.parameters)[0]


def _build(build: Callable, parameters: Parameters) -> tuple[object, list[str]]:
    """Build something from parameters, and list what it refuses: each in turn gets its default, so that all are told.

    Gives None if a refusal depends on no single parameter.
    """
    values, problems = dict(parameters.values), []
    while True:
        problem = _refusal(build, values)
        if not problem:
            return build(values), problems
        problems.append(problem)
        changed = [name for name, default in parameters.defaults.items() if values.get(name) != default]
        changed.sort(key=lambda name: not re.search(rf"\b{name}\b", problem))  # first those that the message names
        mended = ((name, _refusal(build, values | {name: parameters.defaults[name]})) for name in changed)
        culprit = next((name for name, other in mended if other != problem), None)
        if culprit is None:
            return None, problems
        values[culprit] = parameters.defaults[culprit]


def _refusal(build: Callable, values: Mapping[str, object]) -> str:
    try:
        build(values)
    except KitError as error:
        return str(error)
    return ""


def _refused(step: Callable[[], object]) -> Iterator[Finding]:
    """Take a step that the training takes too: whatever it raises would end the training."""
    try:
        yield from refusals(step)
    except Exception as error:  # by torch or timm, which refuse in many ways
        problem = f"The training would end with {type(error).__name__}: {error}."
        yield Finding(problem, "change the architecture, the picture size or the weights_path that it is about.")


def _config(job: Job, values: Mapping[str, object]):
    from utils.images.inputs import picture_settings
    from utils.runs.parameters import train_config

    size = values["image_height"], values["image_width"]
    settings = picture_settings(*size, values["exact"], job.is_phantom, values["smoke_test"])
    return train_config(values, settings)


def _execution(job: Job, values: Mapping[str, object]):
    import torch

    from utils.runs.parameters import make_execution

    return make_execution(values, has_gpu=torch.cuda.is_available())


def _learns_one_by_one(config, execution) -> bool:
    """Whether a part of a step, which is computed at once, is a single picture."""
    if config.model.item != "image" or execution is None or execution.world_size > 1:  # processes normalise together
        return False
    part = min(config.micro_batch_size or config.batch_size, config.batch_size)
    return 1 in (part, config.batch_size % part)


def _try_network(model, one_by_one: bool, freeze_stages: int = 0) -> None:
    """Build a network and load its weights as the training does; on the meta device, timm can't resize weights."""
    import torch

    from utils.networks.auxiliary import SIZES
    from utils.networks.encoders import Encoder
    from utils.networks.models import build_model
    from utils.tables.vocabulary import Vocabulary

    vocabulary = Vocabulary(age_mean=0.0, age_std=1.0, view=("CC", "MLO"), machine_id=("0",), site_id=("0",))
    network = build_model(replace(model, pretrained=False), vocabulary, SIZES).eval()
    for encoder in (module for module in network.modules() if isinstance(module, Encoder)):
        if freeze_stages and encoder.is_trained:
            encoder.freeze(freeze_stages, norms=False)
    if model.box_head:
        with torch.inference_mode():
            _, maps = network.encoder(torch.zeros(1, 1, model.image_height, model.image_width, dtype=torch.uint8))
            network.box(maps)
    if one_by_one and not _learns_from(network, model, 1) and _learns_from(network, model, 2):
        raise KitError(
            f"{model.architecture} can't learn from one picture of {model.image_height} x {model.image_width} at a time, since"
            " it normalises over all that are computed at once. Set batch_size and micro_batch_size so that these are two or"
            " more."
        )


def _learns_from(network, model, pictures: int) -> bool:
    """Whether a network computes a step's part, by its shapes alone."""
    import torch

    network.to("meta").train()
    try:
        with torch.device("meta"):
            network.encoder(torch.zeros(pictures, 1, model.image_height, model.image_width, dtype=torch.uint8))
    except Exception:  # each network refuses in its own way
        return False
    return True


def _without_pretrained(model) -> Iterator[Finding]:
    import timm

    names = model.encoders if model.architecture == "rnn" else (model.architecture,)
    for name in names:
        if timm.is_model(name) and not timm.models.is_model_pretrained(name):
            yield Finding(f"timm has no pretrained weights of {name}.", "set pretrained to False, or give weights_path.")


def _images(job: Job):
    """The train table as the notebook reads it; None where it can't be read, as check_tables tells, or is not made yet."""
    if job.competition is None or any(check_tables(job)):
        return None
    return _inputs(job).images("train")


def _boxes(job: Job):
    values = job.parameters.values
    return _inputs(job).boxes(values["boxes_path"], values["extra_competition_dirs"])


def _inputs(job: Job):
    from utils.images.cache import CacheSettings
    from utils.images.inputs import Inputs

    return Inputs(job.competition, job.is_phantom, CacheSettings(), Path(), job.smoke_test)  # no picture is looked at


def _extra(job: Job):
    import pandas as pd

    from utils.images.inputs import extra_folders
    from utils.tables.competition import read_images

    folders = extra_folders(job.parameters.values["extra_competition_dirs"], job.is_phantom)
    tables = [read_images(folder, "train") for folder in folders]
    return pd.concat(tables, ignore_index=True) if tables else None


def _compile_problem() -> Iterator[Finding]:
    import torch

    try:
        torch.compile(torch.nn.Linear(1, 1))(torch.zeros(1, 1))
    except Exception as error:  # of the compiler, of many kinds
        problem = f"torch.compile does not work here ({type(error).__name__}: {str(error).splitlines()[0]})."
        yield Finding(problem, "install a C++ compiler, or leave out compile_model.")


def _too_few_gpus(num_processes: int) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available() and num_processes > torch.cuda.device_count():
        problem = f"num_processes is {num_processes}, but there are {torch.cuda.device_count()} GPUs: one process each."
        yield Finding(problem, f"set num_processes to {torch.cuda.device_count()}.")
