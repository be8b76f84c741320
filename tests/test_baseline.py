import numpy as np
import pandas as pd

from utils.baseline import metadata_oof
from utils.metrics import area_under_roc
from utils.tables import assign_folds


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
