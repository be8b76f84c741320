"""Facts about the phantom competition."""

import hashlib
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.encaps import get_frame
from pydicom.pixels import apply_voi_lut
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from utils.phantom import competition as phantom
from utils.phantom import dicom as phantom_dicom
from utils.phantom import pictures as phantom_images
from utils.phantom.competition import make_competition, read_truth

SMALL = {"n_train_patients": 8, "n_test_patients": 4, "height": 128, "positive_share": 0.5, "seed": 7}
# Copied from the competition's data page, not from the module.
REAL_TRAIN_HEADER = (
    "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,"
    "implant,density,machine_id,difficult_negative_case"
)
REAL_TEST_HEADER = "site_id,patient_id,image_id,laterality,view,age,implant,machine_id,prediction_id"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_competition(tmp_path_factory.mktemp("phantom") / "competition", **SMALL)


@pytest.fixture(scope="module")
def plan() -> pd.DataFrame:
    """The tables of a phantom of the default size, without its pictures."""
    return phantom._plan_images(phantom.PhantomSettings())


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv", dtype={"patient_id": str, "image_id": str})


def dicoms(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.glob("t*_images/*/*.dcm"))]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shown(dataset: pydicom.Dataset) -> np.ndarray:
    """The picture as pydicom shows it: float (height, width) in [0, 1]."""
    values = dataset.pixel_array
    if "WindowCenter" in dataset:
        values = apply_voi_lut(values, dataset)
    values = values / (2**dataset.BitsStored - 1)
    return 1 - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def lesion_pictures(contrast: float, positive: bool = True) -> tuple[np.ndarray, list[dict], np.ndarray]:
    rng = np.random.default_rng(3)
    lesions = phantom_images.draw_lesions(rng)
    breast = phantom_images.draw_breast(rng, "B", False, lesions if positive else ())
    return phantom_images.draw_image(phantom_images.Drawing("MLO", "R", breast), (160, 128), rng, contrast)


# Tables


def test_schema_is_the_real_one(folder):
    assert (folder / "train.csv").read_text().splitlines()[0] == REAL_TRAIN_HEADER
    assert (folder / "test.csv").read_text().splitlines()[0] == REAL_TEST_HEADER
    assert (folder / "sample_submission.csv").read_text().splitlines()[0] == "prediction_id,cancer"


def test_every_row_has_its_file_and_every_file_its_row(folder):
    for split in ("train", "test"):
        images = table(folder, split)
        expected = {f"{row.patient_id}/{row.image_id}.dcm" for row in images.itertuples()}
        root = folder / f"{split}_images"
        assert {path.relative_to(root).as_posix() for path in root.rglob("*.dcm")} == expected
        assert len(expected) == len(images)


def test_sample_submission_has_each_test_breast_once(folder):
    sample, test = table(folder, "sample_submission"), table(folder, "test")
    assert sample["prediction_id"].tolist() == test["prediction_id"].drop_duplicates().tolist()
    assert sample["cancer"].eq(0.021).all()


def test_truth_of_the_test_covers_each_prediction_id(folder):
    _, labels = read_truth(folder)
    assert labels["prediction_id"].tolist() == table(folder, "sample_submission")["prediction_id"].tolist()
    assert labels["cancer"].sum() == 2  # half of the four patients


def test_ids_are_unique_numbers_of_the_real_lengths(plan):
    assert plan["image_id"].is_unique and plan["image_id"].str.fullmatch(r"\d{1,10}").all()
    assert plan["patient_id"].str.fullmatch(r"\d{5}").all()
    assert plan.groupby("patient_id")["split"].nunique().eq(1).all()


def test_label_is_constant_in_a_breast_and_one_sided(plan):
    assert plan.groupby("prediction_id")["cancer"].nunique().eq(1).all()
    breasts = plan.drop_duplicates("prediction_id")
    assert breasts.groupby("patient_id")["cancer"].sum().max() == 1
    assert breasts.groupby("split")["cancer"].sum().to_dict() == {"train": 30, "test": 10}


@pytest.mark.parametrize(
    ("quirk", "present"),
    {
        "missing ages": lambda images: images["age"].isna().any() and images["age"].notna().mean() > 0.9,
        "duplicate views": lambda images: images.duplicated(["prediction_id", "view"]).any(),
        "breasts of one view": lambda images: images.groupby("prediction_id").size().min() == 1,
        "other views": lambda images: {"AT", "LM", "ML"} <= set(images["view"]),
        "rare implants": lambda images: 0 < images["implant"].mean() < 0.1,
        "no density at site 2": lambda images: images.loc[images["site_id"] == 2, "density"].isna().all(),
        "density at site 1": lambda images: images.loc[images["site_id"] == 1, "density"].notna().all(),
        "hardly any BIRADS at site 2": lambda images: images.loc[images["site_id"] == 2, "BIRADS"].isna().mean() > 0.8,
        "every cancer biopsied": lambda images: images.loc[images["cancer"] == 1, "biopsy"].eq(1).all(),
        "some negatives biopsied": lambda images: images.loc[images["cancer"] == 0, "biopsy"].any(),
        "invasive in cancers only": lambda images: images.loc[images["invasive"] == 1, "cancer"].eq(1).all(),
        "difficult negatives": lambda images: images.loc[images["difficult_negative_case"], "cancer"].eq(0).all(),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_quirk_is_present(plan, quirk, present):
    assert present(plan), quirk


def test_some_machines_are_seen_in_the_test_alone(folder):
    only_test = set(table(folder, "test")["machine_id"]) - set(table(folder, "train")["machine_id"])
    assert only_test == {101, 102}


def test_patients_have_about_four_images(plan):
    assert 4.0 < len(plan) / plan["patient_id"].nunique() < 4.6


def test_age_tells_little(plan):
    """Age alone must not solve the phantom: a pair's older patient has cancer in at most seven of ten cases."""
    patients = plan.groupby("patient_id").agg(age=("age", "first"), cancer=("cancer", "max")).dropna()
    positive, negative = (patients.loc[patients["cancer"] == label, "age"].to_numpy() for label in (1, 0))
    assert 0.5 < (positive[:, None] > negative[None, :]).mean() < 0.7


# DICOMs


def test_every_style_is_there_and_modality_is_absent(folder):
    found = {(d.file_meta.TransferSyntaxUID, d.PhotometricInterpretation, d.BitsStored) for d in dicoms(folder)}
    assert found == {(m.transfer_syntax, m.photometric, m.bits_stored) for m in phantom_dicom.MACHINES}
    assert not any("Modality" in dataset for dataset in dicoms(folder))


def test_stored_values_survive_two_decoders(folder):
    decoders = {JPEG2000Lossless: imagecodecs.jpeg2k_decode, JPEGLosslessSV1: imagecodecs.ljpeg_decode}
    compared = set()
    for dataset in dicoms(folder):
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax in decoders:
            frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
            np.testing.assert_array_equal(decoders[syntax](frame), dataset.pixel_array)
            compared.add((syntax, dataset.BitsStored))
    assert len(compared) == 4


@pytest.mark.parametrize("machine", phantom_dicom.MACHINES, ids=lambda machine: str(machine.machine_id))
def test_file_holds_what_was_stored(machine, tmp_path):
    picture, _, _ = lesion_pictures(1.0)
    phantom_dicom.write_dicom(tmp_path / "image.dcm", picture, machine, "10001", "5")
    stored = phantom_dicom.stored_values(picture, machine)
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "image.dcm").pixel_array, stored)


@pytest.mark.parametrize("machine", phantom_dicom.MACHINES, ids=lambda machine: str(machine.machine_id))
def test_window_and_inversion_give_the_picture_back(machine, tmp_path):
    picture, _, _ = lesion_pictures(1.0)
    phantom_dicom.write_dicom(tmp_path / "image.dcm", picture, machine, "10001", "5")
    # 10 bits over a window of 900 leave steps of 1/900.
    np.testing.assert_allclose(shown(pydicom.dcmread(tmp_path / "image.dcm")), picture.clip(0.002, 0.998), atol=0.003)


def test_every_style_shows_tissue_bright(folder):
    for dataset in dicoms(folder):
        picture = shown(dataset)[4:-4, 4:-4]  # without the frame
        edges = sorted((picture[:, :8].mean(), picture[:, -8:].mean()))
        assert np.percentile(picture, 5) < 0.05  # air
        assert edges[1] > 0.15 and edges[1] > 3 * edges[0]  # chest wall on one side, air on the other


@pytest.mark.parametrize("machine", phantom_dicom.MACHINES[:2], ids=lambda machine: str(machine.machine_id))
def test_jpeg2000_has_five_levels_and_the_stored_precision(machine):
    stored = np.zeros(phantom_dicom.picture_shape(machine, 512), np.uint16)
    stream = phantom_dicom.encode_frame(stored, machine)
    assert stream.startswith(b"\0\0\0\x0cjP" if machine.boxed else b"\xff\x4f\xff\x51")
    size, style = stream.index(b"\xff\x51"), stream.index(b"\xff\x52")  # SIZ and COD markers
    assert stream[size + 40] + 1 == machine.bits_stored
    order, layers, levels, wavelet = stream[style + 5], stream[style + 7], stream[style + 9], stream[style + 13]
    assert (order, layers, levels, wavelet) == (0, 1, 5, 1)  # LRCP, one layer, five levels, reversible 5-3


def test_jpeg_lossless_uses_the_first_predictor(folder):
    for dataset in dicoms(folder):
        if dataset.file_meta.TransferSyntaxUID == JPEGLosslessSV1:
            frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
            scan = frame.index(b"\xff\xda")
            assert frame[frame.index(b"\xff\xc3") + 4] == dataset.BitsStored
            assert frame[scan + 7] == 1  # Ss, for one component


def test_windowless_files_span_all_their_bits(folder):
    windowless = [dataset for dataset in dicoms(folder) if "WindowCenter" not in dataset]
    assert windowless
    assert all((d.pixel_array.min(), d.pixel_array.max()) == (0, 2**d.BitsStored - 1) for d in windowless)


# Pictures


def test_power_spectrum_falls_with_the_third_power():
    side = 512
    texture = phantom_images.power_law_texture(side, side, np.random.default_rng(0))
    power = np.abs(np.fft.fft2(texture)) ** 2
    frequency = np.rint(np.hypot(*np.meshgrid(*[np.fft.fftfreq(side, 1 / side)] * 2))).astype(int)
    radial = np.bincount(frequency.ravel(), power.ravel()) / np.bincount(frequency.ravel())
    rings = np.arange(8, side // 2)
    assert np.polyfit(np.log(rings), np.log(radial[rings]), 1)[0] == pytest.approx(-3, abs=0.1)


def test_lesion_boxes_lie_inside_the_breast():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        breast = phantom_images.draw_breast(rng, "B", False, phantom_images.draw_lesions(rng))
        view, side = ("CC", "MLO")[seed % 2], "LR"[seed // 2 % 2]
        drawing = phantom_images.Drawing(view, side, breast, mirrored=seed % 3 == 0)
        _, boxes, mask = phantom_images.draw_image(drawing, (128, 96), rng)
        assert boxes
        for box in boxes:
            assert mask[box["y_min"] : box["y_max"], box["x_min"] : box["x_max"]].all(), (seed, box)


def test_boxes_are_there_for_exactly_the_positive_images(folder):
    boxes, labels = read_truth(folder)
    train, test = table(folder, "train"), table(folder, "test").merge(labels, on="prediction_id")
    positive = pd.concat([train, test]).query("cancer == 1")["image_id"]
    assert set(boxes["image_id"]) == set(positive)
    assert set(boxes["label"]) <= {"mass", "calcification"}


def test_boxes_hold_all_that_contrast_changes():
    with_lesion, boxes, _ = lesion_pictures(1.0)
    without, _, _ = lesion_pictures(0.0)
    changed = np.abs(with_lesion - without)
    in_box = np.zeros(changed.shape, bool)
    for box in boxes:
        in_box[box["y_min"] : box["y_max"], box["x_min"] : box["x_max"]] = True
    assert changed[in_box].max() > 0.1
    assert changed[~in_box].max() < 0.05


def test_contrast_zero_hides_lesions():
    """A positive breast at contrast 0 is, to the last bit, the negative one drawn from the same generator."""
    np.testing.assert_array_equal(lesion_pictures(0.0)[0], lesion_pictures(0.0, positive=False)[0])


def test_lesion_grows_with_contrast():
    nothing, half, full = (lesion_pictures(contrast)[0] for contrast in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(full - nothing, 2 * (half - nothing), atol=1e-6)


def test_left_breast_has_its_chest_wall_on_the_left_unless_mirrored():
    for side, mirrored, left in (("L", False, True), ("L", True, False), ("R", False, False), ("R", True, True)):
        rng = np.random.default_rng(0)
        breast = phantom_images.draw_breast(rng, "C", False)
        _, _, mask = phantom_images.draw_image(phantom_images.Drawing("CC", side, breast, mirrored), (128, 96), rng)
        assert (mask[:, 0].any(), mask[:, -1].any()) == (left, not left)


def test_marker_never_touches_the_breast():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        breast = phantom_images.draw_breast(rng, "C", False)
        plain, marked = (
            phantom_images.draw_image(drawing, (128, 96), np.random.default_rng(seed))
            for drawing in (phantom_images.Drawing("MLO", "L", breast, marker=marker) for marker in (False, True))
        )
        changed = plain[0] != marked[0]
        assert changed.any() and not (changed & (plain[2] == 1)).any()


# The folder


def test_same_seed_gives_identical_files_whatever_the_workers(folder, tmp_path):
    again = make_competition(tmp_path / "again", **SMALL, n_jobs=1)
    assert digests(again) == digests(folder)


def test_another_seed_gives_other_pictures(tmp_path):
    sizes = {"n_train_patients": 1, "n_test_patients": 1, "height": 64}
    one, two = (make_competition(tmp_path / str(seed), **sizes, seed=seed) for seed in (1, 2))
    assert {d.pixel_array.tobytes() for d in dicoms(one)}.isdisjoint(d.pixel_array.tobytes() for d in dicoms(two))


def test_finished_phantom_is_left_alone(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_competition(folder, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_parameters_in_the_folder_are_refused(folder):
    with pytest.raises(FileExistsError, match="contrast is 1.0, not 0.5"):
        make_competition(folder, **SMALL, contrast=0.5)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a phantom competition: choose another folder"):
        make_competition(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_interrupted_build_leaves_no_folder(tmp_path, monkeypatch, error):
    def fail(path, *args):
        raise error

    monkeypatch.setattr(phantom, "write_dicom", fail)
    with pytest.raises(type(error)):
        make_competition(tmp_path / "competition", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_second_of_two_builders_keeps_the_first_ones_work(tmp_path, monkeypatch, folder):
    target = tmp_path / "competition"

    def finish_first(unfinished, parameters, n_jobs):
        shutil.copytree(folder, target)
        unfinished.mkdir()

    monkeypatch.setattr(phantom, "_build", finish_first)
    assert make_competition(target, **SMALL) == target
    assert digests(target) == digests(folder)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "value"), [("n_train_patients", 0), ("height", 10), ("positive_share", 1.5), ("contrast", float("nan"))]
)
def test_parameter_out_of_range_is_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        make_competition(tmp_path / "competition", **(SMALL | {name: value}))
