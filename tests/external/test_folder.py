"""Folders of DICOMs as people have them: nested, with gaps in the headers, junk between, and names that no path must become."""

import shutil

import pandas as pd
import pydicom
import pytest

from tests.external.test_convert import write_dicom
from tests.helpers import TINY, make_config
from utils.decision.tuning import tune
from utils.external import folder as external_folder
from utils.external import headers as external_headers
from utils.external.convert import main
from utils.external.folder import code_of, convert_folder, plain_names
from utils.external.sets import ExternalError
from utils.images.cache import build_cache
from utils.images.inputs import Inputs
from utils.images.training_data import TrainingData
from utils.kaggle.preflight_training import preflight_submission, preflight_training
from utils.phantom.competition import TEST_COLUMNS, TRAIN_COLUMNS
from utils.runs.execution import Execution
from utils.runs.plan import Plan
from utils.runs.settings import Settings
from utils.submission.decoding import Source
from utils.submission.draft import Draft, write_prior
from utils.submission.streaming import predict_runs
from utils.tables.competition import image_paths, read_images
from utils.training.folds import train_run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.valuerep")  # headers that break the rules
DIGITAL_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
FOUR_VIEWS = [("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]


def write_exam(folder, patient="P1", **elements):
    """Four usual images of a patient, in a folder."""
    for side, view in FOUR_VIEWS:
        usual = {"PatientID": patient, "ImageLaterality": side, "ViewPosition": view, "Modality": "MG", "PatientAge": "055Y"}
        write_dicom(folder / f"{side}{view}.dcm", **usual | elements)
    return folder


def converted(tmp_path, **options):
    """Convert ``source`` of the test's folder; gives the rows by image_id, and files.csv by file."""
    out = tmp_path / "out"
    convert_folder(tmp_path / "source", out, **options)
    split = "train" if (out / "train.csv").exists() else "test"
    rows = read_images(out, split)
    assert all(path.is_file() for path in image_paths(rows, out, split))
    return rows.set_index("image_id"), files_table(out)


def files_table(out):
    return pd.read_csv(out / "files.csv", dtype=str, keep_default_na=False).set_index("file")


def write_csv(tmp_path, *lines):
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# What is written
# ---------------


def test_nested_files_of_any_name_become_a_test_part(tmp_path, capsys):
    source = tmp_path / "source"
    write_exam(
        source / "2024" / "a", "P1", BreastImplantPresent="YES", ManufacturerModelName="Selenia", InstitutionName="North"
    )
    write_exam(source / "b", "P2", ManufacturerModelName="Selenia")
    (source / "b" / "LCC.dcm").rename(source / "b" / "IM0001")
    (source / "b" / "LMLO.dcm").rename(source / "b" / "x.png")  # which its name does not make a picture
    rows, files = converted(tmp_path)
    assert tuple(pd.read_csv(tmp_path / "out" / "test.csv").columns) == TEST_COLUMNS
    assert not (tmp_path / "out" / "train.csv").exists() and not (tmp_path / "out" / "sample_submission.csv").exists()
    assert sorted(rows.prediction_id.unique()) == ["own_P1_L", "own_P1_R", "own_P2_L", "own_P2_R"]
    assert rows.loc["own_IM0001", ["patient_id", "laterality", "view", "age"]].tolist() == ["own_P2", "L", "CC", 55]
    assert rows.groupby("patient_id").implant.first().tolist() == [1, 0] and rows.machine_id.nunique() == 1
    assert rows.groupby("patient_id").site_id.first().tolist() == [code_of("north ", 0), 106]
    assert files.loc["b/x.png", "competition_image_id"] in rows.index and files.loc["b/x.png", "patient_id"] == "P2"
    manifest = build_cache(rows.reset_index(), tmp_path / "out", "test", tmp_path / "cache", TINY)
    assert (manifest.error == "").all()
    assert "8 images, 2 patients, 4 breasts" in capsys.readouterr().out


def test_labels_make_a_train_part(tmp_path):
    write_exam(tmp_path / "source")
    labels = write_csv(tmp_path, "patient_id,laterality,cancer", "P1,left,1", "P1,R,0")
    rows, _ = converted(tmp_path, labels=labels)
    assert tuple(pd.read_csv(tmp_path / "out" / "train.csv").columns) == TRAIN_COLUMNS
    assert rows.groupby("laterality").cancer.unique().explode().to_dict() == {"L": 1, "R": 0}
    assert not (tmp_path / "out" / "test.csv").exists()


def test_what_is_no_dicom_is_skipped_and_counted(tmp_path, capsys):
    source = write_exam(tmp_path / "source")
    (source / "notes.txt").write_text("R MLO\n" * 100)
    (source / "empty.dcm").touch()
    (source / "junk.dcm").write_bytes(bytes(range(256)) * 4)
    (source / "broken link").symlink_to(source / "nowhere")
    rows, files = converted(tmp_path)
    assert len(rows) == len(files) == 4
    assert "skipped, not DICOM: 3" in capsys.readouterr().out


def test_files_that_can_not_be_read_are_left_out_by_name(tmp_path):
    source = write_exam(tmp_path / "source")
    content = (source / "LCC.dcm").read_bytes()
    (source / "cut.dcm").write_bytes(content[:200])
    write_dicom(source / "no pixels.dcm", PatientID="P1", ImageLaterality="L")
    dataset = pydicom.dcmread(source / "no pixels.dcm")
    del dataset.PixelData
    dataset.save_as(source / "no pixels.dcm")
    rows, files = converted(tmp_path)
    assert len(rows) == 4 and (files.left_out != "").sum() == 2
    assert "pixel data" in files.left_out["no pixels.dcm"] and files.left_out["cut.dcm"]


def test_file_that_may_not_be_opened_is_left_out(tmp_path, monkeypatch):
    def refuse(path, *rest, **options):
        if path.name == "LCC.dcm":
            raise PermissionError(13, "Permission denied")
        return open(path, *rest, **options)

    write_exam(tmp_path / "source")
    monkeypatch.setattr(external_headers, "open", refuse, raising=False)  # root, who may run the tests, opens everything
    assert converted(tmp_path)[1].left_out["LCC.dcm"] == "it can't be opened (Permission denied)"


def test_folder_that_can_not_be_listed_is_named(tmp_path, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", "hidden"))

    write_exam(tmp_path / "source")
    monkeypatch.setattr(external_folder.os, "walk", walk)
    with pytest.raises(ExternalError, match="hidden can't be listed .Permission denied.: make it readable"):
        convert_folder(tmp_path / "source", tmp_path / "out")


def test_files_are_linked_or_copied(tmp_path):
    source = write_exam(tmp_path / "source")
    convert_folder(source, tmp_path / "linked")
    rows = convert_folder(source, tmp_path / "copied", copy=True)
    shutil.rmtree(source)
    assert all(path.is_symlink() for path in image_paths(rows, tmp_path / "linked", "test"))
    assert all(path.is_file() for path in image_paths(rows, tmp_path / "copied", "test"))


def test_conversion_that_was_killed_begins_again_and_one_that_was_not_is_refused(tmp_path):
    source = write_exam(tmp_path / "source")
    first = convert_folder(source, tmp_path / "out")
    with pytest.raises(ExternalError, match="already contains test.csv: delete the folder"):
        convert_folder(source, tmp_path / "out")
    (tmp_path / "out" / "test.csv").unlink()
    pd.testing.assert_frame_equal(convert_folder(source, tmp_path / "out"), first)


def test_folders_that_can_not_be_meant_are_refused(tmp_path):
    with pytest.raises(ExternalError, match="source does not exist: give the folder that contains"):
        convert_folder(tmp_path / "source", tmp_path / "out")
    (tmp_path / "source").mkdir()
    with pytest.raises(ExternalError, match="contains no DICOM file among 0 files"):
        convert_folder(tmp_path / "source", tmp_path / "out")
    with pytest.raises(ExternalError, match="is in .*choose another place"):
        convert_folder(tmp_path / "source", tmp_path / "source" / "out")
    with pytest.raises(ExternalError, match="prefix is '../x'"):
        convert_folder(tmp_path / "source", tmp_path / "out", prefix="../x")
    assert not (tmp_path / "out").exists()


# Ids
# ---


def test_equal_names_in_two_folders_stay_two_images(tmp_path):
    write_exam(tmp_path / "source" / "a", "P1")
    write_exam(tmp_path / "source" / "b", "P2")
    rows, files = converted(tmp_path)
    assert len(rows) == 8 and rows.index.is_unique
    for folder, patient in {"a": "own_P1", "b": "own_P2"}.items():
        image = files.competition_image_id[f"{folder}/LCC.dcm"]
        assert rows.patient_id[image] == patient
        path = tmp_path / "out" / "test_images" / patient / f"{image}.dcm"
        assert path.resolve() == tmp_path / "source" / folder / "LCC.dcm"


HARD_IDS = ["A/B", "A B", "A_B", "a_b", "../../etc", "..", "Müller", "X" * 300 + "1", "X" * 300 + "2", "CON", "日本"]


def test_patient_ids_that_are_no_file_names_stay_apart_and_lead_nowhere(tmp_path):
    for number, patient in enumerate(HARD_IDS):
        charset = {"SpecificCharacterSet": "ISO_IR 192"}
        write_exam(tmp_path / "source" / str(number), patient, **charset)
    rows, files = converted(tmp_path)
    assert rows.patient_id.nunique() == len(HARD_IDS) and len(rows) == 4 * len(HARD_IDS)
    assert rows.patient_id.str.fullmatch(r"own_[A-Za-z0-9_.-]+").all() and rows.patient_id.str.casefold().nunique() == len(
        HARD_IDS
    )
    assert sorted(files.patient_id.unique()) == sorted(HARD_IDS)
    assert all(path.is_relative_to(tmp_path / "out") for path in image_paths(rows.reset_index(), tmp_path / "out", "test"))
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_longest_file_names_stay_apart(tmp_path):
    for ending in "12":
        write_dicom(tmp_path / "source" / ("x" * 254 + ending), PatientID="P", ImageLaterality="L")
    assert converted(tmp_path)[0].index.str.len().max() < 100


def test_name_that_looks_like_an_altered_one_is_altered_too():
    (altered,) = plain_names(pd.Series(["A/B"]))
    names = plain_names(pd.Series(["A/B", altered, altered.upper()]))
    assert names[0] == altered and names.str.casefold().nunique() == 3


def test_same_patient_has_the_same_id_in_another_folder(tmp_path):
    write_exam(tmp_path / "one", "A/B")
    write_exam(tmp_path / "two", "A/B")
    ids = [convert_folder(tmp_path / name, tmp_path / f"out-{name}").patient_id[0] for name in ("one", "two")]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("patient", ["", "ANONYMOUS", "anon."])
def test_study_stands_for_a_patient_that_no_header_names(tmp_path, capsys, patient):
    for number in (1, 2):
        write_exam(tmp_path / "source" / str(number), patient, StudyInstanceUID=f"1.2.{number}")
    rows, files = converted(tmp_path)
    assert sorted(rows.patient_id.unique()) == ["own_1.2.1", "own_1.2.2"]
    assert (files.taken_from == "patient_id: StudyInstanceUID").all() and files.lacking.str.startswith("patient").all()
    assert "headers without patient: 8 of 8; each study counts as a patient of its own" in capsys.readouterr().out


def test_files_without_patient_and_study_are_patients_of_their_own(tmp_path):
    write_exam(tmp_path / "source", "")
    assert converted(tmp_path)[0].patient_id.nunique() == 4


def test_id_that_two_hospitals_gave_is_two_patients(tmp_path):
    write_exam(tmp_path / "source" / "a", "7", IssuerOfPatientID="North")
    write_exam(tmp_path / "source" / "b", "7", IssuerOfPatientID="South")
    assert converted(tmp_path)[0].patient_id.nunique() == 2


def test_patient_with_two_dates_of_birth_is_noted(tmp_path, capsys):
    write_exam(tmp_path / "source" / "a", "7", PatientBirthDate="19600101")
    write_exam(tmp_path / "source" / "b", "7", PatientBirthDate="19700101")
    _, files = converted(tmp_path)
    assert files.notes.str.contains("two dates of birth").all()
    assert "images with notes in files.csv: 8" in capsys.readouterr().out


def test_exams_of_several_years_are_said_to_count_as_one(tmp_path, capsys):
    for year in ("1", "2"):
        write_exam(tmp_path / "source" / year, StudyInstanceUID=f"1.2.{year}")
    assert converted(tmp_path)[0].prediction_id.nunique() == 2
    assert "patients with several exams: 1;" in capsys.readouterr().out


# What headers lack, and what is left out
# ---------------------------------------


def test_side_comes_from_a_description_only_where_no_element_tells_it(tmp_path, capsys):
    exam = tmp_path / "source"
    write_dicom(exam / "told", PatientID="P", SeriesDescription="LCC")
    write_dicom(exam / "wrong", PatientID="P", SeriesDescription="LMLO", Laterality="R")
    write_dicom(exam / "split", PatientID="P", SeriesDescription="LMLO", ProtocolName="R MLO")
    rows, files = converted(tmp_path)
    assert rows.laterality.to_dict() == {"own_told": "L", "own_wrong": "R"} and rows["view"].tolist() == ["CC", "MLO"]
    assert files.taken_from["told"] == "laterality: SeriesDescription; view: SeriesDescription"
    assert "SeriesDescription says L" in files.notes["wrong"]
    assert "does not say left or right" in files.left_out["split"]
    assert "sides read from descriptions: 1, first told; check them" in capsys.readouterr().out


def test_image_that_tells_only_its_side_counts_and_what_lacks_is_told(tmp_path, capsys):
    write_dicom(tmp_path / "source" / "1", ImageLaterality="L", PatientID="P", SOPClassUID=DIGITAL_XRAY)
    rows, files = converted(tmp_path)
    assert rows["view"].isna().all() and rows.age.isna().all() and rows.machine_id.tolist() == [10600]
    assert files.lacking["1"] == "view, age, implant, machine, institution"
    assert "headers without view: 1 of 1" in capsys.readouterr().out


def test_picture_of_both_breasts_is_left_out(tmp_path):
    write_exam(tmp_path / "source")
    write_dicom(tmp_path / "source" / "both", PatientID="P1", ImageLaterality="B")
    assert converted(tmp_path)[1].left_out["both"] == "it shows both breasts"


def test_secondary_captures_are_taken_where_the_user_asks(tmp_path):
    write_exam(tmp_path / "source", SOPClassUID=SECONDARY_CAPTURE)
    write_dicom(tmp_path / "source" / "ct", PatientID="P1", ImageLaterality="L", SOPClassUID=CT)
    with pytest.raises(ExternalError, match="none of 5 DICOM files can be used.*4: it is a secondary capture.*--any-modality"):
        converted(tmp_path)
    assert len(converted(tmp_path, any_modality=True)[0]) == 4


def test_presentation_is_taken_where_a_view_is_there_for_processing_too(tmp_path):
    raw = {"PresentationIntentType": "FOR PROCESSING"}
    write_exam(tmp_path / "source" / "shown", PresentationIntentType="FOR PRESENTATION")
    write_exam(tmp_path / "source" / "raw", **raw)
    write_dicom(tmp_path / "source" / "alone", PatientID="P2", ImageLaterality="L", ViewPosition="CC", **raw)
    rows, files = converted(tmp_path)
    assert set(files.index[files.left_out != ""]) == {f"raw/{side}{view}.dcm" for side, view in FOUR_VIEWS}
    assert files.left_out["raw/LCC.dcm"].startswith("it is for processing")
    assert len(rows) == 5 and files.notes["alone"] == "for processing: raw values"


def test_copy_of_a_file_counts_once_and_another_image_of_the_same_uid_counts(tmp_path):
    source = write_exam(tmp_path / "source", SOPInstanceUID="1.2.3")
    shutil.copy(source / "LCC.dcm", source / "copy.dcm")
    rows, files = converted(tmp_path)
    assert len(rows) == 4 and files.left_out["copy.dcm"] == "it is the same file as LCC.dcm"


def test_file_whose_name_is_not_unicode_is_converted(tmp_path, capsys):
    write_dicom(tmp_path / "source" / "L.dcm", PatientID="P", SeriesDescription="LCC")
    (tmp_path / "source" / "L.dcm").rename(tmp_path / "source" / "L\udcfc.dcm")
    rows, files = converted(tmp_path)
    assert rows.index.str.fullmatch("own_L_-[0-9a-f]{10}").all() and "first L\\udcfc.dcm" in capsys.readouterr().out
    labels = write_csv(tmp_path, "file,cancer", f"{files.index[0]},1")
    shutil.rmtree(tmp_path / "out")
    assert converted(tmp_path, labels=labels)[0].cancer.tolist() == [1]


# From the command line to a submission
# -------------------------------------


def test_command_line_converts_a_folder_or_ends_in_one_line(tmp_path, capsys):
    source = write_exam(tmp_path / "source")
    labels = write_csv(tmp_path, "file,cancer", "LCC,1", "RCC,0")
    main(["folder", str(source), str(tmp_path / "out"), "--labels", str(labels), "--copy", "--prefix", "north"])
    assert read_images(tmp_path / "out", "train").patient_id.unique().tolist() == ["north_P1"]
    printed = capsys.readouterr().out
    assert "4 images, 1 patient, 2 breasts, 1 with cancer." in printed and "Next: papermill notebooks/train.ipynb" in printed
    with pytest.raises(SystemExit, match="^ExternalError: .* already contains train.csv"):
        main(["folder", str(source), str(tmp_path / "out")])
    for arguments in (["vindr", "a", "b", "--labels", "c"], ["folder", "a", "b", "--birads-4", "1"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)


def test_submit_predicts_a_folder_of_own_files_one_probability_a_breast(tmp_path, images, cache_dir, monkeypatch):
    """As submit.ipynb does, with neither sample_submission.csv nor train.csv."""
    monkeypatch.setattr("utils.images.cache.working_dir", lambda: tmp_path / "working")
    run = tmp_path / "run"
    train_run(make_config(TINY, epochs=1), TrainingData(images, cache_dir), run)
    for number in range(2):
        write_exam(tmp_path / "source" / str(number), f"P{number}")
    write_dicom(tmp_path / "source" / "no view", PatientID="P1", ImageLaterality="L")
    rows, _ = converted(tmp_path)
    out, path = tmp_path / "out", tmp_path / "submission.csv"
    write_prior(path, out)
    preflight_submission(Inputs(out, False, TINY, tmp_path / "cache", False), [tmp_path], 0)
    test_images, tuned = read_images(out, "test"), tune([run])
    draft = Draft(path, test_images, out, 0.02)
    predicted, _ = predict_runs([run], tuned, Source(test_images, out), publish=draft.update)
    draft.finish(predicted, tmp_path / "submissions", {})
    written = pd.read_csv(tmp_path / "probabilities.csv")
    assert written.prediction_id.tolist() == ["own_P0_L", "own_P0_R", "own_P1_L", "own_P1_R"] and len(rows) == 9
    assert written.probability.between(0, 1).all() and set(predicted.index) == set(written.prediction_id)


def test_own_labelled_folder_passes_the_checks_of_training_without_a_test_part(tmp_path):
    for number in range(12):
        write_exam(tmp_path / "source" / str(number), f"P{number}")
    lines = [f"P{number},{side},{int(number < 4 and side == 'L')}" for number in range(12) for side in "LR"]
    converted(tmp_path, labels=write_csv(tmp_path, "patient_id,laterality,cancer", *lines))
    inputs = Inputs(tmp_path / "out", False, TINY, tmp_path / "cache", False)
    plan = Plan(Settings("plain", {}), inputs, "", make_config(TINY), Execution(), tmp_path / "run", None)
    preflight_training(plan, 0)
