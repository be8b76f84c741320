"""Facts about the tables of a run folder: what is refused, by which name."""

import numpy as np
import pandas as pd
import pytest

from utils.runs.errors import TrainingError
from utils.runs.tables import OOF_COLUMNS, read_extra_patients, read_folds, read_history_table, read_oof

OOF = pd.DataFrame(
    {
        "prediction_id": ["1_L", "1_L", "NA_R"],
        "patient_id": ["1", "1", "NA"],
        "laterality": ["L", "L", "R"],
        "image_id": ["007", "8", "9"],
        "fold": [0, 0, 1],
        "cancer": [1, 1, 0],
        "logit": [0.0, np.log(3), -50.0],
        "probability": [0.5, 0.75, 1 / (1 + np.exp(50))],
    }
)


def test_predictions_are_read_as_written(tmp_path):
    path = tmp_path / "oof.csv"
    for table in (OOF, OOF.iloc[1:].assign(image_id="")):  # of images, and of breasts
        table.to_csv(path, index=False)
        pd.testing.assert_frame_equal(read_oof(path), table.reset_index(drop=True), check_dtype=False)
        assert read_oof(path).columns.tolist() == OOF_COLUMNS


WRONG = {
    "prediction_id": [("", 0), ("1_L", 2)],
    "patient_id": [("", 0), ("2", 0)],
    "laterality": [("B", 0), ("", 1), ("R", 0)],
    "image_id": [("", 0)],
    "fold": [("", 0), (-1, 0), (0.5, 1), ("a", 2), (10**30, 0), ("True", 0), ("inf", 0)],
    "cancer": [("", 0), (2, 0), (0.5, 1), (-1, 2), ("yes", 0), ("True", 0)],
    "logit": [("", 0), ("nan", 0), ("inf", 1), ("x", 2), (1.0, 0)],
    "probability": [("", 0), (7, 0), (-0.1, 1), ("nan", 2), ("inf", 0), ("0,5", 0), (0.6, 0)],
}


@pytest.mark.parametrize("column", WRONG)
def test_a_wrong_value_is_refused_by_file_column_and_line(tmp_path, column):
    path = tmp_path / "oof.csv"
    for value, row in WRONG[column]:
        table = OOF.astype(object)
        table.loc[row, column] = value
        table.to_csv(path, index=False)
        with pytest.raises(TrainingError, match=rf"^{path}: \w+ is .* in line [234], but must be .* Copy the run again"):
            read_oof(path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (OOF.iloc[:0], "it has no rows"),
        (OOF.drop(columns=["logit", "fold"]), "it lacks the columns fold, logit"),
        (OOF.assign(site=1), "it has the unknown columns site"),
        (pd.concat([OOF, OOF[["fold"]]], axis=1), "it has the columns fold twice"),
        (pd.concat([OOF, OOF.iloc[:1]]), "prediction_id is 1_L in line 2, but must be in one row for each image"),
        (OOF.assign(image_id=""), "prediction_id is 1_L in line 2"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path, table, message):
    table.to_csv(tmp_path / "oof.csv", index=False)
    with pytest.raises(TrainingError, match=f"oof.csv: {message}"):
        read_oof(tmp_path / "oof.csv")


@pytest.mark.parametrize("read", [read_folds, read_extra_patients])
def test_a_column_that_stands_twice_is_refused(tmp_path, read):
    table = OOF.assign(extra_set="a")
    for name in ("folds.csv", "extra.csv"):
        pd.concat([table, 1 - table[["fold"]], table[["patient_id"]]], axis=1).to_csv(tmp_path / name, index=False)
    with pytest.raises(TrainingError, match=r"\.csv: it has the columns .*patient_id.* twice"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\x00", b"a,b\n1,2,3,4\n5\n", b"PK\x03\x04\x00\x00", b'"', b"{}"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    for name in ("oof.csv", "folds.csv", "history.csv", "extra.csv"):
        (tmp_path / name).write_bytes(content)
    for read in (lambda: read_oof(tmp_path / "oof.csv"), lambda: read_history_table(tmp_path / "history.csv")):
        with pytest.raises(TrainingError, match=r"\.csv"):
            read()
    for read in (read_folds, read_extra_patients):
        with pytest.raises(TrainingError, match=r"\.csv"):
            read(tmp_path)


def test_a_row_with_more_values_than_columns_is_refused(tmp_path):
    text = OOF.to_csv(index=False).splitlines()
    (tmp_path / "oof.csv").write_text("\n".join([text[0], *(f"{row}," for row in text[1:])]))
    with pytest.raises(TrainingError, match="its rows have more values than there are columns"):
        read_oof(tmp_path / "oof.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,0\n1,1\n", "patient_id is 1 in line 2, but must be in one row and one fold"),
        ("1,0\n1,0\n", "patient_id is 1 in line 2"),
        (",0\n", "patient_id is  in line 2"),
        ("1,\n", "fold is nan"),
        ("1,-1\n", "fold is -1"),
        ("1,0.5\n", "fold is 0.5"),
        ("1,x\n", "fold is x"),
    ],
)
def test_folds_that_do_not_tell_are_refused(tmp_path, rows, message):
    (tmp_path / "folds.csv").write_text("patient_id,fold\n" + rows)
    with pytest.raises(TrainingError, match=f"folds.csv: {message}"):
        read_folds(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold,valid_auc\n0,0.5\n", "lacks the columns epoch"),
        ("fold,epoch\n0,0\n0,0\n", "epoch is 0 in line 2, but must be in one row of each fold"),
        ("fold,epoch\n0,x\n", "epoch is x"),
        ("fold,epoch,valid_auc\n0,0,high\n", "valid_auc is high"),
    ],
)
def test_a_history_that_can_not_be_drawn_is_refused(tmp_path, text, message):
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(TrainingError, match=f"history.csv: .*{message}"):
        read_history_table(tmp_path / "history.csv")


def test_an_undefined_figure_may_be_empty_in_the_history(tmp_path):
    (tmp_path / "history.csv").write_text("fold,epoch,valid_auc\n0,0,\n0,1,0.5\n")
    assert read_history_table(tmp_path / "history.csv").valid_auc.isna().tolist() == [True, False]
