"""Facts about runs that start from other runs: what is taken, and that no patient is predicted by a network that saw him."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from tests.helpers import TINY, killed_in_second_epoch, make_config
from utils.core.files import write_json
from utils.images.training_data import TrainingData
from utils.kaggle.preflight_training import check_start
from utils.networks.models import build_model
from utils.phantom.competition import read_truth
from utils.runs.config import TrainingError
from utils.runs.leaks import LeakError
from utils.runs.run import Run
from utils.runs.starts import Start, read_start
from utils.tables.folds import assign_folds
from utils.training.fitting import Fitting
from utils.training.fold_weights import load_fold
from utils.training.folds import train_run
from utils.training.sources import find_starts, open_source

ONE_EPOCH = {"epochs": 1, "keep_epoch": "last"}


@pytest.fixture(scope="module")
def source(images, cache_dir, tmp_path_factory):
    """A finished run of two folds."""
    run_dir = tmp_path_factory.mktemp("source") / "cnn"
    train_run(make_config(TINY, **ONE_EPOCH), TrainingData(images, cache_dir), run_dir)
    return run_dir


@pytest.fixture
def others(images):
    """The same images, of other patients."""
    return images.assign(patient_id="x" + images.patient_id, prediction_id="x" + images.prediction_id)


def config_from(weights_path, architecture="cnn", **changes):
    return make_config(TINY, architecture, {"weights_path": str(weights_path)}, **ONE_EPOCH | changes)


def start_numbers(config, images, run_dir=Path("new")):
    """Which file of the source each fold starts from."""
    starts = find_starts(config, assign_folds(images, config.n_folds, config.seed), run_dir)
    return {fold: start.file for fold, start in starts.items()}


def weights(path, prefix="encoder."):
    state = safetensors.torch.load_file(path)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def first_encoders(monkeypatch):
    """Encoders as they are before the first step, by fold."""
    found, run = {}, Fitting.run

    def remember(self):
        found[self.data.fold] = {key: value.clone() for key, value in self.learner.model.encoder.state_dict().items()}
        run(self)

    monkeypatch.setattr(Fitting, "run", remember)
    return found


def same(found, wanted):
    floating = [key for key, value in wanted.items() if value.is_floating_point()]
    return len(floating) > 10 and all(torch.equal(found[key], wanted[key]) for key in floating)


def test_each_fold_starts_from_the_encoder_that_never_saw_its_patients(
    source, images, cache_dir, tmp_path, monkeypatch, capsys
):
    found = first_encoders(monkeypatch)
    train_run(config_from(source), TrainingData(images, cache_dir), tmp_path / "next")
    for fold in (0, 1):
        file = source / f"fold{fold}" / "weights.safetensors"
        assert same(found[fold], weights(file))
        assert f"Fold {fold} starts from {file}." in capsys.readouterr().out or fold
        assert read_start(tmp_path / "next" / f"fold{fold}").file == f"fold{fold}/weights.safetensors"
    assert not same(found[0], weights(source / "fold1" / "weights.safetensors"))


def test_other_split_of_the_same_patients_is_refused_before_any_work(source, images, cache_dir, tmp_path):
    with pytest.raises(LeakError, match=r"fold1.* was trained on \d+ of the 8 patients whom fold 0 holds out.*seed 0"):
        train_run(config_from(source, seed=5), TrainingData(images, cache_dir), tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_fold_of_another_number_is_taken_where_it_fits(source, images, tmp_path):
    shutil.copytree(source, tmp_path / "swapped")
    folds = pd.read_csv(source / "folds.csv", dtype={"patient_id": str})
    folds.assign(fold=1 - folds.fold).to_csv(tmp_path / "swapped" / "folds.csv", index=False)
    wanted = {0: "fold1/weights.safetensors", 1: "fold0/weights.safetensors"}
    assert start_numbers(config_from(tmp_path / "swapped"), images) == wanted


def test_runs_without_a_common_patient_go_together_whatever_their_folds(source, others):
    starts = start_numbers(config_from(source, n_folds=4, seed=3), others)
    assert starts == {fold: f"fold{fold % 2}/weights.safetensors" for fold in range(4)}


def test_patients_of_extra_sets_count_as_seen(source, others, images, tmp_path):
    shutil.copytree(source, tmp_path / "run")
    extra = others[["patient_id", "image_id", "cancer"]].assign(extra_set="x")
    extra.to_csv(tmp_path / "run" / "extra.csv", index=False)
    with pytest.raises(LeakError, match="was trained on 8 of the 8 patients whom fold 0 holds out, first x"):
        start_numbers(config_from(tmp_path / "run"), others)
    assert start_numbers(config_from(tmp_path / "run"), images)


def test_patients_of_ancestors_count_as_seen(source, images, others, cache_dir, tmp_path):
    """The first run's patients come back in the third, in other folds: the second, of other patients, passes them on."""
    train_run(config_from(source, seed=1), TrainingData(others, cache_dir), tmp_path / "second")
    oof = Run(tmp_path / "second").oof()
    assert len(oof) == len(others)
    assert start_numbers(config_from(tmp_path / "second"), images) == start_numbers(config_from(source), images)
    with pytest.raises(LeakError, match="or one that it started from, was trained on"):
        start_numbers(config_from(tmp_path / "second", seed=5), images)
    saw = images.patient_id[assign_folds(images, 2, 0).fold == 1].iloc[0]
    with pytest.raises(LeakError, match="fold 0 was trained on 1 of these patients"):
        Run(tmp_path / "second").check_unseen(0, [saw])


def test_out_of_fold_table_of_a_run_whose_start_had_seen_its_patients_is_refused(source, images, cache_dir, tmp_path):
    train_run(config_from(source), TrainingData(images, cache_dir), tmp_path / "next")
    Run(tmp_path / "next").oof()
    start = json.loads((tmp_path / "next" / "fold0" / "start.json").read_text())
    write_json(tmp_path / "next" / "fold0" / "start.json", start | {"seen": sorted(images.patient_id.unique())})
    with pytest.raises(LeakError, match="the model of fold 0 was trained on 8"):
        Run(tmp_path / "next").oof()


def test_single_file_counts_as_its_run(source, images, others):
    file = source / "fold1" / "weights.safetensors"
    assert start_numbers(config_from(file, folds=(1,)), images) == {1: ""}
    assert start_numbers(config_from(file), others) == {0: "", 1: ""}
    with pytest.raises(LeakError, match="no network there may start fold 0.*give the folder of the run if you named a file"):
        start_numbers(config_from(file), images)


def test_file_that_left_its_run_is_taken_with_a_warning_which_its_descendants_repeat(
    source, images, cache_dir, tmp_path, capsys
):
    shutil.copy(source / "fold0" / "weights.safetensors", tmp_path / "lost.safetensors")
    train_run(config_from(tmp_path / "lost.safetensors"), TrainingData(images, cache_dir), tmp_path / "second")
    assert "trained on unknown patients" in capsys.readouterr().out
    train_run(config_from(tmp_path / "second"), TrainingData(images, cache_dir), tmp_path / "third")
    assert "trained on unknown patients" in capsys.readouterr().out


def test_other_architecture_is_refused(source, images):
    with pytest.raises(TrainingError, match="is a run of cnn: it has no test_resnet, .* Choose the architecture cnn"):
        start_numbers(config_from(source, "test_resnet"), images)
    with pytest.raises(TrainingError, match="it has no network of timm, which rnn would start from"):
        start_numbers(config_from(source, "rnn"), images)


def test_hybrid_gives_and_takes_the_network_of_the_same_name(images, cache_dir, tmp_path, monkeypatch):
    def hybrid(**model):
        config = make_config(TINY, "rnn", **ONE_EPOCH, folds=(0,), batch_size=16)
        return replace(config, model=replace(config.model, encoders=("cnn", "test_resnet"), **model))

    train_run(hybrid(), TrainingData(images, cache_dir), tmp_path / "rnn")
    found = first_encoders(monkeypatch)
    train_run(config_from(tmp_path / "rnn", "test_resnet", folds=(0,)), TrainingData(images, cache_dir), tmp_path / "resnet")
    assert same(found[0], weights(tmp_path / "rnn" / "fold0" / "weights.safetensors", "encoders.1."))
    train_run(config_from(tmp_path / "rnn", folds=(0,)), TrainingData(images, cache_dir), tmp_path / "cnn")
    assert same(found[0], weights(tmp_path / "rnn" / "fold0" / "weights.safetensors", "encoders.0."))
    file = tmp_path / "resnet" / "fold0" / "weights.safetensors"
    _, vocabulary = load_fold(hybrid(), tmp_path / "rnn" / "fold0")
    network = build_model(hybrid(weights_path=str(file)).model, vocabulary)
    assert same(network.encoders[1].state_dict(), weights(file))


def test_patches_of_a_run_that_was_stopped_after_them_start_whole_images(
    competition, images, others, cache_dir, tmp_path, monkeypatch
):
    config = make_config(TINY, **ONE_EPOCH, patch_epochs=1, patch_size=32, folds=(0,))
    run = Fitting.run

    def stop(self):
        if self.fold_dir.name != "patches":
            raise KeyboardInterrupt
        run(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fitting, "run", stop)
        train_run(config, TrainingData(images, cache_dir, boxes=read_truth(competition)[0]), tmp_path / "patches")
    found = first_encoders(monkeypatch)
    train_run(config_from(tmp_path / "patches", folds=(0,)), TrainingData(images, cache_dir), tmp_path / "whole")
    assert same(found[0], weights(tmp_path / "patches" / "fold0" / "patches" / "weights.safetensors"))
    assert read_start(tmp_path / "whole" / "fold0").file == "fold0/patches/weights.safetensors"
    with pytest.raises(LeakError, match="Let train.ipynb finish fold1 there"):
        start_numbers(config_from(tmp_path / "patches"), images)
    file = tmp_path / "patches" / "fold0" / "patches" / "weights.safetensors"
    assert start_numbers(config_from(file), others) == {0: "", 1: ""}


def test_unfinished_folds_start_nothing(source, images, tmp_path):
    shutil.copytree(source, tmp_path / "run")
    (tmp_path / "run" / "fold0" / "oof.csv").unlink()
    assert list(open_source(tmp_path / "run").files) == [1]
    (tmp_path / "run" / "fold1" / "oof.csv").unlink()
    with pytest.raises(TrainingError, match="no fold of this run is finished"):
        start_numbers(config_from(tmp_path / "run"), images)


# Resuming, and folders that move


def killed_run(source, images, cache_dir, run_dir, monkeypatch):
    """A run that was killed in its second epoch; gives its configuration."""
    config = config_from(source, folds=(0,), epochs=2)
    with killed_in_second_epoch(monkeypatch):
        train_run(config, TrainingData(images, cache_dir), run_dir)
    return config


def test_killed_run_resumes_from_a_source_that_moved_to_the_same_result(source, images, cache_dir, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "here")
    config = killed_run(tmp_path / "here", images, cache_dir, tmp_path / "run", monkeypatch)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(
        TrainingError, match=r"started from other weights than those of .*here.*Set weights_path to where they are"
    ):
        train_run(config, TrainingData(images, cache_dir), tmp_path / "run")
    moved = config_from(tmp_path / "there", folds=(0,), epochs=2)
    resumed = train_run(moved, TrainingData(images, cache_dir), tmp_path / "run")
    pd.testing.assert_frame_equal(resumed, train_run(moved, TrainingData(images, cache_dir), tmp_path / "whole"))


def test_source_that_changed_is_noticed(source, images, cache_dir, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "source")
    config = killed_run(tmp_path / "source", images, cache_dir, tmp_path / "run", monkeypatch)
    shutil.copy(source / "fold1" / "weights.safetensors", tmp_path / "source" / "fold0" / "weights.safetensors")
    with pytest.raises(TrainingError, match="missing or were changed"):
        train_run(config, TrainingData(images, cache_dir), tmp_path / "run")


def test_finished_run_needs_its_source_no_more(source, images, cache_dir, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    config = config_from(tmp_path / "source")
    oof = train_run(config, TrainingData(images, cache_dir), tmp_path / "run")
    shutil.rmtree(tmp_path / "source")
    pd.testing.assert_frame_equal(train_run(config, TrainingData(images, cache_dir), tmp_path / "run"), oof)
    load_fold(config, tmp_path / "run" / "fold1")
    Run(tmp_path / "run").oof()


def test_run_does_not_go_on_from_another_source(source, images, cache_dir, tmp_path):
    shutil.copytree(source, tmp_path / "other")
    other = safetensors.torch.load_file(source / "fold1" / "weights.safetensors")
    with safetensors.safe_open(source / "fold1" / "weights.safetensors", "pt") as file:
        safetensors.torch.save_file(other, tmp_path / "other" / "fold0" / "weights.safetensors", file.metadata())
    train_run(config_from(source, folds=(0,)), TrainingData(images, cache_dir), tmp_path / "run")
    with pytest.raises(TrainingError, match="fold0 started from other weights"):
        train_run(config_from(tmp_path / "other", folds=(1,)), TrainingData(images, cache_dir), tmp_path / "run")
    with pytest.raises(TrainingError, match="other settings .model."):
        train_run(make_config(TINY, **ONE_EPOCH, folds=(1,)), TrainingData(images, cache_dir), tmp_path / "run")


@pytest.mark.parametrize(
    "change", [{"file": "../../etc/passwd"}, {"file": 3}, {"sha256": "0"}, {"seen": "p1"}, {"weights_path": ""}, {"more": 1}]
)
def test_broken_record_of_a_start_is_refused(tmp_path, change):
    Start("a", "fold0/weights.safetensors", "0" * 64, ("p1",)).write(tmp_path)
    assert read_start(tmp_path).seen == ("p1",)
    content = json.loads((tmp_path / "start.json").read_text())
    write_json(tmp_path / "start.json", content | change)
    with pytest.raises(TrainingError, match="start.json"):
        read_start(tmp_path)


# The preflight


def start_findings(source, images, run_dir, is_sure=True, **changes):
    config = replace(make_config(TINY, model={"weights_path": str(source)}), **changes)
    return [(finding.is_fatal, str(finding)) for finding in check_start(config, TrainingData(images, ""), run_dir, is_sure)]


def test_preflight_takes_a_run_that_fits_and_refuses_others(source, images, tmp_path):
    assert start_findings(source, images, tmp_path / "new") == []
    ((is_fatal, problem),) = start_findings(source, images, tmp_path / "new", seed=5)
    assert is_fatal and "no network there may start fold 0" in problem


def test_preflight_only_warns_while_unreadable_images_are_unknown(source, images, tmp_path):
    ((is_fatal, _),) = start_findings(source, images, tmp_path / "new", is_sure=False, seed=5)
    assert not is_fatal
