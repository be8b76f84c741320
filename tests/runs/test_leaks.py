"""Each way to a figure that is too good is refused, with its reason."""

import os

import numpy as np
import pandas as pd
import pytest

from tests.helpers import TINY, make_config, write_run
from utils.core.files import write_csv
from utils.images.training_data import TrainingData
from utils.runs.errors import TrainingError
from utils.runs.leaks import LEAST_POSITIVES, LeakError, check_features, check_patients_whole
from utils.runs.run import Run
from utils.training.folds import train_run


def train_table(n: int = 100, positives: int = LEAST_POSITIVES) -> pd.DataFrame:
    """One image each of two breasts of ``n`` patients; metadata that knows nothing of cancer."""
    generator = np.random.default_rng(0)
    images = pd.DataFrame({"patient_id": np.repeat([f"p{i}" for i in range(n)], 2), "laterality": ["L", "R"] * n})
    return images.assign(
        prediction_id=images.patient_id + "_" + images.laterality,
        image_id=[str(i) for i in range(2 * n)],
        cancer=(generator.permutation(2 * n) < positives).astype(int),
        age=np.repeat(generator.integers(40, 80, n), 2).astype(float),
        implant=0,
        view="CC",
        site_id=1,
        machine_id=np.repeat(generator.choice([21, 48, 49], n), 2),
        biopsy=0,
        density="A",
    )


FEATURES = ("age", "implant", "view", "machine_id", "site_id")


def test_honest_features_pass():
    check_features(train_table(), FEATURES)


@pytest.mark.parametrize(
    "label", ["cancer", "biopsy", "invasive", "BIRADS", "density", "difficult_negative_case", "patient_id"]
)
def test_label_among_the_features_is_refused_by_name(label):
    with pytest.raises(LeakError, match=f"^{label}: .*never features"):
        check_features(train_table(positives=0), ["age", label])


PLANTED = {
    "age": {
        "rising": lambda cancer: 40 + 30 * cancer,
        "falling": lambda cancer: 70 - 30 * cancer,
        "missing where positive": lambda cancer: np.where(cancer == 1, np.nan, 50),
        "missing where negative": lambda cancer: np.where(cancer == 1, 50, np.nan),
    },
    "view": {
        "text": lambda cancer: np.where(cancer == 1, "B", np.arange(len(cancer)) % 2),
        "missing text": lambda cancer: np.where(cancer == 1, "B", None),
    },
    "machine_id": {"codes on both sides": lambda cancer: np.where(cancer == 1, 48, 21 + 100 * (np.arange(len(cancer)) % 2))},
}


@pytest.mark.parametrize(("column", "way"), [(column, way) for column, ways in PLANTED.items() for way in ways])
def test_label_in_a_features_values_is_refused(column, way):
    images = train_table()
    images[column] = PLANTED[column][way](images.cancer)
    with pytest.raises(LeakError, match=f"^Column {column} alone predicts cancer with an AUC of 1.000"):
        check_features(images, FEATURES)


def test_label_in_a_feature_is_refused_though_a_few_rows_say_otherwise():
    images = train_table(n=2000, positives=400)
    age = 40 + 30 * images.cancer
    check_features(images.assign(age=age.where(images.index % 10 != 0, 110 - age)), FEATURES)  # a tenth: AUC 0.9
    with pytest.raises(LeakError, match="age alone predicts cancer with an AUC of 0.99"):
        check_features(images.assign(age=age.where(images.index % 200 != 0, 110 - age)), FEATURES)


@pytest.mark.parametrize("positives", [0, 1, LEAST_POSITIVES - 1, 200 - LEAST_POSITIVES + 1])
def test_few_of_a_class_may_be_told_apart_by_chance(positives):
    images = train_table(positives=positives)
    check_features(images.assign(age=40.0 + 30 * images.cancer), FEATURES)


def test_breasts_are_counted_not_images():
    images = train_table(positives=LEAST_POSITIVES - 1)
    check_features(pd.concat([images.assign(age=40.0 + 30 * images.cancer)] * 3), FEATURES)


def test_run_that_reads_a_planted_label_is_refused_before_it_begins(tmp_path):
    images = train_table()
    images["age"] = 40.0 + 30 * images.cancer
    with pytest.raises(LeakError, match="Column age alone predicts cancer"):
        train_run(make_config(TINY, "rnn"), TrainingData(images, tmp_path / "cache"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrainingError, match="lacks 200 of 200 images"):  # a model of images does not read age
        train_run(make_config(TINY, "cnn"), TrainingData(images, tmp_path / "cache"), tmp_path / "run")


def oof_table(n: int = 6) -> pd.DataFrame:
    """Two images of one breast each of ``n`` patients, in two folds."""
    patients = np.repeat([f"p{i}" for i in range(n)], 2)
    table = pd.DataFrame({"prediction_id": patients, "patient_id": patients, "laterality": "L"})
    table["image_id"] = [str(i) for i in range(2 * n)]
    return table.assign(fold=np.arange(2 * n) // 2 % 2, cancer=np.arange(2 * n) // 4 % 2, logit=0.0, probability=0.5)


def rewrite(run, table):
    """Change a run's predictions, at a later time, and not its folds."""
    path = run / "oof.csv"
    later = path.stat().st_mtime_ns + 1_000_000
    table.to_csv(path, index=False)
    os.utime(path, ns=(later, later))


def test_patient_in_two_folds_is_refused():
    table = oof_table()
    check_patients_whole(table, "oof.csv")
    with pytest.raises(LeakError, match=r"^oof.csv: 1 patient\(s\) are in more than one fold, first p0\. .*split by patient"):
        check_patients_whole(table.assign(fold=[1, *table.fold[1:]]), "oof.csv")


def test_message_names_three_patients_and_counts_all():
    table = oof_table().assign(fold=[0, 1] * 6)
    with pytest.raises(LeakError, match=r"6 patient\(s\) .* first p0, p1, p2\. "):
        check_patients_whole(table, "oof.csv")


def test_model_is_not_scored_on_the_patients_that_trained_it(tmp_path):
    run = write_run(tmp_path / "run", oof_table())
    Run(run).check_unseen(0, ["p0", "p2", "new"])
    with pytest.raises(LeakError, match=r"model of fold 0 was trained on 2 of these patients, first p1, p3\. .*training rows"):
        Run(run).check_unseen(0, ["p0", "p1", "p1", "p3", "new"])


def test_model_is_not_scored_on_patients_of_the_extra_sets_that_trained_it(tmp_path):
    run = write_run(tmp_path / "run", oof_table())
    Run(run).check_unseen(0, ["vindr_1"])
    pd.DataFrame({"extra_set": "vindr", "patient_id": ["vindr_1"], "image_id": "a", "cancer": 0}).to_csv(run / "extra.csv")
    with pytest.raises(LeakError, match="trained on 1 of these patients, first vindr_1"):
        Run(run).check_unseen(0, ["vindr_1"])


def test_honest_predictions_are_read_as_they_are(tmp_path):
    table = oof_table()
    pd.testing.assert_frame_equal(Run(write_run(tmp_path / "run", table)).oof(), table, check_dtype=False)


def test_predictions_by_a_fold_that_trained_on_the_patient_are_refused(tmp_path):
    table = oof_table()
    run = write_run(tmp_path / "run", table)
    rewrite(run, table.assign(fold=table.fold.where(table.patient_id != "p3", 0)))  # folds.csv says 1
    with pytest.raises(LeakError, match="model of fold 0 was trained on 1 of these patients, first p3"):
        Run(run).oof()


def test_predictions_with_a_patient_in_two_folds_are_refused(tmp_path):
    table = oof_table()
    run = write_run(tmp_path / "run", table.assign(fold=[1, *table.fold[1:]]))
    with pytest.raises(LeakError, match=r"oof.csv: 1 patient\(s\) are in more than one fold, first p0"):
        Run(run).oof()


def test_breast_with_two_labels_is_refused(tmp_path):
    table = oof_table()
    run = write_run(tmp_path / "run", table.assign(cancer=[1, *table.cancer[1:]]))
    with pytest.raises(LeakError, match="breast p0 has two labels"):
        Run(run).oof()


def test_predictions_of_a_patient_in_no_fold_and_lost_predictions_are_refused(tmp_path):
    table = oof_table()
    run = write_run(tmp_path / "run", table)
    rewrite(run, table.replace({"patient_id": {"p0": "new"}, "prediction_id": {"p0": "new"}}))
    with pytest.raises(TrainingError, match=r"oof.csv: 1 of its patients are not in folds.csv, first new\."):
        Run(run).oof()
    rewrite(run, table[table.patient_id != "p3"])
    with pytest.raises(TrainingError, match=r"oof.csv: it lacks 1 patients of its folds, first p3\."):
        Run(run).oof()
    rewrite(run, table[table.fold == 1])  # the other fold is not finished
    assert set(Run(run).oof().fold) == {1}


def test_predictions_that_are_not_those_of_a_finished_fold_are_refused(tmp_path):
    """As where a fold was trained again and the run's table is of before, or where rows of it were lost."""
    table = oof_table()
    run = write_run(tmp_path / "run", table)
    own = table[table.fold == 1]
    for changed in (own.assign(probability=0.75, logit=np.log(3)), own.assign(cancer=1 - own.cancer)):
        write_csv(run / "fold1" / "oof.csv", changed)
        for read in (Run(run).oof, Run(run).usable_folds):
            with pytest.raises(TrainingError, match=r"oof.csv: its rows of fold 1 are not those of .*fold1/oof.csv"):
                read()
    write_csv(run / "fold1" / "oof.csv", own)
    assert len(Run(run).oof()) == len(table) and Run(run).usable_folds() == [run / "fold1"]
    rewrite(run, table[table.fold == 0])  # another process has finished the fold since
    assert set(Run(run).oof().fold) == {0}


def test_changed_set_of_extra_images_is_checked_again(tmp_path):
    run = write_run(tmp_path / "run", oof_table())
    Run(run).oof()
    pd.DataFrame({"extra_set": "vindr", "patient_id": ["p0"], "image_id": "a", "cancer": 0}).to_csv(run / "extra.csv")
    with pytest.raises(LeakError, match="trained on 1 of these patients, first p0"):
        Run(run).oof()


def test_changed_file_is_read_and_checked_again(tmp_path):
    table = oof_table()
    run = write_run(tmp_path / "run", table)
    assert (Run(run).oof().probability == 0.5).all()
    rewrite(run, table.assign(probability=0.75, logit=np.log(3)))
    assert (Run(run).oof().probability == 0.75).all()
    rewrite(run, table.assign(fold=0))
    with pytest.raises(LeakError, match="was trained on 3 of these patients"):
        Run(run).oof()


def test_what_a_reader_does_to_its_table_stays_with_it(tmp_path):
    run = write_run(tmp_path / "run", oof_table())
    table = Run(run).oof()
    table.loc[:, "probability"] = 0.0
    assert (Run(run).oof().probability == 0.5).all()


def test_run_that_does_not_say_who_trained_it_is_refused(tmp_path):
    run = write_run(tmp_path / "run", oof_table())
    (run / "folds.csv").unlink()
    with pytest.raises(TrainingError, match="folds.csv is missing"):
        Run(run).oof()
