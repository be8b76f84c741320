"""Facts about the preflight of a training and of a submission: what would end them after hours is found before."""

import json
import shutil

import pandas as pd
import pytest
import torch

from tests.helpers import NOTEBOOKS, TINY
from utils.core import folders
from utils.images.inputs import Inputs
from utils.images.training_data import TrainingData
from utils.kaggle import findings, machine, preflight_training
from utils.kaggle.findings import PreflightError
from utils.kaggle.preflight_training import preflight_submission
from utils.phantom.competition import BOXES_FILE
from utils.runs.config import TrainConfig
from utils.runs.execution import Execution
from utils.runs.folder import claim_run
from utils.runs.plan import Plan
from utils.runs.settings import Settings
from utils.tables.folds import assign_folds


@pytest.fixture
def told(competition, cache_dir, tmp_path, monkeypatch, capsys):
    """What the preflight tells of train.ipynb with some parameters: fatal problems and warnings."""
    monkeypatch.setattr(machine, "free_memory", lambda: 64 * 10**9)  # a full test machine is not the subject

    def tell(cache_dir=cache_dir, folder=competition, is_phantom=True, boxes_path="", extra="", run_dir=None, **values):
        values = {"architecture": "cnn"} | values
        inputs = Inputs(folder, is_phantom, TINY, cache_dir, False)
        config, execution = TrainConfig.from_parameters(values, TINY), Execution.from_parameters(values)
        boxes = inputs.boxes(boxes_path, extra) if config.needs_boxes else None
        plan = Plan(Settings("plain", values), inputs, extra, config, execution, run_dir or tmp_path / "run", boxes)
        problems = []
        try:
            preflight_training.preflight_training(plan, 0)
        except PreflightError as error:
            problems = [line.partition(" ")[2] for line in str(error).splitlines()[1:]]
        return problems + [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning")]

    return tell


@pytest.fixture
def other(competition, tmp_path):
    """Another set: the phantom with other names of patients and images."""
    folder = tmp_path / "other"
    shutil.copytree(competition, folder)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    table.assign(patient_id="p" + table.patient_id, image_id="i" + table.image_id).to_csv(folder / "train.csv", index=False)
    return folder


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """Kaggle's two folders; gives the input."""
    folder = tmp_path / "input"
    folder.mkdir()
    for module in (findings, preflight_training):
        monkeypatch.setattr(module, "on_kaggle", lambda: True)
    monkeypatch.setattr(findings, "KAGGLE_INPUT", folder)
    monkeypatch.setattr(folders, "KAGGLE_INPUT", folder)
    return folder


def test_training_that_is_in_order_passes_without_a_warning(told):
    assert told() == []
    assert told(architecture="rnn", encoders=("cnn", "test_resnet"), num_processes=4) == []


def test_preflight_comes_before_the_first_picture():
    cells = json.loads((NOTEBOOKS / "train.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    preflight, data = (
        next(number for number, source in enumerate(sources) if text in source)
        for text in ("preflight_training(plan", "plan.data(")
    )
    assert preflight < data


def test_network_and_data_that_can_not_be_trained_are_told_together(told):
    problems = told(architecture="resnet18x", num_processes=3)
    assert len(problems) == 2 and "3 processes" in problems[0] and "resnet18x" in problems[1]


def test_run_folder_of_another_run_is_told(told, images, tmp_path):
    config, run = TrainConfig.from_parameters({"architecture": "cnn"}, TINY), tmp_path / "claimed"
    claim_run(run, config, TrainingData(assign_folds(images, config.n_folds, 0), "", is_phantom=True), "hash")
    assert told(run_dir=run) == []
    assert "other settings (learning_rate)" in told(run_dir=run, learning_rate=1e-3)[0]
    folds = pd.read_csv(run / "folds.csv", dtype=str)
    folds.assign(patient_id="other-" + folds.patient_id).to_csv(run / "folds.csv", index=False)
    assert "other images" in told(run_dir=run)[0]


def test_boxes_must_be_of_these_images(told, competition, tmp_path):
    path = tmp_path / "boxes.csv"
    pd.read_csv(competition / BOXES_FILE).assign(image_id="another").to_csv(path, index=False)
    assert "None of the images has a box" in told(boxes_path=str(path), patch_epochs=1)[0]
    real = shutil.copytree(competition, tmp_path / "real", ignore=shutil.ignore_patterns("phantom*"))
    assert "give boxes_path" in told(folder=real, box_weight=1.0, architecture="test_resnet")[0]


def test_patches_need_boxes_in_the_training_images_of_every_fold(told, competition, tmp_path):
    pd.read_csv(competition / BOXES_FILE, dtype=str).head(1).to_csv(tmp_path / "boxes.csv", index=False)
    assert "patches need boxes" in told(patch_epochs=1, boxes_path=str(tmp_path / "boxes.csv"))[0]


def test_other_sets_must_be_apart(told, competition, other):
    assert told(extra=str(other)) == []
    assert "is in the competition too" in told(extra=str(competition))[0]
    assert "occurs twice" in told(extra=f"{other},{other}")[0]


def test_folds_must_be_such_that_each_can_be_trained(told, competition, tmp_path):
    assert "n_folds is 99, but 16 patients" in told(n_folds=99)[0]
    one_class = shutil.copytree(competition, tmp_path / "one_class")
    table = pd.read_csv(one_class / "train.csv", dtype=str)
    table.assign(cancer="0").to_csv(one_class / "train.csv", index=False)
    assert told(folder=one_class, folds=(1, 3))[0].startswith("Fold 1")


def test_services_that_are_asked_for_must_be_there(told, monkeypatch):
    monkeypatch.setattr(preflight_training.importlib.util, "find_spec", lambda name: None)
    assert "tensorboard is not installed" in told(tensorboard=True)[0]
    assert "10.0.0.1" in told(cluster="10.0.0.1")[0]
    monkeypatch.setattr(torch, "compile", lambda network: 1 / 0)
    assert "ZeroDivisionError" in told(compile=True)[0]


def test_real_data_need_room_for_weights_and_checkpoints(told, monkeypatch):
    seen = []
    monkeypatch.setattr(preflight_training, "check_disks", lambda written: seen.append(dict(written)) or [])
    told(), told(is_phantom=False)
    phantom, real = ([*written.values()] for written in seen)
    assert phantom == [0.0] and real == [preflight_training.RUN_BYTES]


def test_gpu_that_would_wait_for_preprocessing_is_warned_of_on_kaggle(told, kaggle, cache_dir, tmp_path):
    assert "preprocess.ipynb" in told(cache_dir=tmp_path / "empty")[0]
    attached = shutil.copytree(cache_dir, kaggle / "preprocess" / "cache" / "real-64x48")
    assert f"cache_dir to {attached}." in told(cache_dir=tmp_path / "empty")[0]
    assert told(cache_dir=attached) == []


def test_hub_is_asked_only_where_pretrained_needs_it(told, monkeypatch):
    asked = []
    monkeypatch.setattr(preflight_training, "check_hub", lambda: asked.append(1) or [])
    told()
    assert not asked
    told(architecture="test_resnet", pretrained=True)
    assert asked


def test_short_disk_is_no_reason_not_to_submit(competition, cache_dir, tmp_path, monkeypatch, capsys):
    usage = machine.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage._replace(free=10))
    preflight_submission(Inputs(competition, True, TINY, cache_dir, False), [tmp_path], 0)
    assert "Warning" in capsys.readouterr().out
