"""Facts about the preflight of a training: what would end it after hours is found before any picture is made."""

import json
import shutil

import pandas as pd
import pytest
import safetensors.torch
import torch

from tests.helpers import NOTEBOOKS, TINY, parameters_of
from utils.kaggle import preflight_training
from utils.kaggle.preflight import PreflightError, preflight
from utils.kaggle.preflight_job import Job
from utils.kaggle.preflight_training import (
    check_boxes,
    check_configuration,
    check_extra_sets,
    check_folds,
    check_network,
    check_run_folder,
    check_services,
    check_shared_memory,
    check_shares,
)
from utils.kaggle.preflight_values import check_output, check_values
from utils.networks import models
from utils.networks.encoders import PlainCnn
from utils.phantom.competition import BOXES_FILE
from utils.runs.folder import claim_run
from utils.runs.parameters import make_execution, train_config
from utils.tables.competition import assign_folds
from utils.training import loading

SIZE = {"image_height": TINY.image_height, "image_width": TINY.image_width}


@pytest.fixture
def told(competition):
    """What a check tells of train.ipynb with some parameters."""

    def tell(check, notebook="train", **values):
        values = {"competition_dir": str(competition), "architecture": "cnn", **SIZE} | values
        findings = list(check(Job.of(notebook, parameters_of(notebook, **values))))
        assert all(finding.fatal for finding in findings)
        return [str(finding) for finding in findings]

    return tell


@pytest.fixture
def other(competition, tmp_path):
    """Another set: the phantom with other names of patients and images."""
    folder = tmp_path / "other"
    shutil.copytree(competition, folder)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    table.assign(patient_id="p" + table.patient_id, image_id="i" + table.image_id).to_csv(folder / "train.csv", index=False)
    return folder


def test_preflight_of_train_comes_before_its_first_picture_and_knows_all_parameters():
    cells = json.loads((NOTEBOOKS / "train.ipynb").read_text(encoding="utf-8"))["cells"]
    names = [cell["id"] for cell in cells]
    first = next(number for number, cell in enumerate(cells) if ".cached(" in "".join(cell["source"]))
    assert names.index("preflight") < first
    parameters = parameters_of("train", architecture="cnn", epochs=3)
    config = train_config(parameters.values, TINY)
    assert (config.epochs, config.model.architecture, config.preprocessing) == (3, "cnn", TINY)
    assert train_config(parameters_of("train").values, TINY).epochs == 8
    smoke = train_config(parameters_of("train", smoke_test=True, epochs=3).values, TINY)
    assert (smoke.n_folds, smoke.epochs, smoke.batch_size) == (2, 1, 8)
    assert make_execution(parameters.values, has_gpu=False).num_workers == 0
    assert make_execution(parameters.values, has_gpu=True).num_workers > 0


@pytest.mark.parametrize(
    "values, named",
    [
        ({"recurrent_cell": "gruu"}, "recurrent_cell"),
        ({"folds": "5"}, "folds"),
        ({"folds": "one"}, "folds"),
        ({"n_folds": 1}, "n_folds"),
        ({"fold_by": "site"}, "fold_by"),
        ({"keep_epoch": "first"}, "keep_epoch"),
        ({"precision": "half"}, "precision"),
        ({"positive_share": 1.5}, "positive_share"),
        ({"image_height": -64}, "image_height"),
        ({"num_workers": -2}, "num_workers"),
        ({"num_machines": 2}, "rendezvous"),
        ({"rendezvous": "host"}, "HOST:PORT"),
        ({"seed": 2**32}, "seed"),
        ({"mixup": 1.0, "level": "breast"}, "mixup"),
        ({"architecture": "rnn", "patch_epochs": 1}, "patch_epochs"),
    ],
)
def test_value_that_the_configuration_refuses_is_told_once(told, values, named):
    (problem,) = told(check_configuration, **values)
    assert named in problem


def test_all_values_that_are_refused_are_told_at_once(told):
    wrong = {"precision": "half", "folds": "9", "n_folds": 5, "keep_epoch": "first", "seed": -1, "parallel_folds": -1}
    problems = told(check_configuration, **wrong)
    assert sorted(problem.split(" is ")[0] for problem in problems) == sorted(wrong.keys() - {"n_folds"})
    assert any("from 0 to 4" in problem for problem in problems)


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"architecture": "resnet18x"}, "neither cnn, rnn nor a network of timm's"),
        ({"architecture": "rnn", "encoders": "cnn,resnet_50"}, "resnet_50"),
        ({"pooling": "stages"}, "pooling"),
        ({"architecture": "test_vit", "box_weight": 1.0}, "convolutional"),
        ({"architecture": "test_vit", "patch_epochs": 1}, "patch_epochs"),
        ({"image_height": 16}, "cnn does not take images of 16 x 48"),
        ({"patch_epochs": 1, "patch_size": 16}, "cnn does not take images of 16 x 16"),
        ({"architecture": "test_vit", "image_height": 50}, "test_vit does not take images of 50 x 48"),
    ],
)
def test_network_that_can_not_be_built_is_told(told, values, reason):
    (problem,) = told(check_network, **values)
    assert reason in problem


@pytest.mark.parametrize(
    "values", [{"batch_size": 1}, {"batch_size": 4, "micro_batch_size": 3}, {"batch_size": 4, "micro_batch_size": 1}]
)
def test_network_that_normalises_over_a_step_is_not_given_single_pictures(told, values):
    small = {"image_height": 32, "image_width": 32}
    (problem,) = told(check_network, architecture="resnet18", **small, **values)
    assert "resnet18 can't learn from one picture of 32 x 32 at a time" in problem and "micro_batch_size" in problem
    assert not told(check_network, architecture="cnn", **small, **values)
    assert not told(check_network, architecture="resnet18", **small, batch_size=4, micro_batch_size=2)


def test_error_of_another_package_is_fatal_too(told, monkeypatch):
    """The training would end with it."""
    monkeypatch.setattr(models, "build_model", lambda *arguments: [][0])
    (problem,) = told(check_network)
    assert "IndexError" in problem and "Remedy" in problem


def test_network_is_tried_where_another_value_is_wrong(told):
    (problem,) = told(check_network, precision="half", architecture="resnet18x")
    assert "resnet18x" in problem


@pytest.mark.parametrize("architecture", ["test_resnet", "rnn", "cnn"])
def test_network_that_can_be_built_is_no_problem(told, architecture):
    assert told(check_network, architecture=architecture, encoders="cnn,test_resnet") == []


def test_box_head_of_a_convolutional_network_is_no_problem(told):
    assert told(check_network, architecture="test_resnet", pooling="stages", box_weight=1.0, patch_epochs=1) == []


def test_weights_must_be_those_of_the_network(told, tmp_path):
    path = tmp_path / "weights.safetensors"
    state = PlainCnn(0.0).state_dict()
    safetensors.torch.save_file(state, path)
    assert told(check_network, weights_path=str(path)) == []
    safetensors.torch.save_file({name: value for name, value in state.items() if "fully" not in name}, path)
    (problem,) = told(check_network, weights_path=str(path))
    assert "does not fit" in problem and "fully_connected" in problem
    assert told(check_network, weights_path=str(tmp_path / "none.pth")) == []  # check_weights_file tells


def test_pretrained_weights_must_exist(told):
    assert "no pretrained weights of regnetz_005" in told(check_network, architecture="regnetz_005", pretrained=True)[0]
    assert told(check_network, architecture="test_resnet", pretrained=True) == []


def test_processes_must_share_a_batch_evenly(told):
    assert "3 processes" in told(check_shares, num_processes=3)[0]
    assert told(check_shares, num_processes=4) == []


def test_run_folder_of_another_run_is_told(told, images, tmp_path, competition):
    parameters = parameters_of("train", architecture="cnn", **SIZE)
    config, run = train_config(parameters.values, TINY), tmp_path / "run"
    claim_run(run, config, assign_folds(images, config.n_folds, 0), "hash", True)
    assert told(check_run_folder, run_dir=str(run)) == told(check_run_folder, run_dir=str(tmp_path / "new")) == []
    assert "other settings (learning_rate)" in told(check_run_folder, run_dir=str(run), learning_rate=1e-3)[0]
    folds = pd.read_csv(run / "folds.csv", dtype=str)
    folds.assign(patient_id="other-" + folds.patient_id).to_csv(run / "folds.csv", index=False)
    assert "other images" in told(check_run_folder, run_dir=str(run))[0]


def test_boxes_must_be_there_and_of_these_images(told, competition, tmp_path):
    assert told(check_boxes, box_weight=1.0) == told(check_boxes, boxes_path="/nowhere.csv") == []
    assert "/nowhere.csv" in told_error(told, boxes_path="/nowhere.csv", box_weight=1.0)
    path = tmp_path / "boxes.csv"
    pd.read_csv(competition / BOXES_FILE).assign(image_id="another").to_csv(path, index=False)
    assert "No box lies in any" in told_error(told, boxes_path=str(path), patch_epochs=1)
    real = shutil.copytree(competition, tmp_path / "real", ignore=shutil.ignore_patterns("phantom*"))
    assert "give boxes_path" in told_error(told, competition_dir=str(real), box_weight=1.0)


def told_error(told, **values):
    (problem,) = told(check_boxes, **values)
    return problem


def test_other_sets_must_be_there_and_apart(told, competition, other, tmp_path):
    assert told(check_extra_sets) == []
    assert "patient" in told(check_extra_sets, extra_competition_dirs=str(competition))[0]
    problem, *more = told(check_extra_sets, extra_competition_dirs=f"{other},{other}")
    assert "none of 5 images" in problem and "comes twice" in more[-1]
    with pytest.raises(Exception, match="holds no train.csv"):
        told(check_extra_sets, extra_competition_dirs=str(tmp_path / "none"))


def test_folds_must_be_such_that_each_can_be_trained(told, competition, tmp_path):
    assert told(check_folds) == []
    with pytest.raises(Exception, match="n_folds is 99, but 16 patients"):
        told(check_folds, n_folds=99)
    one_class = shutil.copytree(competition, tmp_path / "one_class")
    table = pd.read_csv(one_class / "train.csv", dtype=str)
    table.assign(cancer="0").to_csv(one_class / "train.csv", index=False)
    problems = told(check_folds, competition_dir=str(one_class), folds="1,3")
    assert [problem.partition(":")[0] for problem in problems] == ["Fold 1", "Fold 3"]
    assert told(check_folds, competition_dir=str(tmp_path / "none"), n_folds=99) == []  # check_tables tells


def test_patches_need_boxes_in_the_training_images_of_every_fold(told, competition, tmp_path):
    boxes = pd.read_csv(competition / BOXES_FILE, dtype=str).head(1)
    boxes.to_csv(tmp_path / "boxes.csv", index=False)
    problems = told(check_folds, patch_epochs=1, boxes_path=str(tmp_path / "boxes.csv"))
    assert len(problems) == 1 and "patches need boxes" in problems[0]


def test_services_that_are_asked_for_must_be_there(told, monkeypatch):
    assert told(check_services) == []
    monkeypatch.setattr(preflight_training.importlib.util, "find_spec", lambda name: None)
    assert "tensorboard is not installed" in told(check_services, tensorboard=True)[0]
    assert "10.0.0.1" in told(check_services, cluster="10.0.0.1")[0]
    monkeypatch.setattr(torch, "compile", lambda network: 1 / 0)
    assert "ZeroDivisionError" in told(check_services, compile_model=True)[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "num_processes is 3, but there are 2 GPUs" in told(check_services, num_processes=3)[0]


@pytest.mark.parametrize(
    "notebook, values, named",
    [
        ("explore", {"seed": -1}, "seed"),
        ("preprocess", {"num_workers": -1}, "num_workers"),
        ("tune_threshold", {"aggregation": "median"}, "noisy_or"),
        ("tune_threshold", {"choice": "best"}, "plateau"),
        ("report", {"seed": 2**32}, "seed"),
        ("submit", {"time_budget_hours": -1.0}, "time_budget_hours"),
    ],
)
def test_value_out_of_range_is_told_in_every_notebook(told, notebook, values, named):
    assert told(check_values, notebook, **{"image_height": 0, "image_width": 0}) == []
    assert named in told(check_values, notebook, **values)[0]


def test_output_that_is_a_folder_is_told(told, tmp_path):
    for notebook, name in (("tune_threshold", "threshold_path"), ("report", "report_path"), ("submit", "submission_path")):
        assert f"{name} {tmp_path} is a folder" in told(check_output, notebook, **{name: str(tmp_path)})[0]
        assert told(check_output, notebook, **{name: str(tmp_path / "new")}) == told(check_output, notebook) == []


def test_problem_that_several_checks_meet_is_told_once_and_ends_the_notebook(competition):
    values = {"competition_dir": str(competition), "architecture": "cnn", "image_height": -1, "image_width": 48, "n_folds": 99}
    with pytest.raises(PreflightError) as caught:
        preflight("train", parameters_of("train", **values))
    assert "Problems: 2." in str(caught.value)


@pytest.mark.parametrize(
    "values, megabytes",
    [
        ({}, 64 * 48 * 8 * 17 / 1e6),  # 4 processes load 4 batches ahead, and one is in use
        ({"num_processes": 2}, 64 * 48 * 4 * 17 / 1e6),
        ({"level": "breast", "max_views": 1}, 64 * 48 * 8 * 17 / 1e6),
    ],
)
def test_shared_memory_must_hold_what_is_loaded_ahead(told, monkeypatch, values, megabytes):
    values = {"batch_size": 8, "num_workers": 4} | values
    monkeypatch.setattr(loading, "free_shared_memory", lambda: 1e6 * megabytes - 1)
    assert "--shm-size 8g" in told(check_shared_memory, **values)[0] and not told(
        check_shared_memory, **values | {"num_workers": 0}
    )
    for enough in (1e6 * megabytes, None):
        monkeypatch.setattr(loading, "free_shared_memory", lambda enough=enough: enough)
        assert told(check_shared_memory, **values) == []
