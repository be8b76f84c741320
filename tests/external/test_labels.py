"""Tables that a user writes for a folder of DICOMs, and those that nobody can mean."""

import pytest

from tests.external.test_convert import write_dicom
from tests.external.test_folder import converted, files_table, write_csv, write_exam
from utils.external.sets import ExternalError


def test_side_that_headers_lack_is_read_from_the_table_that_was_written(tmp_path):
    write_exam(tmp_path / "source", ImageLaterality="", StudyInstanceUID="1.2")
    with pytest.raises(ExternalError, match="4: its header does not say left or right: add it .*files.csv"):
        converted(tmp_path)
    table = files_table(tmp_path / "out")
    table.assign(laterality=table.index.str[0]).to_csv(tmp_path / "filled.csv")
    rows, _ = converted(tmp_path, labels=tmp_path / "filled.csv")
    assert rows.laterality.tolist() == ["L", "L", "R", "R"] and rows.patient_id.unique().tolist() == ["own_P1"]
    assert (tmp_path / "out" / "test.csv").exists()


@pytest.mark.parametrize("key", ["LCC", "LCC.dcm", "a/LCC.dcm", "a\\LCC.dcm", "{source}/a/LCC.dcm", "1.2.3.4"])
def test_file_is_named_by_its_path_its_name_or_its_uid(tmp_path, key):
    source = tmp_path / "source"
    write_dicom(source / "a" / "LCC.dcm", PatientID="P", ImageLaterality="L", SOPInstanceUID="1.2.3.4")
    labels = write_csv(tmp_path, "\ufefffile;cancer;age;view;patient_id", f"{key.format(source=source)};1;61;MLO;Q")
    rows, files = converted(tmp_path, labels=labels)
    assert rows.iloc[0][["patient_id", "age", "view", "cancer"]].tolist() == ["own_Q", 61, "MLO", 1]
    assert files.taken_from.tolist() == ["patient_id: the CSV; view: the CSV; age: the CSV"]


def test_label_of_one_image_holds_for_its_breast_and_breasts_without_one_are_left_out(tmp_path):
    write_exam(tmp_path / "source")
    rows, files = converted(tmp_path, labels=write_csv(tmp_path, "image_id,cancer", "LCC,1", "RCC,"))
    assert rows.cancer.tolist() == [1, 1] and rows.laterality.tolist() == ["L", "L"]
    assert files.left_out["RMLO.dcm"] == "the CSV does not say whether its breast has cancer"


def test_lines_of_patients_that_are_not_there_are_counted(tmp_path, capsys):
    write_exam(tmp_path / "source")
    converted(tmp_path, labels=write_csv(tmp_path, "patient_id,laterality,cancer", "P1,L,1", "P1,R,0", "P9,L,0"))
    assert "1 of 3 lines match no image" in capsys.readouterr().out


@pytest.mark.parametrize(
    "lines, message",
    [
        (["patient,cancer", "P1,1"], "needs the column file, or the columns patient_id and laterality; it has patient, cancer"),
        (["file,truth", "LCC,1"], "has no column of patient_id, laterality, view, age, implant, cancer"),
        (["file,cancer"], "has a header and no rows"),
        (["file,cancer", "XCC.dcm,1"], "line 2, column file: 'XCC.dcm' is not a DICOM file in"),
        (["file,cancer", "notes.txt,1"], "'notes.txt' is not a DICOM file in"),
        (["file,cancer", "LCC,1", "LMLO,0"], "breast L of patient 'P1' is 0 in one line and 1 in another"),
        (["file,cancer", "LCC,1", "LCC.dcm,0"], "line 3, column cancer: 0 contradicts line 2"),
        (["file,cancer", "LCC,malignant"], "line 2, column cancer: 'malignant' must be 0 or 1"),
        (["file,laterality", "LCC,both"], "line 2, column laterality: 'both' must be L or R"),
        (["file,age", "LCC,old"], "'old' must be years from 1 to 120"),
        (["file,implant", "LCC,2"], "'2' must be 0 or 1"),
        (["file,view", "LCC,../x"], "'../x' must be letters, such as MLO"),
        (["file,cancer", ",1"], "line 2, column file: '' must not be empty"),
        (["patient_id,laterality,cancer", "P9,L,1"], "no line matches an image. Patients in headers: P1"),
        (["patient_id,laterality,cancer", "P1,L,1", "P1,L,0"], "line 3, column cancer: 0 contradicts line 2"),
        (["file,cancer", "LCC"], "not a readable CSV"),
    ],
)
def test_table_that_can_not_be_meant_is_refused_with_its_line(tmp_path, lines, message):
    source = write_exam(tmp_path / "source")
    (source / "notes.txt").write_text("none")
    with pytest.raises(ExternalError) as caught:
        converted(tmp_path, labels=write_csv(tmp_path, *lines))
    assert message in str(caught.value) and "labels.csv" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_name_of_several_files_is_refused(tmp_path):
    for folder in "ab":
        write_exam(tmp_path / "source" / folder)
    with pytest.raises(ExternalError, match=r"'LCC' names 2 files \(a/LCC.dcm, b/LCC.dcm\): give the path within"):
        converted(tmp_path, labels=write_csv(tmp_path, "file,cancer", "LCC,1"))


def test_table_that_would_be_written_over_is_refused(tmp_path):
    write_exam(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "files.csv").write_text("file,cancer\nLCC,1\n")
    with pytest.raises(ExternalError, match="is in .*move it elsewhere"):
        converted(tmp_path, labels=tmp_path / "out" / "files.csv")
    assert (tmp_path / "out" / "files.csv").read_text() == "file,cancer\nLCC,1\n"
