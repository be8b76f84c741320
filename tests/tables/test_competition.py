"""Facts about reading the competition's tables and splitting them into folds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.tables.competition import (
    TableError,
    assign_folds,
    breasts,
    image_paths,
    name_files,
    read_images,
    read_sample_submission,
)

REAL_TABLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "rsna-table"
POSITIVE_BREASTS = 492  # of the competition's 23,826; as published
COLUMNS = ["site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id"]
ROWS = [  # line 2 of the file is the first
    ["1", "007", "0001", "L", "CC", "50", "0", "29"],
    ["1", "007", "0002", "L", "MLO", "50", "0", "29"],
    ["1", "007", "0003", "R", "CC", "50", "0", "29"],
    ["2", "8", "0004", "L", "CC", "", "1", "48"],
]
LAST = {"train": ("cancer", ["0", "0", "1", "0"]), "test": ("prediction_id", ["007_L", "007_L", "007_R", "8_L"])}


def table(split: str = "train") -> pd.DataFrame:
    name, values = LAST[split]
    return pd.DataFrame(ROWS, columns=COLUMNS).assign(**{name: values})


def write(folder: Path, rows: pd.DataFrame, name: str = "train") -> Path:
    rows.to_csv(folder / f"{name}.csv", index=False)
    return folder


def changed(column: str, line: int, value: str, split: str = "train") -> pd.DataFrame:
    rows = table(split)
    rows.loc[line - 2, column] = value
    return rows


def many_patients(n: int, positive_every: int = 10) -> pd.DataFrame:
    """Two breasts, three images each; sites 1 and 2 by turns; each ``positive_every``-th patient has a cancer on the left."""
    rows = []
    for i in range(n):
        cancer = int(i % positive_every == 0)
        rows += [(1 + i % 2, f"p{i}", f"{i}{view}", view[0], cancer if view[0] == "L" else 0) for view in ("La", "Lb", "R")]
    images = pd.DataFrame(rows, columns=["site_id", "patient_id", "image_id", "laterality", "cancer"])
    return images.assign(prediction_id=images.patient_id + "_" + images.laterality)


def test_train_table_is_read_in_order_with_types(tmp_path):
    images = read_images(write(tmp_path, table()), "train")
    assert images.image_id.tolist() == ["0001", "0002", "0003", "0004"]  # leading zeros kept
    assert images.patient_id.tolist() == ["007", "007", "007", "8"]
    assert images.prediction_id.tolist() == ["007_L", "007_L", "007_R", "8_L"]
    assert images.cancer.tolist() == [0, 0, 1, 0]
    for column in ("cancer", "site_id", "machine_id", "implant"):
        assert images[column].dtype == np.int64


def test_missing_age_is_nan_and_allowed(tmp_path):
    ages = read_images(write(tmp_path, table()), "train").age
    assert ages.tolist()[:3] == [50.0, 50.0, 50.0]
    assert np.isnan(ages[3])


def test_test_table_keeps_its_own_prediction_ids_and_extra_columns(tmp_path):
    rows = table("test").assign(prediction_id=["x1", "x1", "x2", "x3"], added_later="a")
    images = read_images(write(tmp_path, rows, "test"), "test")
    assert images.prediction_id.tolist() == ["x1", "x1", "x2", "x3"]
    assert images.added_later.tolist() == ["a"] * 4


@pytest.mark.parametrize("name", ["NA", "nan", "None", "null", "1e5", "0x10", "-", "_", "a.b", "..a"])
def test_plain_ids_that_look_like_something_else_stay_text(tmp_path, name):
    assert read_images(write(tmp_path, changed("image_id", 3, name)), "train").image_id[1] == name


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + table().to_csv(index=False, lineterminator="\r\n").encode())
    assert read_images(tmp_path, "train").site_id.tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("split, column", [(split, c) for split in LAST for c in [*COLUMNS, LAST[split][0]]])
def test_missing_column_is_named(tmp_path, split, column):
    write(tmp_path, table(split).drop(columns=column), split)
    with pytest.raises(TableError) as error:
        read_images(tmp_path, split)
    assert str(tmp_path / f"{split}.csv") in str(error.value)
    assert f"lacks the column(s) {column};" in str(error.value)


BROKEN = [
    ("image_id", 4, "0001", 2),  # a duplicate shows from its first occurrence
    ("cancer", 5, "2", 5),
    ("cancer", 5, "-1", 5),
    ("cancer", 5, "0.5", 5),
    ("cancer", 5, "yes", 5),
    ("cancer", 5, "", 5),
    ("cancer", 3, "1", 2),  # a breast with two labels shows from its first image
    ("laterality", 4, "B", 4),
    ("laterality", 4, "l", 4),
    ("laterality", 4, "", 4),
    ("age", 3, "old", 3),
    ("site_id", 3, "one", 3),
    ("site_id", 3, "", 3),
    ("site_id", 3, "1.5", 3),
    ("site_id", 3, "inf", 3),
    ("machine_id", 5, "x", 5),
    ("implant", 5, "", 5),
]
BAD_IDS = ["a/b", "a\\b", "..", ".", "../x", "/etc", "", " ", "a b", "a\n", "é", "C:"]
BROKEN += [(column, 3, bad, 3) for column in ("patient_id", "image_id") for bad in BAD_IDS]


@pytest.mark.parametrize("column, line, value, shown", BROKEN)
def test_broken_train_row_names_file_column_and_first_line(tmp_path, column, line, value, shown):
    write(tmp_path, changed(column, line, value))
    with pytest.raises(TableError) as error:
        read_images(tmp_path, "train")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'train.csv'}, column {column}: ")
    assert f"first line {shown}: " in message


LONG_ID = "9" * 300


@pytest.mark.parametrize("column", ["patient_id", "image_id"])
def test_long_id_of_a_train_table_is_refused(tmp_path, column):
    write(tmp_path, changed(column, 3, LONG_ID))
    with pytest.raises(TableError, match=rf"train\.csv, column {column}: must have at most 200 characters.* first line 3: "):
        read_images(tmp_path, "train")


@pytest.mark.parametrize("column", ["patient_id", "image_id"])
@pytest.mark.parametrize("bad", [*BAD_IDS, LONG_ID])
def test_test_table_keeps_a_row_whose_ids_can_not_name_a_file(tmp_path, column, bad):
    write(tmp_path, changed(column, 3, bad, "test"), "test")
    images = read_images(tmp_path, "test")
    assert images[column][1] == bad and name_files(images).tolist() == [True, False, True, True]


def test_two_empty_ids_of_a_test_table_are_not_repeated(tmp_path):
    write(tmp_path, table("test").assign(image_id=["0001", "", "", "0004"]), "test")
    assert name_files(read_images(tmp_path, "test")).tolist() == [True, False, False, True]


@pytest.mark.parametrize("bad", BAD_IDS)
def test_broken_prediction_id_names_file_column_and_line(tmp_path, bad):
    write(tmp_path, changed("prediction_id", 4, bad, "test"), "test")
    with pytest.raises(TableError, match=r"test\.csv, column prediction_id: .* first line 4: "):
        read_images(tmp_path, "test")


def test_prediction_id_of_two_patients_is_refused(tmp_path):
    write(tmp_path, changed("prediction_id", 5, "007_R", "test"), "test")
    with pytest.raises(TableError, match=r"column prediction_id: must belong to one patient.* first line 4: .*line 5: "):
        read_images(tmp_path, "test")


def test_message_counts_all_offending_rows_but_shows_three(tmp_path):
    write(tmp_path, table().assign(laterality="X"))
    with pytest.raises(TableError, match=r"4 row\(s\) break this, first line 2: 'X'; line 3: 'X'; line 4: 'X'\.$"):
        read_images(tmp_path, "train")


def test_blank_line_does_not_shift_the_line_number(tmp_path):
    lines = changed("cancer", 5, "2").to_csv(index=False).splitlines()
    lines.insert(2, "")  # the offending row moves from line 5 to line 6
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(TableError, match=r"first line 6: "):
        read_images(tmp_path, "train")


@pytest.mark.parametrize("age", ["inf", "-inf"])
def test_infinite_age_is_refused(tmp_path, age):
    write(tmp_path, changed("age", 3, age))
    with pytest.raises(TableError, match=r"column age: .* first line 3: "):
        read_images(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_file_is_named(tmp_path, split):
    with pytest.raises(TableError, match=rf"{split}\.csv does not exist"):
        read_images(tmp_path, split)


HEADER = ",".join([*COLUMNS, "cancer"])
ROW = ",".join([*ROWS[0], "0"])
UNREADABLE = {
    "empty": b"",
    "blank lines": b"\n\n",
    "rows longer than the header": b"a,b\n1,2,3\n4,5,6,7\n",
    "no UTF-8": b"site_id,\xff\xfe\n",
    "Latin-1": f"{HEADER},note\n{ROW},Zürich\n".encode("latin-1"),
    "UTF-16": f"{HEADER}\n{ROW}\n".encode("utf-16"),
    "a comma behind each row": f"{HEADER}\n{ROW},\n".encode(),
    "a row with a field too many": f"{HEADER}\n{ROW}\n{ROW},1\n".encode(),
    "a row with a field too few": f"{HEADER}\n{ROW}\n{ROW[:-2]}\n".encode(),
    "a row cut inside a quoted field": f'{HEADER},note\n{ROW},"left'.encode(),
    "NUL bytes": f"{HEADER}\n{ROW}\n".encode() + bytes(512),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_empty_or_unreadable_file_is_named(tmp_path, content):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(TableError) as error:
        read_images(tmp_path, "train")
    assert f"{tmp_path / 'train.csv'} is not a readable CSV" in str(error.value)


@pytest.mark.parametrize("again", ["cancer", "patient_id", "Cancer", " machine_id ", "IMAGE_ID"])
def test_column_that_comes_twice_is_refused(tmp_path, again):
    (tmp_path / "train.csv").write_text(f"{HEADER},{again}\n{ROW},1\n", encoding="utf-8-sig")
    with pytest.raises(TableError, match=rf"train\.csv has the column\(s\) {again.strip().lower()} more than once; keep one"):
        read_images(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_header_alone_is_refused(tmp_path, split):
    write(tmp_path, table(split).head(0), split)
    with pytest.raises(TableError, match=rf"{split}\.csv has a header and no rows"):
        read_images(tmp_path, split)


@pytest.mark.parametrize("value", ["1e30", "9" * 25, "-1e19", "9223372036854775808", "9007199254740993"])
@pytest.mark.parametrize("column", ["machine_id", "site_id", "age"])
def test_number_that_is_not_held_exactly_is_refused(tmp_path, column, value):
    write(tmp_path, changed(column, 3, value))
    with pytest.raises(TableError, match=rf"column {column}: must be a number between .* first line 3: "):
        read_images(tmp_path, "train")


def test_index_that_was_written_along_is_read_over(tmp_path):
    table().to_csv(tmp_path / "train.csv")
    assert read_images(tmp_path, "train").image_id.tolist() == ["0001", "0002", "0003", "0004"]


def test_line_end_in_quotes_does_not_shift_the_line_number(tmp_path):
    rows = changed("cancer", 4, "2").assign(note="two\nlines")
    with pytest.raises(TableError, match=r"column cancer: .* first line 6: '2'"):
        read_images(write(tmp_path, rows), "train")


def test_table_error_is_a_value_error():
    assert issubclass(TableError, ValueError)


def sample(ids: list[str], cancer: str = "0.02") -> pd.DataFrame:
    return pd.DataFrame({"prediction_id": ids, "cancer": cancer})


def test_sample_submission_keeps_order_and_zeros_and_fractions(tmp_path):
    read = read_sample_submission(write(tmp_path, sample(["02_R", "01_L"]), "sample_submission"))
    assert read.prediction_id.tolist() == ["02_R", "01_L"]
    assert read.cancer.tolist() == [0.02, 0.02]


@pytest.mark.parametrize(
    "rows, message",
    [
        (sample(["a", "b", "a"]), "column prediction_id: is repeated.* first line 2: .*line 4: "),
        (sample(["a", ""]), "column prediction_id: .* first line 3: "),
        (sample(["a"], "x"), "column cancer: must be a number.* first line 2: "),
        (sample(["a"]).drop(columns="cancer"), "lacks the column.* cancer;"),
        (sample([]), "has a header and no rows"),
        (sample(["a"], "1e20"), "column cancer: must be a number between.* first line 2: "),
    ],
)
def test_broken_sample_submission_names_column_and_line(tmp_path, rows, message):
    with pytest.raises(TableError, match=r"sample_submission\.csv.* " + message):
        read_sample_submission(write(tmp_path, rows, "sample_submission"))


def test_breasts_has_one_row_each_in_order_of_first_image(tmp_path):
    rows = breasts(read_images(write(tmp_path, table()), "train"))
    assert rows.prediction_id.tolist() == ["007_L", "007_R", "8_L"]
    assert rows.cancer.tolist() == [0, 1, 0]
    assert "fold" not in rows
    assert "fold" in breasts(many_patients(2).assign(fold=0))


def test_image_paths_follow_kaggles_layout():
    assert image_paths(table(), "data", "test")[0] == Path("data/test_images/007/0001.dcm")


def fold_by_image(images: pd.DataFrame, n_folds: int = 4, seed: int = 0) -> dict[str, int]:
    folded = assign_folds(images, n_folds, seed)
    return dict(zip(folded.image_id, folded.fold, strict=True))


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_no_patient_is_in_two_folds_and_all_folds_are_used(n_folds):
    folded = assign_folds(many_patients(40), n_folds, seed=1)
    assert (folded.groupby("patient_id").fold.nunique() == 1).all()
    assert sorted(folded.fold.unique()) == list(range(n_folds))
    assert folded.fold.dtype == np.int64


def test_folds_depend_on_the_seed_alone():
    images = many_patients(40)
    assert fold_by_image(images, seed=3) == fold_by_image(images, seed=3)
    assert fold_by_image(images, seed=3) != fold_by_image(images, seed=4)


def test_folds_keep_rows_index_and_columns_and_leave_the_input_alone():
    images = many_patients(10).sample(frac=1, random_state=0)
    before = images.copy()
    folded = assign_folds(images, 2, seed=0)
    pd.testing.assert_frame_equal(images, before)
    pd.testing.assert_frame_equal(folded.drop(columns="fold"), before)


@pytest.mark.parametrize("shuffle_seed", [0, 1, 2])
def test_folds_do_not_depend_on_row_order(shuffle_seed):
    images = many_patients(40)
    assert fold_by_image(images) == fold_by_image(images.sample(frac=1, random_state=shuffle_seed))


@pytest.mark.parametrize("n_folds", [2, 4, 5])
def test_folds_balance_positives_and_sites(n_folds):
    folded = assign_folds(many_patients(80, positive_every=4), n_folds, seed=0)  # 20 positive patients, all at site 1
    assert (folded[folded.cancer == 1].groupby("fold").patient_id.nunique() == 20 // n_folds).all()
    assert (folded[folded.site_id == 2].groupby("fold").patient_id.nunique() == 40 // n_folds).all()


def test_patients_with_two_positive_breasts_are_spread():
    images = many_patients(40, positive_every=10)
    images.loc[images.patient_id.isin(["p0", "p10"]), "cancer"] = 1
    folded = assign_folds(images, 2, seed=0)
    assert folded[folded.patient_id.isin(["p0", "p10"])].groupby("patient_id").fold.first().nunique() == 2


@pytest.mark.parametrize("seed", range(3))
def test_groups_smaller_than_the_folds_even_each_other_out(seed):
    """Of four positive patients, two at either site, each of four folds gets one."""
    images = many_patients(16, positive_every=99)
    images["cancer"] = images.patient_id.isin(["p0", "p1", "p10", "p11"]).astype(int) * (images.laterality == "L")
    folded = assign_folds(images, 4, seed)
    assert sorted(folded[folded.cancer == 1].groupby("patient_id").fold.first()) == [0, 1, 2, 3]


@pytest.mark.parametrize("n_patients, n_folds", [(2, 2), (3, 2), (3, 3), (5, 4), (7, 7)])
def test_tiny_tables_split_into_folds_of_nearly_equal_size(n_patients, n_folds):
    sizes = assign_folds(many_patients(n_patients, positive_every=2), n_folds, seed=0).groupby("fold").patient_id.nunique()
    assert len(sizes) == n_folds
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("n_patients, n_folds", [(3, 4), (1, 2), (4, 1), (4, 0), (4, -1)])
def test_impossible_number_of_folds_is_refused(n_patients, n_folds):
    with pytest.raises(TableError, match=f"n_folds is {n_folds}, but {n_patients} patients"):
        assign_folds(many_patients(n_patients), n_folds, seed=0)


def many_machines(n: int, n_machines: int) -> pd.DataFrame:
    """`many_patients`, a machine for each; cancers on all of them."""
    images = many_patients(n, positive_every=3)
    return images.assign(machine_id=100 + images.patient_id.str[1:].astype(int) % n_machines)


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_no_machine_and_no_patient_is_in_two_folds_by_machine(n_folds):
    images = many_machines(70, 7)
    folded = assign_folds(images, n_folds, seed=0, fold_by="machine")
    for unit in ("machine_id", "patient_id"):
        assert (folded.groupby(unit).fold.nunique() == 1).all()
    assert sorted(folded.fold.unique()) == list(range(n_folds)) and folded.fold.dtype == np.int64
    pd.testing.assert_frame_equal(folded.drop(columns="fold"), images)
    assert (assign_folds(images, n_folds, seed=0).groupby("machine_id").fold.nunique() > 1).any()  # by patient


def test_machines_that_share_a_patient_stay_together():
    images = many_machines(60, 6)
    images.loc[images.patient_id == "p0", "machine_id"] = [100, 101, 102]  # one patient, three machines
    for seed in range(5):
        folds = assign_folds(images, 4, seed, "machine").groupby("machine_id").fold
        assert (folds.nunique() == 1).all() and folds.first().loc[[100, 101, 102]].nunique() == 1


def test_folds_by_machine_share_the_positives_where_machines_allow_it():
    images = many_patients(80, positive_every=2)
    patient = images.patient_id.str[1:].astype(int)
    images["machine_id"] = np.where(patient % 2 == 0, patient // 20, 4 + patient // 20)  # 4 of 8 see no cancer
    assert images.groupby("machine_id").cancer.sum().tolist() == [20] * 4 + [0] * 4
    for seed in range(3):
        assert assign_folds(images, 4, seed, "machine").groupby("fold").cancer.sum().tolist() == [20] * 4


def test_folds_by_machine_are_the_same_whatever_the_seed():
    images = many_machines(70, 7)
    first, other = (assign_folds(images, 3, seed, "machine").fold for seed in (1, 2))
    assert first.equals(other)


@pytest.mark.parametrize(("n_machines", "n_folds"), [(3, 4), (1, 2), (3, 1)])
def test_impossible_number_of_folds_by_machine_is_refused(n_machines, n_folds):
    with pytest.raises(TableError, match=f"n_folds is {n_folds}, but {n_machines} groups of machines"):
        assign_folds(many_machines(30, n_machines), n_folds, 0, "machine")


def test_machines_joined_by_patients_count_as_one():
    images = many_machines(30, 3)
    images.loc[images.patient_id == "p0", "machine_id"] = [100, 101, 102]
    with pytest.raises(TableError, match="1 groups of machines without a common patient"):
        assign_folds(images, 2, 0, "machine")


def test_unknown_way_to_fold_is_refused():
    with pytest.raises(TableError, match="fold_by is 'site'; choose from patient, machine"):
        assign_folds(many_machines(30, 3), 2, 0, "site")


@pytest.fixture(scope="module")
def real_images() -> pd.DataFrame:
    if not REAL_TABLE.is_dir():
        pytest.skip("the competition's table is not here")
    return read_images(REAL_TABLE, "train")


@pytest.mark.skipif(not REAL_TABLE.is_dir(), reason="the competition's table is not here")
@pytest.mark.parametrize("n_folds, seed", [(4, 0), (4, 1), (5, 0), (10, 0)])
def test_real_folds_are_even_in_patients_positives_and_sites(real_images, n_folds, seed):
    folded = assign_folds(real_images, n_folds, seed)
    assert len(folded) == 54_706
    assert set(folded.fold) == set(range(n_folds))
    assert (folded.groupby("patient_id").fold.nunique() == 1).all()
    by_fold = breasts(folded).groupby("fold")
    assert by_fold.cancer.sum().sum() == POSITIVE_BREASTS
    # Whole breasts: 10 folds of 49.2 on average can't be closer than 49 and 50.
    assert (by_fold.cancer.sum() - POSITIVE_BREASTS / n_folds).abs().max() <= max(0.03 * POSITIVE_BREASTS / n_folds, 1)
    share_of_site_1 = by_fold.site_id.apply(lambda site: (site == 1).mean())
    assert share_of_site_1.max() - share_of_site_1.min() < 0.005
    assert folded.groupby("fold").patient_id.nunique().max() - folded.groupby("fold").patient_id.nunique().min() <= 1


@pytest.mark.skipif(not REAL_TABLE.is_dir(), reason="the competition's table is not here")
def test_real_table_has_the_published_counts(real_images):
    assert len(real_images) == 54_706
    assert real_images.patient_id.nunique() == 11_913
    assert real_images.prediction_id.nunique() == 23_826
    assert real_images.age.isna().sum() == 37


@pytest.mark.skipif(not REAL_TABLE.is_dir(), reason="the competition's table is not here")
def test_real_folds_by_machine_hold_machines_and_patients_out_whole(real_images):
    folded = assign_folds(real_images, 4, 0, "machine")
    for unit in ("machine_id", "patient_id"):
        assert (folded.groupby(unit).fold.nunique() == 1).all()
    assert (breasts(folded).groupby("fold").cancer.sum() > 0).all()
