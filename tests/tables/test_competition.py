"""Facts about reading the competition's tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.tables.breasts import by_breast
from utils.tables.competition import image_paths, name_files, read_images, read_sample_submission
from utils.tables.strict_csv import TableError

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


def test_breasts_have_one_row_each_in_order_of_first_image(tmp_path):
    images = read_images(write(tmp_path, table()), "train")
    rows = by_breast(images)
    assert rows.index.tolist() == ["007_L", "007_R", "8_L"]
    assert rows.cancer.tolist() == [0, 1, 0]
    assert "fold" not in rows
    assert by_breast(images.assign(fold=0)).fold.tolist() == [0, 0, 0]


def test_image_paths_follow_kaggles_layout():
    assert image_paths(table(), "data", "test")[0] == Path("data/test_images/007/0001.dcm")


def test_real_table_has_the_published_counts(real_images):
    assert len(real_images) == 54_706
    assert real_images.patient_id.nunique() == 11_913
    assert real_images.prediction_id.nunique() == 23_826
    assert real_images.age.isna().sum() == 37
