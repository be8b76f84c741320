"""Look-alikes of five public sets as they are distributed, made here; and what trains on them never predicts them."""

import plistlib
import shutil

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.helpers import TINY, make_config
from utils.core.errors import KitError
from utils.core.files import read_json
from utils.dicom.file import read_dicom, read_stored
from utils.external.convert import convert, main
from utils.external.sets import ExternalError
from utils.images.boxes import to_picture
from utils.images.cache import build_cache
from utils.images.cached import load_picture, read_manifest
from utils.images.inputs import Inputs
from utils.images.training_data import TrainingData
from utils.phantom.competition import TRAIN_COLUMNS
from utils.runs.config import TrainingError
from utils.runs.run import Run
from utils.runs.summary import box_summary
from utils.tables.boxes import CORNERS, read_boxes
from utils.tables.competition import image_paths, read_images
from utils.training import fold_data
from utils.training import folds as training
from utils.training.dataset import ImageDataset
from utils.training.fold_weights import load_fold
from utils.training.folds import train_run

TRAIN_TYPES = {"patient_id": str, "image_id": str}


def picture(level=200):
    """A bright half disc on black: enough of a breast."""
    grey = np.zeros((96, 64), dtype=np.uint8)
    cv2.ellipse(grey, (0, 48), (45, 40), 0, 0, 360, level, -1)
    return grey


def write_dicom(path, level=200, view=None, pixels=None, **elements):
    pixels = picture(level) if pixels is None else pixels
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.2", generate_uid(entropy_srcs=[str(path)])
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation, dataset.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    for name, value in elements.items():
        setattr(dataset, name, value)
    if view:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = view, "SCT", "a view"
        dataset.ViewCodeSequence = [code]
    dataset.add_new("PixelData", "OW", pixels.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def make_vindr(folder, birads=("BI-RADS 1", "BI-RADS 5", "BI-RADS 4", "BI-RADS 3")):
    """Two studies of four images: left and right of the first, left and right of the second have these categories."""
    rows, known = [], []
    for number, category in enumerate(birads):
        study, side = f"{number // 2:032x}", "LR"[number % 2]
        for view in ("CC", "MLO"):
            image = f"{16 + len(rows):032x}"
            rows.append([study, "s" + image, side, image, view, 3518, 2800, category, f"DENSITY {'CB'[number % 2]}", "test"])
            known.append([image, "s" + image, f"0{52 + number}Y", ["Mammomat Inspiration", "GIOTTO CLASS"][number // 2]])
            write_dicom(folder / "images" / study / f"{image}.dicom")
    columns = ["study_id", "series_id", "laterality", "image_id", "view_position", "height", "width", "breast_birads"]
    pd.DataFrame(rows, columns=[*columns, "breast_density", "split"]).to_csv(
        folder / "breast-level_annotations.csv", index=False
    )
    known = pd.DataFrame(
        known, columns=["SOP Instance UID", "Series Instance UID", "Patient's Age", "Manufacturer's Model Name"]
    )
    known.to_csv(folder / "metadata.csv", index=False)
    return folder


CMMD_ROWS = [
    "ID1,LeftRight,Age,number,abnormality,classification,subtype",
    "D1-0001,R,44,2,calcification,Benign,",
    "D2-0001,L,64,2,mass,Malignant,Luminal B",
]


def make_cmmd(folder, rows=CMMD_ROWS):
    """A patient with a benign right breast and a left one without a row; one with cancer and a file that tells no view."""
    root = folder / "manifest-1616439774456" / "CMMD"
    for patient, side, views in (("D1-0001", "R", (1, 2)), ("D1-0001", "L", (1, 2)), ("D2-0001", "L", (1, 2, 0))):
        series = root / patient / "07-18-2010-NA-NA-79377" / "1.000000-NA-70244"
        for number in views:
            view = ("", "399162004", "399368009")[number]
            write_dicom(series / f"1-{side}{number}.dcm", view=view, PatientID=patient, ImageLaterality=side)
    (folder / "CMMD_clinicaldata_revision.csv").write_text("\n".join(rows) + "\n")
    return folder


CBIS_COLUMNS = {
    "mass": "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,pathology,"
    "image file path,ROI mask file path",
    "calc": "patient_id,breast density,left or right breast,image view,abnormality id,abnormality type,pathology,"
    "image file path,ROI mask file path",
}


def cbis_row(kind, part, patient, side, view, pathology, number=1):
    name = f"{kind.title()}-{part.title()}_{patient}_{side}_{view}"
    path = f"{name}/1.3.6.1.4.1.9590.100.1.2.4221/1.3.6.1.4.1.9590.100.1.2.3423/000000.dcm"
    return f'{patient},3,{side},{view},{number},{kind},{pathology},{path},"{name}_1/1.3.6/1.3.6/000001.dcm\n"'


CBIS_ROWS = {
    ("mass", "training"): [
        ("P_00001", "LEFT", "CC", "MALIGNANT"),
        ("P_00001", "LEFT", "MLO", "BENIGN"),
        ("P_00001", "RIGHT", "CC", "BENIGN_WITHOUT_CALLBACK"),
    ],
    ("mass", "test"): [("P_00016", "LEFT", "CC", "BENIGN")],
    ("calc", "training"): [("P_00001", "LEFT", "CC", "BENIGN")],  # the same film
    ("calc", "test"): [("P_00038", "RIGHT", "MLO", "MALIGNANT")],
}


def make_cbis(folder):
    """Tables that name 000000.dcm in folders of UIDs, and files 1-1.dcm in folders of dates."""
    for (kind, part), rows in CBIS_ROWS.items():
        lines = [cbis_row(kind, part, *row, number) for row in rows for number in (1, 2)]
        table = folder / f"{kind}_case_description_{part.removesuffix('ing')}_set.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("\n".join([CBIS_COLUMNS[kind], *lines]) + "\n")
        for patient, side, view, _ in rows:
            name = f"{kind.title()}-{part.title()}_{patient}_{side}_{view}"
            study = folder / "CBIS-DDSM" / name / "07-20-2016-DDSM-NA-74994"
            write_dicom(study / "1.000000-full mammogram images-24515" / "1-1.dcm", level=180)
            write_dicom(study.parent.with_name(f"{name}_1") / "1.000000-ROI mask images-18515" / "1-1.dcm", level=255)
    write_dicom(study / "1.000000-ROI mask images-18515" / "1-1.dcm", level=255)  # of the last film, in the same folder
    return folder


def make_inbreast(folder):
    """Right CC 2 with MLO 5, left CC 2 with MLO 4a; a proven 6; and a row without a file."""
    rows = [("R", "CC", "2"), ("R", "MLO", "5"), ("L", "CC", "2"), ("L", "MLO", "4a"), ("R", "CC", "6"), ("L", "CC", "1")]
    lines = ["Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"]
    for number, (side, view, birads) in enumerate(rows):
        name, patient = 20586908 + number, f"{number // 4:016x}"
        lines.append(f"removed;removed;{side};{view};201001;{name};{'     ' if number == 4 else '2'};{birads}")
        if number < 5:
            written = {"CC": "CC", "MLO": "ML"}[view]
            write_dicom(folder / "AllDICOMs" / f"{name}_{patient}_MG_{side}_{written}_ANON.dcm")
    (folder / "INbreast.csv").write_text("\n".join(lines) + "\n\n")
    return folder


MIAS_LINES = """REFNUM BG CLASS SEVERITY X Y RADIUS
mdb001 G CIRC B 535 425 197
mdb002 G CIRC B 522 280 69
mdb003 D NORM
mdb004 D NORM
mdb005 F CIRC B 477 133 30
mdb005 F CIRC M 500 168 26
mdb006 D CALC M *NOTE 3*
mdb007 F NORM
"""


def make_mias(folder):
    (folder / "all-mias").mkdir(parents=True)
    (folder / "Info.txt").write_text(MIAS_LINES)
    for number in range(1, 8):
        assert cv2.imwrite(str(folder / "all-mias" / f"mdb{number:03}.pgm"), picture(150 + number))
    (folder / "all-mias" / "mdb007.pgm").write_bytes(b"P5\n1024 1024\n255\n")
    return folder


MAKERS = {"vindr": make_vindr, "cmmd": make_cmmd, "cbis": make_cbis, "inbreast": make_inbreast, "mias": make_mias}


@pytest.fixture
def converted(tmp_path, capsys):
    """Convert a look-alike; gives its train table, by image without the set's name, and what was printed."""

    def make(name, maker=None, **options):
        source = (maker or MAKERS[name])(tmp_path / "source" / name)
        convert(name, source, tmp_path / name, **options)
        table = read_images(tmp_path / name, "train")
        assert table.patient_id.str.startswith(f"{name}_").all() and table.image_id.str.startswith(f"{name}_").all()
        table.index = table.image_id.str.removeprefix(f"{name}_")
        return table, capsys.readouterr().out

    return make


@pytest.mark.parametrize("name", MAKERS)
def test_converted_set_is_read_and_preprocessed_by_the_kit(converted, tmp_path, name):
    table, _ = converted(name)
    assert tuple(pd.read_csv(tmp_path / name / "train.csv").columns) == TRAIN_COLUMNS
    manifest = build_cache(table.reset_index(drop=True), tmp_path / name, "train", tmp_path / "cache", TINY)
    assert (manifest.error == "").all() and (manifest["flags"] == "").all()
    assert table.site_id.unique().tolist() == [101 + list(MAKERS).index(name)]
    assert (table.machine_id // 100 == table.site_id).all() and (table.implant == 0).all()


def test_vindr_takes_birads_5_as_cancer_and_leaves_4_out(converted):
    table, printed = converted("vindr")
    by_breast = table.groupby("prediction_id").cancer.agg(["first", "size"])
    assert by_breast["first"].tolist() == [0, 1, 0] and (by_breast["size"] == 2).all()
    assert "vindr: 6 images of 2 patients; 1 of 3 breasts have cancer. Site 101, 2 machine(s), age known of 100%." in printed
    assert "left out 2: the truth of its breast is unknown" in printed
    assert table.density.tolist() == ["C", "C", "B", "B", "B", "B"] and table.age.unique().tolist() == [52, 53, 55]
    assert table.groupby("patient_id").machine_id.unique().explode().tolist() == [10102, 10101]


@pytest.mark.parametrize("label", [0, 1])
def test_birads_4_counts_as_the_user_says(converted, label):
    table, _ = converted("vindr", birads_4=label)
    assert len(table) == 8
    assert table.cancer[(table.BIRADS == 0) & (table.laterality == "L")].tolist() == [label] * 2


def test_vindr_without_metadata_knows_neither_age_nor_machine(tmp_path):
    source = make_vindr(tmp_path / "vindr")
    (source / "metadata.csv").unlink()
    table = convert("vindr", source, tmp_path / "new")
    assert table.age.isna().all() and (table.machine_id == 10100).all()


def test_missing_file_and_repeated_row_are_counted(tmp_path, capsys):
    source = make_vindr(tmp_path / "vindr")
    path = source / "breast-level_annotations.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows, rows[1]]) + "\n")
    sorted(source.rglob("*.dicom"))[2].unlink()
    assert len(convert("vindr", source, tmp_path / "new")) == 5
    printed = capsys.readouterr().out
    assert "left out 1: it is listed twice" in printed and "left out 1: its file is missing" in printed


def test_cmmd_labels_breasts_that_were_biopsied_and_no_others(converted):
    table, printed = converted("cmmd")
    assert table.groupby(["patient_id", "laterality"]).cancer.first().to_dict() == {
        ("cmmd_D1-0001", "R"): 0,
        ("cmmd_D2-0001", "L"): 1,
    }
    assert table.groupby("prediction_id")["view"].apply(sorted).tolist() == [["CC", "MLO"]] * 2
    assert table.groupby("patient_id").age.first().tolist() == [44, 64]
    assert "left out 2: the truth" in printed and "left out 1: its side or view is unknown" in printed


def test_cmmd_takes_semicolons_and_a_byte_order_mark(converted, tmp_path):
    rows = [row.replace(",", ";") for row in CMMD_ROWS]
    rows[0] = "\ufeff" + rows[0].replace("LeftRight", " LeftRight ")
    table, _ = converted("cmmd", lambda folder: make_cmmd(folder, rows))
    assert len(table) == 4 and table.cancer.sum() == 2


def test_broken_cmmd_file_is_left_out(tmp_path, capsys):
    source = make_cmmd(tmp_path / "cmmd")
    sorted(source.rglob("1-R1.dcm"))[0].write_bytes(b"no dicom")
    write_dicom(source / "CMMD" / "1-9.dcm", view="399162004", PatientID="../../D2-0001", ImageLaterality="L")
    assert len(convert("cmmd", source, tmp_path / "new")) == 3
    assert "left out 2: its file is missing, or its header can't be read" in capsys.readouterr().out


def test_cmmd_workbook_is_read_or_says_what_is_missing(tmp_path, monkeypatch):
    source = make_cmmd(tmp_path / "cmmd")
    path = source / "CMMD_clinicaldata_revision.csv"
    rows = pd.read_csv(path)
    path.unlink()
    path.with_suffix(".xlsx").write_bytes(b"PK")

    def without_openpyxl(*_, **__):
        raise ImportError("Missing optional dependency 'openpyxl'")

    monkeypatch.setattr(pd, "read_excel", without_openpyxl)
    with pytest.raises(ExternalError, match="needs openpyxl .pip install openpyxl.; or save it as .csv"):
        convert("cmmd", source, tmp_path / "new")
    monkeypatch.undo()
    pytest.importorskip("openpyxl")
    with pytest.raises(ExternalError, match="not a readable workbook"):
        convert("cmmd", source, tmp_path / "new")
    rows.to_excel(path.with_suffix(".xlsx"), index=False)
    assert len(convert("cmmd", source, tmp_path / "new")) == 4


def test_cbis_joins_its_four_tables_by_film(converted, tmp_path):
    table, printed = converted("cbis")
    assert table.cancer.to_dict() == {
        "P_00001_L_CC": 1,
        "P_00001_L_MLO": 1,  # of the same breast
        "P_00001_R_CC": 0,
        "P_00016_L_CC": 0,
        "P_00038_R_MLO": 1,
    }
    assert (table.density == "C").all() and "left out" not in printed
    paths = image_paths(table, tmp_path / "cbis", "train")
    assert all(read_stored(path).max() == 180 for path in paths)  # neither masks nor crops


def test_cbis_film_that_is_not_there_is_left_out(tmp_path, capsys):
    source = make_cbis(tmp_path / "cbis")
    shutil.rmtree(source / "CBIS-DDSM" / "Mass-Test_P_00016_LEFT_CC")
    assert len(convert("cbis", source, tmp_path / "new")) == 4
    assert "left out 1: its file is missing" in capsys.readouterr().out


def test_inbreast_judges_whole_breasts(converted):
    table, printed = converted("inbreast")
    assert table.cancer.to_dict() == {"20586908": 1, "20586909": 1, "20586912": 1}
    assert table["view"].tolist() == ["CC", "MLO", "CC"] and table.patient_id.nunique() == 2
    assert table.density.fillna("").tolist() == ["B", "B", ""] and table.age.isna().all()
    assert "left out 2: the truth" in printed and "left out 1: its file is missing" in printed


def test_mias_pairs_films_and_keeps_their_values(converted, tmp_path):
    table, printed = converted("mias")
    assert table.cancer.tolist() == [0, 0, 0, 0, 1, 1]
    assert table.laterality.tolist() == ["L", "R"] * 3 and (table["view"] == "MLO").all()
    assert table.patient_id.tolist() == [f"mias_pair{number:03}" for number in (1, 1, 2, 2, 3, 3)]
    path = tmp_path / "mias" / "train_images" / "mias_pair001" / "mias_mdb002.dcm"
    assert np.array_equal(read_stored(path), picture(152)) and pydicom.dcmread(path).pixel_array.dtype == np.uint8
    assert np.allclose(read_dicom(path), picture(152) / 255, atol=1e-6)
    assert "left out 1: its image can't be read" in printed


def test_files_are_linked_or_copied(tmp_path):
    source = make_vindr(tmp_path / "vindr")
    linked = image_paths(convert("vindr", source, tmp_path / "linked"), tmp_path / "linked", "train")
    copied = image_paths(convert("vindr", source, tmp_path / "copied", copy=True), tmp_path / "copied", "train")
    assert all(path.is_symlink() and path.is_file() for path in linked)
    shutil.rmtree(source)
    assert not any(path.is_file() for path in linked)
    assert all(read_stored(path).max() == 200 for path in copied)


def test_conversion_that_was_killed_begins_again_and_keeps_the_source(tmp_path):
    source = make_vindr(tmp_path / "vindr")
    table = convert("vindr", source, tmp_path / "new")
    for copy in (False, True):
        (tmp_path / "new" / "train.csv").unlink()
        again = convert("vindr", source, tmp_path / "new", copy=copy)
    pd.testing.assert_frame_equal(table, again)
    originals = {path.stem: path for path in source.rglob("*.dicom")}
    for path in image_paths(again, tmp_path / "new", "train"):
        assert not path.is_symlink() and path.read_bytes() == originals[path.stem.removeprefix("vindr_")].read_bytes()


def test_missing_column_is_named_with_its_file(tmp_path):
    source = make_vindr(tmp_path / "vindr")
    path = source / "breast-level_annotations.csv"
    pd.read_csv(path).drop(columns="breast_birads").to_csv(path, index=False)
    with pytest.raises(ExternalError, match=r"annotations.csv lacks the column\(s\) breast_birads; it has study_id"):
        convert("vindr", source, tmp_path / "new")


def test_id_that_is_a_path_is_refused(tmp_path):
    source = make_vindr(tmp_path / "vindr")
    path = source / "breast-level_annotations.csv"
    pd.read_csv(path, dtype=str).assign(study_id="../../etc").to_csv(path, index=False)
    with pytest.raises(ExternalError, match="column study_id: '../../etc' is not a plain name"):
        convert("vindr", source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_folders_that_can_not_be_meant_are_refused(tmp_path):
    source = make_mias(tmp_path / "mias")
    with pytest.raises(ExternalError, match="is in .*choose another place"):
        convert("mias", source, source / "new")
    with pytest.raises(ExternalError, match="nowhere does not exist: give the folder that contains"):
        convert("mias", tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(ExternalError, match="Info.txt is not a folder: give the folder that contains"):
        convert("mias", source / "Info.txt", tmp_path / "new")
    with pytest.raises(ExternalError, match="does not contain breast-level_annotations.csv"):
        convert("vindr", source, tmp_path / "new")
    with pytest.raises(ExternalError, match="choose from vindr, cmmd, cbis, inbreast, mias"):
        convert("ddsm", source, tmp_path / "new")
    convert("mias", source, tmp_path / "new")
    with pytest.raises(ExternalError, match="already contains train.csv: delete the folder"):
        convert("mias", source, tmp_path / "new")


def test_set_without_a_usable_image_says_why(tmp_path):
    source = make_vindr(tmp_path / "vindr")
    shutil.rmtree(source / "images")
    with pytest.raises(ExternalError, match="none of 8 images can be used: its file is missing"):
        convert("vindr", source, tmp_path / "new")
    assert not (tmp_path / "new" / "train.csv").exists()


def test_command_line_converts_or_ends_in_one_line(tmp_path, capsys):
    source = make_vindr(tmp_path / "vindr")
    main(["vindr", str(source), str(tmp_path / "new"), "--copy", "--birads-4", "1"])
    assert "vindr: 8 images" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^ExternalError: .* already contains train.csv"):
        main(["vindr", str(source), str(tmp_path / "new")])


# Boxes


def boxes_of(folder, name):
    """Boxes by image without the set's name."""
    boxes = read_boxes(folder / "boxes.csv")
    assert boxes.image_id.str.startswith(f"{name}_").all()
    return boxes.set_index(boxes.image_id.str.removeprefix(f"{name}_"))


def add_findings(folder):
    """A mass in each image of VinDr's look-alike, 10 x 10 px where its side's breast is; and an image without a finding."""
    table = pd.read_csv(folder / "breast-level_annotations.csv", dtype=str)
    x_min = np.where(table.laterality == "L", 20.0, 34.0)
    corners = {"xmin": x_min, "ymin": 40.0, "xmax": x_min + 10, "ymax": 50.0}
    found = table.assign(finding_categories="['Mass', 'Asymmetry']", finding_birads=table.breast_birads, **corners)
    found.loc[0, ["finding_categories", "finding_birads", *corners]] = ["['No Finding']", "", np.nan, np.nan, np.nan, np.nan]
    found.loc[1, "xmax"] = 70.0  # past the edge of 64 px
    found.to_csv(folder / "finding_annotations.csv", index=False)
    for row in table.itertuples():
        grey = picture(100)
        grey[40:50, 20:30] = 255
        grey = grey if row.laterality == "L" else np.ascontiguousarray(grey[:, ::-1])
        write_dicom(folder / "images" / row.study_id / f"{row.image_id}.dicom", pixels=grey)
    return folder


def test_vindr_boxes_have_categories_and_birads_and_stay_in_the_picture(tmp_path, capsys):
    table = convert("vindr", add_findings(make_vindr(tmp_path / "source")), tmp_path / "vindr")
    boxes = boxes_of(tmp_path / "vindr", "vindr")
    assert set(boxes.image_id) == set(table.image_id[1:])
    assert boxes.label.iloc[1] == "Mass, Asymmetry BI-RADS 5"
    assert boxes[CORNERS].iloc[0].tolist() == [20, 40, 64, 50]
    assert "5 boxes in 5 of 6 images" in capsys.readouterr().out


def test_boxes_of_another_set_lie_on_its_lesions_in_mirrored_crops(inputs, tmp_path):
    convert("vindr", add_findings(make_vindr(tmp_path / "source")), tmp_path / "vindr")
    extra = inputs.cached_training_data(0, None, str(tmp_path / "vindr")).extra
    boxes = read_boxes(tmp_path / "vindr" / "boxes.csv").iloc[1:]
    cache_dir = extra.cache_dir.iloc[0]
    manifest = read_manifest(cache_dir, "train", TINY)
    assert set(manifest.flipped.astype(int)) == {0, 1} and (manifest.crop_bottom.astype(int) < 96).any()
    for box in to_picture(boxes, manifest, TINY).itertuples():
        y, x = np.argwhere(load_picture(cache_dir, "train", box.image_id) > 200).mean(axis=0)
        assert box.x_min * 48 <= x <= box.x_max * 48 and box.y_min * 64 <= y <= box.y_max * 64


def test_cbis_boxes_are_those_of_the_masks(tmp_path):
    source, (left, right) = make_cbis(tmp_path / "source"), (np.zeros((96, 64), np.uint8), np.zeros((192, 128), np.uint8))
    left[30:40, 10:25] = 255
    right[60:80, 20:50] = 255  # of twice the film's size
    folder = source / "CBIS-DDSM" / "Mass-Training_P_00001_LEFT_CC_1"
    write_dicom(folder / "1.0-cropped images-1" / "1-1.dcm", pixels=np.full((30, 20), 90, np.uint8))
    write_dicom(folder / "1.0-ROI mask images-1" / "1-1.dcm", pixels=left)
    write_dicom(source / "CBIS-DDSM" / "Mass-Test_P_00016_LEFT_CC_1" / "1.0-ROI mask images-1" / "1-1.dcm", pixels=right)
    for row in ("Mass-Training_P_00001_LEFT_MLO", "Mass-Training_P_00001_RIGHT_CC", "Calc-Training_P_00001_LEFT_CC"):
        shutil.rmtree(source / "CBIS-DDSM" / f"{row}_1")
    convert("cbis", source, tmp_path / "cbis")
    boxes = boxes_of(tmp_path / "cbis", "cbis").drop_duplicates()
    assert boxes.loc["P_00001_L_CC", CORNERS].tolist() == [10, 30, 25, 40]
    assert boxes.loc["P_00016_L_CC", CORNERS].tolist() == [10, 30, 25, 40]
    assert boxes.label["P_00001_L_CC"] == "malignant mass" and boxes.label["P_00016_L_CC"] == "benign mass"


def test_inbreast_boxes_are_those_of_the_outlines(tmp_path, capsys):
    source = make_inbreast(tmp_path / "source")
    region = {"Name": "Mass", "Point_px": ["(10.5, 20.0)", "(30.0, 22.5)", "(12.0, 50.0)"]}
    (source / "AllXML").mkdir()
    for name, regions in (("20586909", [region, {"Name": "Calcification", "Point_px": ["(5, 6)"]}]), ("20586910", [region])):
        (source / "AllXML" / f"{name}.xml").write_bytes(plistlib.dumps({"Images": [{"ROIs": regions}]}))
    (source / "AllXML" / "20586908.xml").write_text("<plist><broken")
    convert("inbreast", source, tmp_path / "inbreast")
    boxes = boxes_of(tmp_path / "inbreast", "inbreast")
    assert boxes.index.unique().tolist() == ["20586909"]  # the other image is left out
    assert boxes[CORNERS].to_numpy().tolist() == [[10.5, 20, 31, 51], [5, 6, 6, 7]]
    assert boxes.label.tolist() == ["Mass BI-RADS 5", "Calcification BI-RADS 5"]
    assert "2 boxes in 1 of 3 images" in capsys.readouterr().out


def test_mias_circles_are_boxes_and_its_y_points_up(tmp_path):
    def with_circles(folder):
        make_mias(folder)
        (folder / "Info.txt").write_text("mdb001 G CIRC B 30 76 8\nmdb002 G CIRC M 60 10 20\nmdb003 D NORM\nmdb004 D CALC B\n")
        return folder

    source = with_circles(tmp_path / "source").rename(tmp_path / "Z\udcfcrich")  # a folder's name need not be Unicode
    convert("mias", source, tmp_path / "mias")
    boxes = boxes_of(tmp_path / "mias", "mias")
    assert boxes.loc["mdb001", CORNERS].tolist() == [22, 12, 38, 28]  # of 96 rows
    assert boxes.loc["mdb002", CORNERS].tolist() == [40, 66, 64, 96]
    assert boxes.label.tolist() == ["CIRC B", "CIRC M"]


def test_set_without_its_boxes_says_so(tmp_path, capsys):
    convert("vindr", make_vindr(tmp_path / "source"), tmp_path / "vindr")
    convert("cmmd", make_cmmd(tmp_path / "cmmd-source"), tmp_path / "cmmd")
    printed = capsys.readouterr().out
    assert (
        "no boxes:" in printed
        and "does not contain finding_annotations.csv" in printed
        and "no boxes: the set has none" in printed
    )
    assert not (tmp_path / "vindr" / "boxes.csv").exists()


@pytest.mark.parametrize("name, suffix", [("cbis", "jpg"), ("cbis", "png"), ("vindr", "JPEG")])
def test_mirror_with_converted_pictures_is_refused_by_name(tmp_path, name, suffix):
    source = MAKERS[name](tmp_path / "source")
    for path in [*source.rglob("*.dcm"), *source.rglob("*.dicom")]:
        path.rename(path.with_suffix(f".{suffix}"))
    kind, place = ("PNG" if suffix == "png" else "JPEG"), ("TCIA" if name == "cbis" else "PhysioNet")
    with pytest.raises(ExternalError, match=f"mirror of the set with {kind} images.*in DICOM from .*{place}"):
        convert(name, source, tmp_path / "new")


@pytest.fixture
def inputs(competition, cache_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.images.cache.working_dir", lambda: tmp_path / "working")
    return Inputs(competition, True, TINY, cache_dir, smoke_test=False)


@pytest.fixture
def extra(inputs, tmp_path):
    """Six images of VinDr's look-alike and six of MIAS's, each in a cache of its own."""
    for name in ("vindr", "mias"):
        convert(name, MAKERS[name](tmp_path / "source" / name), tmp_path / name)
    return inputs.cached_training_data(0, None, f"{tmp_path / 'vindr'}, {tmp_path / 'mias'}").extra


def test_extra_images_come_with_their_caches(inputs, extra, tmp_path):
    assert extra.groupby("extra_set").size().to_dict() == {"mias": 6, "vindr": 6}
    assert extra.cache_dir.nunique() == 2 and str(inputs.cache_dir) not in set(extra.cache_dir)
    pictures = [load_picture(row.cache_dir, "train", row.image_id) for row in extra.itertuples()]
    assert {shape.shape for shape in pictures} == {(64, 48)}
    assert inputs.cached_training_data(0, None, " ").extra is None


def test_unreadable_extra_image_is_left_out(inputs, tmp_path, capsys):
    convert("vindr", make_vindr(tmp_path / "source"), tmp_path / "vindr", copy=True)
    paths = sorted((tmp_path / "vindr").rglob("*.dcm"))
    paths[0].write_bytes(b"no dicom")
    assert len(inputs.cached_training_data(0, None, str(tmp_path / "vindr")).extra) == 5
    assert "Extra, for training only: 5 of 6 images of vindr" in capsys.readouterr().out
    convert("mias", make_mias(tmp_path / "films"), tmp_path / "mias")
    for path in (tmp_path / "mias").rglob("*.dcm"):
        path.write_bytes(b"no dicom")
    with pytest.raises(KitError, match="none of its images can be read: DicomError: "):
        inputs.cached_training_data(0, None, str(tmp_path / "mias"))


def test_extra_folders_that_can_not_be_meant_are_refused(inputs, competition, tmp_path, monkeypatch):
    with pytest.raises(KitError, match="has no train.csv: convert the set with python -m utils.external"):
        inputs.cached_training_data(0, None, str(tmp_path))
    real = Inputs(tmp_path, False, TINY, tmp_path / "cache", smoke_test=False)
    with pytest.raises(KitError, match="is a phantom: real models must not train on it"):
        real.cached_training_data(0, None, str(competition))


@pytest.mark.parametrize("architecture", ["cnn", "rnn"])
def test_extra_images_are_in_every_folds_training_and_nowhere_else(
    images, cache_dir, extra, tmp_path, monkeypatch, architecture
):
    made, make_dataset = [], fold_data.make_dataset
    monkeypatch.setattr(fold_data, "make_dataset", lambda *a, **k: made.append(make_dataset(*a, **k)) or made[-1])
    config, run_dir = make_config(TINY, architecture, epochs=1, positive_share=0.4, auxiliary_weight=0.1), tmp_path / "run"
    oof = train_run(config, TrainingData(images, cache_dir, extra=extra), run_dir)
    for training_set, validation_set in (made[:2], made[2:]):
        assert set(extra.image_id) <= set(training_set.images.image_id)
        assert not set(extra.patient_id) & set(validation_set.images.patient_id)
        own, other = set(training_set.images.patient_id), set(validation_set.images.patient_id)
        assert not own & other and own | other == set(images.patient_id) | set(extra.patient_id)
    assert sorted(oof.prediction_id.unique()) == sorted(images.prediction_id.unique())
    assert sorted(Run(run_dir).patients().patient_id) == sorted(images.patient_id.unique())
    written = read_json(run_dir / "config.json")
    assert written["prevalence"] == pytest.approx(images.groupby("prediction_id").cancer.first().mean())
    assert written["extra_sets"] == {"vindr": 6, "mias": 6}
    listed = pd.read_csv(run_dir / "extra.csv", dtype=TRAIN_TYPES)
    assert sorted(listed.image_id) == sorted(extra.image_id)
    _, vocabulary = load_fold(config, run_dir / "fold0")
    assert {"101", "105"} < set(vocabulary.site_id)


def test_each_picture_is_loaded_from_its_own_cache(images, cache_dir, extra, tmp_path, monkeypatch):
    config, made, make_dataset = make_config(TINY, folds=(0,), epochs=1), [], fold_data.make_dataset
    monkeypatch.setattr(fold_data, "make_dataset", lambda *a, **k: made.append(make_dataset(*a, **k)) or made[-1])
    train_run(config, TrainingData(images, cache_dir, extra=extra), tmp_path / "run")
    caches = extra.set_index("image_id").cache_dir.to_dict()
    for row, image_id in enumerate(made[0].images.image_id):
        wanted = load_picture(caches.get(image_id, cache_dir), "train", image_id)
        assert np.array_equal(made[0]._load(row), wanted)
    assert isinstance(made[0], ImageDataset) and len(made[0]) > len(extra)


def test_run_goes_on_with_the_same_extra_images_and_no_others(images, cache_dir, extra, tmp_path, monkeypatch):
    config, run_dir = make_config(TINY, folds=(0,), epochs=1), tmp_path / "run"
    oof = train_run(config, TrainingData(images, cache_dir, extra=extra), run_dir)
    monkeypatch.setattr(training, "Fitting", None)
    again = train_run(config, TrainingData(images, cache_dir, extra=extra), run_dir)
    pd.testing.assert_frame_equal(again, oof, check_dtype=False)
    relabelled = extra.assign(cancer=1 - extra.cancer)
    for other in (None, extra[extra.extra_set == "vindr"], relabelled):
        with pytest.raises(TrainingError, match=r"other images, labels or folds, or with other extra.*then: vindr, mias"):
            train_run(config, TrainingData(images, cache_dir, extra=other), run_dir)


def test_run_without_extra_images_is_not_continued_with_some(images, cache_dir, extra, tmp_path):
    config, run_dir = make_config(TINY, folds=(0,), epochs=1), tmp_path / "run"
    train_run(config, TrainingData(images, cache_dir), run_dir)
    assert read_json(run_dir / "config.json")["extra_sets"] == {} and not (run_dir / "extra.csv").exists()
    with pytest.raises(TrainingError, match="then: none"):
        train_run(config, TrainingData(images, cache_dir, extra=extra), run_dir)


def test_extra_images_of_the_competitions_patients_or_twice_are_refused(images, cache_dir, extra, tmp_path):
    config = make_config(TINY)
    held_out = images.iloc[:2].assign(cache_dir=str(cache_dir), extra_set="own")
    with pytest.raises(TrainingError, match=f"patient {images.patient_id[0]} is in the competition too"):
        train_run(config, TrainingData(images, cache_dir, extra=held_out), tmp_path / "run")
    with pytest.raises(TrainingError, match="image vindr_.* occurs twice"):
        train_run(config, TrainingData(images, cache_dir, extra=pd.concat([extra, extra])), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_extra_pictures_that_a_cache_lost_are_named(images, cache_dir, extra, tmp_path):
    lost = extra[extra.extra_set == "mias"].image_id.iloc[0]
    next((tmp_path / "working").rglob(f"{lost}.png")).unlink()
    with pytest.raises(TrainingError, match=f"lacks 1 of 6 images .{lost}."):
        train_run(make_config(TINY), TrainingData(images, cache_dir, extra=extra), tmp_path / "run")


def test_patches_are_learned_from_another_sets_boxes_where_the_competition_has_none(
    images, cache_dir, inputs, tmp_path, monkeypatch, capsys
):
    convert("vindr", add_findings(make_vindr(tmp_path / "source")), tmp_path / "vindr")
    extra = inputs.cached_training_data(0, None, str(tmp_path / "vindr")).extra
    made, dataset = [], fold_data.PatchDataset
    boxes = read_boxes(tmp_path / "vindr" / "boxes.csv")
    monkeypatch.setattr(fold_data, "PatchDataset", lambda *a: made.append(dataset(*a)) or made[-1])
    config = make_config(TINY, folds=(0,), epochs=1, patch_epochs=1, patch_size=32)
    data = TrainingData(images, cache_dir, boxes=boxes, extra=extra)
    train_run(config, data, tmp_path / "run")
    assert set(made[0].images.image_id) == set(boxes.image_id) and len(made[1]) == 0
    assert str(data).endswith(f"Boxes: 0 of {len(images)} images of the competition, 5 of 6 images of vindr")


def test_box_head_learns_from_another_sets_boxes(images, cache_dir, inputs, tmp_path):
    convert("vindr", add_findings(make_vindr(tmp_path / "source")), tmp_path / "vindr")
    boxes = inputs.boxes("", str(tmp_path / "vindr"))
    extra = inputs.cached_training_data(0, None, str(tmp_path / "vindr")).extra
    only = boxes[boxes.image_id.isin(extra.image_id)]
    config = make_config(TINY, folds=(0,), epochs=1, box_weight=1.0, model={"box_head": True})
    train_run(config, TrainingData(images, cache_dir, boxes=only, extra=extra), tmp_path / "run")
    assert box_summary(tmp_path / "run", only).images_with_box.tolist() == [0]
    assert set(boxes.image_id) > set(only.image_id)  # the phantom's own are there too
