import json

import numpy as np
import pytest

from tests.helpers import TINY, make_config
from utils.core.errors import KitError
from utils.runs.config import STRONGEST, TrainConfig
from utils.runs.errors import TrainingError
from utils.runs.execution import Execution
from utils.training.augment import Augment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": "1e-4"}, "learning_rate is '1e-4'.*YAML wants"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight is -1.0"),
        ({"n_folds": 1}, "n_folds is 1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"epochs": 0}, "starts from scratch: give weights_path"),
        ({"freeze_stages": 1}, "starts from scratch: give weights_path"),
        ({"freeze_norms": True}, "starts from scratch: give weights_path"),
        ({"epochs": 0, "model": {"pretrained": True, "level": "breast"}}, "fitted to images"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, but must be above 0"),
        ({"positive_weight": 0.0}, "positive_weight is 0.0, but must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0, but must be from 0 to below 1"),  # the average would stay where it began
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),  # both classes would be 0.5
        ({"augment_strength": 3.5}, "augment_strength is 3.5, but must be from 0 to 3"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"micro_batch_size": 2.5}, "micro_batch_size is 2.5"),
        ({"folds": (5,)}, "folds is"),
        ({"positive_share": 1.5}, "positive_share"),
        ({"max_views": 0}, "max_views"),
        ({"keep_epoch": "first"}, "keep_epoch"),
        ({"precision": "int8"}, "precision"),
        ({"mixup": 0.4, "model": {"level": "breast"}}, "mixup mixes single images"),
        ({"box_weight": 1.0}, "box_weight above 0 and the model's box_head belong together"),
        ({"box_weight": 1.0, "mixup": 0.4, "model": {"box_head": True}}, "no box of its own"),
        ({"architecture": "rnn", "patch_epochs": 1}, "rnn has several"),
    ],
)
def test_wrong_parameters_are_named(changes, message):
    with pytest.raises(TrainingError, match=message):
        make_config(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": 0}, "num_processes is 0"),
        ({"num_workers": 10**5}, "num_workers is 100000, but must be at most 1024"),
        ({"rendezvous": "host:99999"}, "HOST:PORT"),
        ({"num_machines": 2}, "num_machines above 1 needs rendezvous"),
        ({"num_processes": 2, "parallel_folds": 2}, "Either several processes share a fold"),
        ({"num_processes": 2, "cluster": "tcp://somewhere:8786"}, "Either several processes share a fold"),
    ],
)
def test_work_that_can_not_be_spread_so_is_refused(changes, message):
    with pytest.raises(TrainingError, match=message):
        Execution(**changes)


def test_configuration_survives_json():
    config = make_config(TINY, "rnn", folds=(1,), positive_share=0.3, max_views=2)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_configuration_of_an_older_run_takes_the_defaults_for_what_it_lacks():
    content = make_config(TINY).to_json()
    del content["mixup"], content["model"]["level"]
    assert TrainConfig.from_json(content) == make_config(TINY)


def test_configuration_of_an_older_run_may_name_the_only_choice_that_is_left():
    content = make_config(TINY, model={"level": "breast"}).to_json() | {"loss": "bce", "cutmix": 0.0, "layer_decay": 1.0}
    content["model"]["view_pooling"] = "attention"
    assert TrainConfig.from_json(content) == make_config(TINY, model={"level": "breast"})


@pytest.mark.parametrize(("name", "value"), [("loss", "focal"), ("cutmix", 1.0), ("layer_decay", 0.75)])
def test_configuration_that_asks_for_what_is_gone_is_refused(name, value):
    with pytest.raises(KitError, match=name):
        TrainConfig.from_json(make_config(TINY).to_json() | {name: value})


def test_strongest_augmentation_that_a_training_takes_can_be_made():
    picture = np.zeros((32, 24), dtype=np.uint8)
    assert Augment(STRONGEST)(picture, seed=1)[0].shape == picture.shape
