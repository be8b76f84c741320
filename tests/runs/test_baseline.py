import numpy as np
import pandas as pd
import pytest

from utils.metrics.scores import area_under_roc
from utils.runs.baseline import image_size_oof, images_per_breast_oof, metadata_oof
from utils.runs.leaks import LeakError
from utils.tables.folds import assign_folds


def make_images(n=200, seed=0):
    """Cancer comes with age and with machine 7; one age and one machine are unusual."""
    generator = np.random.default_rng(seed)
    table = pd.DataFrame(
        {"patient_id": [str(i) for i in range(n)], "laterality": "L", "view": "CC", "site_id": 1, "implant": 0}
    )
    table["prediction_id"], table["image_id"] = table.patient_id + "_L", table.patient_id
    table["cancer"] = (np.arange(n) % 4 == 0).astype(int)
    table["age"] = 55 + 8 * table.cancer + 8 * generator.standard_normal(n)
    table["machine_id"] = np.where(generator.random(n) < 0.3 + 0.3 * table.cancer, 7, 8)
    table.loc[0, ["age", "machine_id"]] = [np.nan, 999]
    return table


def test_baseline_finds_what_metadata_tells():
    oof = metadata_oof(assign_folds(make_images(), 4, 0))
    assert 0.7 < area_under_roc(oof.cancer, oof.probability) < 0.95
    assert oof.image_id.tolist() == make_images().image_id.tolist()


def test_fold_is_predicted_without_its_own_labels():
    images = assign_folds(make_images(), 4, 0)
    flipped = images.assign(cancer=np.where(images.fold == 1, 1 - images.cancer, images.cancer))
    inside = images.fold == 1
    assert np.allclose(metadata_oof(images).probability[inside], metadata_oof(flipped).probability[inside])
    assert not np.allclose(metadata_oof(images).probability[~inside], metadata_oof(flipped).probability[~inside])


def test_one_class_or_a_missing_column_of_ages_does_not_break_it():
    images = assign_folds(make_images(20), 2, 0)
    assert metadata_oof(images.assign(cancer=0)).probability.eq(0).all()
    assert metadata_oof(images.assign(age=np.nan)).probability.between(0, 1).all()


def make_sizes(images):
    """Two sizes, one of which most cancers have; one picture could not be read."""
    odd = np.random.default_rng(1).random(len(images)) < np.where(images.cancer == 1, 0.8, 0.2)
    manifest = pd.DataFrame({"image_id": images.image_id, "source_height": np.where(odd, 3328, 2294), "source_width": "1914"})
    manifest["source_height"] = manifest.source_height.astype(str)
    manifest.loc[3, ["source_height", "source_width"]] = ""
    return manifest


def make_counts(images):
    """Two images of most breasts with cancer, one of most others."""
    more = np.random.default_rng(2).random(len(images)) < np.where(images.cancer == 1, 0.8, 0.2)
    second = images[more].assign(image_id="second" + images.image_id, view="MLO")
    return pd.concat([images, second]).sample(frac=1, random_state=0, ignore_index=True)


def test_image_size_and_number_of_images_tell_cancer_where_they_were_planted():
    images = assign_folds(make_images(), 4, 0)
    by_size, by_count = image_size_oof(images, make_sizes(images)), images_per_breast_oof(make_counts(images))
    for oof in (by_size, by_count):
        assert 0.7 < area_under_roc(oof.cancer, oof.probability) < 0.9
        assert (len(oof), oof.prediction_id.nunique()) == (200, 200)
    assert by_size.image_id.tolist() == images.image_id.tolist()


def test_only_the_size_counts_and_only_the_number_of_images():
    """Each fold has one probability for each size, or number."""
    images = assign_folds(make_images(), 4, 0)
    sizes = make_sizes(images)
    by_size = image_size_oof(images, sizes.sample(frac=1, random_state=0))  # in any order
    size = sizes.source_height.to_numpy()
    assert by_size.groupby(["fold", size]).probability.nunique().eq(1).all()
    assert by_size.groupby("fold").probability.nunique().ge(2).all()
    counted = make_counts(images)
    by_count = images_per_breast_oof(counted)
    number = by_count.prediction_id.map(counted.prediction_id.value_counts())
    assert by_count.groupby(["fold", number]).probability.nunique().eq(1).all()
    assert by_count.groupby("fold").probability.nunique().eq(2).all()


def by_planted_size(images):
    return image_size_oof(images, make_sizes(make_images()))


@pytest.mark.parametrize("predict", [by_planted_size, images_per_breast_oof])
def test_sizes_and_numbers_of_a_fold_are_judged_without_its_own_labels(predict):
    images = make_counts(assign_folds(make_images(), 4, 0))
    flipped = images.assign(cancer=np.where(images.fold == 1, 1 - images.cancer, images.cancer))
    first, second = predict(images), predict(flipped)
    inside = first.fold == 1
    assert np.allclose(first.probability[inside], second.probability[inside])
    assert not np.allclose(first.probability[~inside], second.probability[~inside])


@pytest.mark.filterwarnings("error")
def test_pictures_that_the_cache_lacks_have_an_unknown_size():
    images = assign_folds(make_images(), 4, 0)
    oof = image_size_oof(images, make_sizes(images).iloc[:0])
    assert oof.groupby("fold").probability.nunique().eq(1).all()


def test_label_planted_in_the_age_is_refused():
    images = assign_folds(make_images(), 4, 0)
    with pytest.raises(LeakError, match=r"Column age alone predicts cancer with an AUC of 1\.000"):
        metadata_oof(images.assign(age=40.0 + 30 * images.cancer))
