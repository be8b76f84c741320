"""Boxes of each public set lie on its lesions after the crop, the mirror and the resize, and the patch stage cuts there."""

import plistlib
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch

from tests.external.test_convert import make_cbis, make_inbreast, make_mias, make_vindr, picture, write_dicom
from tests.helpers import TINY, make_config
from utils.external.convert import convert
from utils.images.boxes import to_picture
from utils.images.cache import build_cache
from utils.images.cached import load_picture
from utils.images.inputs import Inputs
from utils.tables.boxes import CORNERS, read_boxes
from utils.tables.competition import read_images
from utils.training import fold_data
from utils.training.folds import train_run

LEFT, RIGHT = (18, 40, 28, 50), (36, 40, 46, 50)  # the lesion of a left breast, and of a right one, in pictures of 96 x 64
BRIGHT = 200


def lesion_in(side):
    """A breast at its side's edge of the picture, with a bright square, and a lot of air around."""
    grey = picture(100)
    grey[LEFT[1] : LEFT[3], LEFT[0] : LEFT[2]] = 255
    return grey if side == "L" else np.ascontiguousarray(grey[:, ::-1])


def vindr_with_lesions(folder):
    make_vindr(folder)
    table = pd.read_csv(folder / "breast-level_annotations.csv", dtype=str)
    boxes = np.array([LEFT if side == "L" else RIGHT for side in table.laterality], dtype=float)
    corners = dict(zip(["xmin", "ymin", "xmax", "ymax"], boxes.T, strict=True))
    found = table.assign(finding_categories="['Mass']", finding_birads=table.breast_birads, **corners)
    found.to_csv(folder / "finding_annotations.csv", index=False)
    for row in table.itertuples():
        write_dicom(folder / "images" / row.study_id / f"{row.image_id}.dicom", pixels=lesion_in(row.laterality))
    return folder


def cbis_with_lesions(folder):
    make_cbis(folder)
    for path in sorted((folder / "CBIS-DDSM").rglob("*.dcm")):
        side, study = ("L" if "LEFT" in str(path) else "R"), path.parent.name
        mask = np.where(lesion_in(side) > BRIGHT, 255, 0).astype(np.uint8)
        write_dicom(path, pixels=mask if "mask" in study else lesion_in(side))
    return folder


def inbreast_with_lesions(folder):
    make_inbreast(folder)
    (folder / "AllXML").mkdir()
    for path in sorted((folder / "AllDICOMs").glob("*.dcm")):
        number, _, _, side = path.stem.split("_")[:4]
        x_min, y_min, x_max, y_max = LEFT if side == "L" else RIGHT
        outline = {"Name": "Mass", "Point_px": [f"({x_min}.0, {y_min}.0)", f"({x_max - 1}.0, {y_max - 1}.0)"]}
        (folder / "AllXML" / f"{number}.xml").write_bytes(plistlib.dumps({"Images": [{"ROIs": [outline]}]}))
        write_dicom(path, pixels=lesion_in(side))
    return folder


def mias_with_lesions(folder):
    make_mias(folder)
    lines = []
    for number in range(1, 7):
        side = "L" if number % 2 else "R"
        x_min, y_min, x_max, y_max = LEFT if side == "L" else RIGHT
        lines.append(f"mdb{number:03} G CIRC {'BM'[number > 2]} {(x_min + x_max) // 2} {96 - (y_min + y_max) // 2} 5")
        grey = lesion_in(side)
        (folder / "all-mias" / f"mdb{number:03}.pgm").write_bytes(b"P5\n64 96\n255\n" + grey.tobytes())
    (folder / "Info.txt").write_text("\n".join(lines) + "\n")
    return folder


SETS = {
    "vindr": vindr_with_lesions,
    "cbis": cbis_with_lesions,
    "inbreast": inbreast_with_lesions,
    "mias": mias_with_lesions,
}


@pytest.mark.parametrize("name", SETS)
def test_boxes_of_each_set_enclose_its_lesions_in_mirrored_and_cropped_pictures(name, tmp_path):
    convert(name, SETS[name](tmp_path / "source"), tmp_path / name, birads_4=0)
    images, boxes = read_images(tmp_path / name, "train"), read_boxes(tmp_path / name / "boxes.csv").drop_duplicates()
    assert set(boxes.image_id) == set(images.image_id) and len(boxes.drop_duplicates("image_id")) == len(images) > 2
    manifest = build_cache(images, tmp_path / name, "train", tmp_path / "cache", TINY)
    crops = manifest[["crop_top", "crop_left", "crop_bottom", "crop_right"]].astype(int)
    assert set(manifest.flipped.astype(int)) == {0, 1}
    assert (crops.crop_top > 0).all() and (crops.crop_bottom < 96).all() and (crops.crop_right - crops.crop_left < 60).all()
    for box in to_picture(boxes, manifest, TINY).itertuples():
        rows, columns = np.nonzero(load_picture(tmp_path / "cache", "train", box.image_id) > BRIGHT)
        lesion = [columns.min() / 48, rows.min() / 64, (columns.max() + 1) / 48, (rows.max() + 1) / 64]
        # the outermost pixels are half lesion, half tissue
        assert [getattr(box, corner) for corner in CORNERS] == pytest.approx(lesion, abs=1.5 / 48)


@pytest.fixture
def two_sets(competition, cache_dir, tmp_path, monkeypatch):
    """A competition without boxes, and a look-alike of VinDr whose images have them, but for the two of a healthy breast."""
    monkeypatch.setattr("utils.images.cache.working_dir", lambda: tmp_path / "working")
    own = shutil.copytree(competition, tmp_path / "own", ignore=shutil.ignore_patterns("phantom*", "test_*"))
    source = vindr_with_lesions(tmp_path / "source")
    found = pd.read_csv(source / "finding_annotations.csv", dtype=str)
    found[found.breast_birads != "BI-RADS 1"].to_csv(source / "finding_annotations.csv", index=False)
    convert("vindr", source, tmp_path / "vindr", birads_4=0)
    inputs = Inputs(own, False, TINY, cache_dir, smoke_test=False)
    assert not (own / "boxes.csv").exists()
    return inputs, str(tmp_path / "vindr")


def test_patch_stage_learns_from_the_boxes_of_the_one_set_that_has_them(two_sets, images, tmp_path, monkeypatch):
    inputs, others = two_sets
    boxes, made = inputs.boxes("", others), []
    data = inputs.cached_training_data(0, boxes, others)
    assert str(data).endswith(f"Boxes: 0 of {len(images)} images of the competition, 6 of 8 images of vindr")
    dataset = fold_data.PatchDataset
    monkeypatch.setattr(fold_data, "PatchDataset", lambda *a, **k: made.append(dataset(*a, **k)) or made[-1])
    config = make_config(TINY, folds=(0,), epochs=1, patch_epochs=1, patch_size=32)

    def patch_weights(name, boxes):
        train_run(config, replace(data, boxes=boxes), tmp_path / name)
        return safetensors.torch.load_file(tmp_path / name / "fold0" / "patches" / "weights.safetensors")

    first, again = patch_weights("first", boxes), patch_weights("again", boxes)
    elsewhere = patch_weights("elsewhere", boxes.assign(y_min=boxes.y_min + 12, y_max=boxes.y_max + 12))
    same = {key: first[key].equal(again[key]) for key in first}
    assert all(same.values()) and not all(first[key].equal(elsewhere[key]) for key in first)
    training_set = made[0]
    around = training_set.images[training_set.images.around_box]
    assert set(around.image_id) == set(boxes.image_id) and not set(around.image_id) & set(images.image_id)
    training_set.augment = None  # which centres patches on their boxes
    for index in np.flatnonzero(training_set.images.around_box):
        assert (training_set[index]["images"][0, 0, 14:18, 14:18] > BRIGHT).all()
    background = training_set.images[~training_set.images.around_box]
    assert sorted(background.image_id) == sorted(around.image_id)  # of the competition's images, none has a box
