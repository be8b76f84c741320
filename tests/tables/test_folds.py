"""Facts about splitting the competition's images into folds."""

import numpy as np
import pandas as pd
import pytest

from utils.tables.breasts import by_breast
from utils.tables.folds import assign_folds
from utils.tables.strict_csv import TableError

POSITIVE_BREASTS = 492  # of the competition's 23,826; as published


def many_patients(n: int, positive_every: int = 10) -> pd.DataFrame:
    """Two breasts, three images each; sites 1 and 2 by turns; each ``positive_every``-th patient has a cancer on the left."""
    rows = []
    for i in range(n):
        cancer = int(i % positive_every == 0)
        rows += [(1 + i % 2, f"p{i}", f"{i}{view}", view[0], cancer if view[0] == "L" else 0) for view in ("La", "Lb", "R")]
    images = pd.DataFrame(rows, columns=["site_id", "patient_id", "image_id", "laterality", "cancer"])
    return images.assign(prediction_id=images.patient_id + "_" + images.laterality)


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


@pytest.mark.parametrize("n_folds, seed", [(4, 0), (4, 1), (5, 0), (10, 0)])
def test_real_folds_are_even_in_patients_positives_and_sites(real_images, n_folds, seed):
    folded = assign_folds(real_images, n_folds, seed)
    assert len(folded) == 54_706
    assert set(folded.fold) == set(range(n_folds))
    assert (folded.groupby("patient_id").fold.nunique() == 1).all()
    by_fold = by_breast(folded).groupby("fold")
    assert by_fold.cancer.sum().sum() == POSITIVE_BREASTS
    # Whole breasts: 10 folds of 49.2 on average can't be closer than 49 and 50.
    assert (by_fold.cancer.sum() - POSITIVE_BREASTS / n_folds).abs().max() <= max(0.03 * POSITIVE_BREASTS / n_folds, 1)
    share_of_site_1 = by_fold.site_id.apply(lambda site: (site == 1).mean())
    assert share_of_site_1.max() - share_of_site_1.min() < 0.005
    assert folded.groupby("fold").patient_id.nunique().max() - folded.groupby("fold").patient_id.nunique().min() <= 1


def test_real_folds_by_machine_hold_machines_and_patients_out_whole(real_images):
    folded = assign_folds(real_images, 4, 0, "machine")
    for unit in ("machine_id", "patient_id"):
        assert (folded.groupby(unit).fold.nunique() == 1).all()
    assert (by_breast(folded).groupby("fold").cancer.sum() > 0).all()
