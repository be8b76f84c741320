"""Subgroups are counted as one would by hand, and what tells cancer without the pixels is found where it was planted."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from tests.helpers import write_run
from utils.evaluation.subgroups import VERDICT, auc_within, by_subgroup, by_view, sources_of_auc, with_traits
from utils.metrics.scores import decide
from utils.runs.baseline import metadata_oof
from utils.runs.oof import aggregate
from utils.runs.tables import OOF_COLUMNS

N = 160  # patients, with one breast each


def make_images(views=("CC", "MLO"), seed=0):
    """A train table of two sites and machines whose columns know nothing of cancer; one woman in four has it."""
    generator = np.random.default_rng(seed)
    cancer = np.repeat((np.arange(N) % 4 == 0).astype(int), len(views))
    images = pd.DataFrame({"patient_id": np.repeat([f"p{i:03d}" for i in range(N)], len(views)), "laterality": "L"})
    drawn = {
        "site_id": generator.integers(1, 3, N),
        "machine_id": generator.choice([21, 48], N),
        "age": generator.integers(35, 85, N).astype(float),
        "implant": generator.integers(0, 2, N),
        "density": generator.choice(["A", "B", "C"], N),
    }
    images = images.assign(**{name: np.repeat(values, len(views)) for name, values in drawn.items()})
    images = images.assign(view=list(views) * N, image_id=[str(i) for i in range(len(images))], cancer=cancer)
    return images.assign(
        prediction_id=images.patient_id + "_L",
        invasive=cancer * np.repeat(np.arange(N) % 8 == 0, len(views)),
        difficult_negative_case=np.where((cancer == 0) & np.repeat(np.arange(N) % 3 == 0, len(views)), "True", "False"),
    )


def make_breasts(images, gain=0.3, seed=1):
    """Out-of-fold breasts of a model that knows a little."""
    breasts = images.drop_duplicates("prediction_id")[["prediction_id", "patient_id", "cancer"]].reset_index(drop=True)
    noise = np.random.default_rng(seed).random(len(breasts))
    return breasts.assign(fold=np.arange(len(breasts)) // 4 % 2, probability=0.6 * noise + gain * breasts.cancer)


def value_of(text):
    return float(text.split()[0])


@pytest.fixture
def images():
    return make_images()


@pytest.fixture
def breasts(images):
    return with_traits(make_breasts(images), images)


def test_traits_are_those_of_the_breast_with_the_age_in_bands(images):
    images.loc[images.patient_id == "p003", "age"] = 50
    images.loc[images.patient_id == "p004", "age"] = 49
    breasts = make_breasts(images).sample(frac=1, random_state=0)
    table = with_traits(breasts, images).set_index("patient_id")
    assert (table.age["p003"], table.age["p004"]) == ("50 to 59", "40 to 49")
    first = images.drop_duplicates("patient_id").set_index("patient_id")
    for column in ("site_id", "machine_id", "density", "implant", "invasive"):
        assert table[column].to_dict() == first[column].to_dict()
    assert table.index.tolist() == breasts.patient_id.tolist()


def test_missing_traits_are_unknown_and_counted(images):
    lost = images.patient_id.isin(["p000", "p001", "p002"])
    images.loc[lost, "age"], images.loc[lost, "density"] = np.nan, None
    breasts = with_traits(make_breasts(images), images)
    table = by_subgroup(breasts, decide(breasts.probability, 0.5)).set_index(["subgroup", "value"])
    assert table.breasts["age", "unknown"] == table.breasts["density", "unknown"] == 3
    assert table.breasts["density"].sum() == table.breasts["age"].sum() == N


@pytest.mark.parametrize("column", ["site_id", "machine_id", "implant", "density"])
def test_rows_are_what_scikit_learn_computes_on_each_subgroup(images, breasts, column):
    decisions = decide(breasts.probability, 0.5)
    found = by_subgroup(breasts, decisions).set_index(["subgroup", "value"]).loc[column]
    groups = {value: (breasts[column] == value).to_numpy() for value in breasts[column].unique()}
    assert found.index.tolist() == sorted(groups)
    for value, inside in groups.items():
        row, labels, probability = found.loc[value], breasts.cancer[inside], breasts.probability[inside]
        assert (row.breasts, row.positives) == (inside.sum(), labels.sum())
        shown = [value_of(row[name]) for name in ("AUC", "F1", "recall", "specificity", "predicted", "observed")]
        expected = [
            roc_auc_score(labels, probability),
            f1_score(labels, decisions[inside]),
            recall_score(labels, decisions[inside]),
            recall_score(labels, decisions[inside], pos_label=0),
            probability.mean(),
            labels.mean(),
        ]
        assert shown == pytest.approx(expected, abs=6e-4)


def test_first_row_is_all_breasts(breasts):
    row = by_subgroup(breasts, decide(breasts.probability, 0.5)).iloc[0]
    assert (row.subgroup, row.breasts, row.positives) == ("all", N, N // 4)


def test_subgroups_with_few_of_a_label_have_no_auc_but_are_counted(breasts):
    few = np.flatnonzero(breasts.cancer == 1)[:9]
    for cancers, shown in ((few, False), (np.flatnonzero(breasts.cancer == 1)[:10], True)):
        site = np.ones(N, dtype=int)
        site[cancers], site[np.flatnonzero(breasts.cancer == 0)[:30]] = 2, 2
        table = by_subgroup(breasts.assign(site_id=site), decide(breasts.probability, 0.5))
        row = table[(table.subgroup == "site_id") & (table.value == 2)].iloc[0]
        assert (row.positives, row.breasts, bool(row.AUC), bool(row.F1)) == (len(cancers), len(cancers) + 30, shown, shown)
        assert value_of(row.recall) == pytest.approx((breasts.probability.iloc[cancers] >= 0.5).mean(), abs=6e-4)


def test_kinds_of_cancer_are_set_beside_all_healthy_breasts_and_kinds_of_healthy_ones_beside_all_cancers(breasts):
    table = by_subgroup(breasts, decide(breasts.probability, 0.5)).set_index(["subgroup", "value"])
    healthy, cancer = breasts[breasts.cancer == 0], breasts[breasts.cancer == 1]
    kinds = {
        ("invasive", 1): pd.concat([cancer[cancer.invasive == 1], healthy]),
        ("invasive", 0): pd.concat([cancer[cancer.invasive == 0], healthy]),
        ("difficult_negative_case", "True"): pd.concat([cancer, healthy[healthy.difficult_negative_case == "True"]]),
        ("difficult_negative_case", "False"): pd.concat([cancer, healthy[healthy.difficult_negative_case == "False"]]),
    }
    assert set(kinds) == set(table.index[table.index.get_level_values(0).isin(["invasive", "difficult_negative_case"])])
    for key, rows in kinds.items():
        assert (table.breasts[key], table.positives[key]) == (len(rows), rows.cancer.sum())
        assert value_of(table.AUC[key]) == pytest.approx(roc_auc_score(rows.cancer, rows.probability), abs=6e-4)


def test_columns_that_a_table_need_not_have_may_be_missing(images):
    optional = ["density", "invasive", "difficult_negative_case"]
    breasts = with_traits(make_breasts(images), images.drop(columns=optional))
    table = by_subgroup(breasts, decide(breasts.probability, 0.5))
    assert set(table.subgroup) == {"all", "site_id", "machine_id", "age", "implant"}


def write_image_run(run_dir, images, probability):
    """A made-up run of images."""
    oof = images.assign(fold=pd.factorize(images.patient_id)[0] // 4 % 2, probability=probability, logit=0.0)
    return write_run(run_dir, oof[OOF_COLUMNS])


def test_each_view_is_judged_by_its_own_images(tmp_path):
    images = make_images(("CC", "MLO", "MLO"))
    generator = np.random.default_rng(0)
    knows = images.view == "MLO"
    probability = np.where(knows, 0.3 * images.cancer, 0) + 0.6 * generator.random(len(images))
    run = write_image_run(tmp_path / "a", images, probability)
    table = by_view(run, images).set_index("view")
    assert (table.images.to_dict(), set(table.breasts), set(table.positives)) == ({"CC": N, "MLO": 2 * N}, {N}, {N // 4})
    for view in ("CC", "MLO"):
        mean = images.assign(probability=probability)[images.view == view].groupby("prediction_id")
        expected = roc_auc_score(mean.cancer.first(), mean.probability.mean())
        assert value_of(table.AUC[view]) == pytest.approx(expected, abs=6e-4)
    assert value_of(table.AUC["MLO"]) > value_of(table.AUC["CC"]) + 0.1


def test_a_rare_view_is_counted_without_an_auc(tmp_path):
    images = make_images()
    images.loc[images.index[:16:2], "view"] = "AT"
    table = by_view(write_image_run(tmp_path / "a", images, 0.5), images).set_index("view")
    assert (table.images["AT"], table.positives["AT"], table.AUC["AT"]) == (8, 2, "")


def test_a_run_of_breasts_has_no_views(tmp_path):
    images = make_images(("CC",))
    assert by_view(write_image_run(tmp_path / "a", images.assign(image_id=""), 0.5), images).empty


def test_auc_within_machines_counts_pairs_of_the_same_machine(images):
    breasts = make_breasts(images)
    breasts["probability"] = breasts.probability.round(1)  # ties count half
    machine = images.drop_duplicates("prediction_id").set_index("prediction_id").machine_id[breasts.prediction_id].to_numpy()
    rows = list(zip(breasts.cancer, breasts.probability, machine, strict=True))
    pairs = [(a, b) for (one, a, here), (zero, b, there) in product(rows, rows) if one > zero and here == there]
    expected = np.mean([(a > b) + (a == b) / 2 for a, b in pairs])
    found = auc_within(breasts, images, "machine_id")
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high


def machine_tells(images):
    """The same images with a machine on which most cancers were found."""
    odd = images.cancer == 1
    kept = images.groupby("patient_id").ngroup() % 10 != 0
    return images.assign(machine_id=np.where(odd == kept, 48, 21))


def test_score_that_only_tells_the_machine_is_chance_within_machines(images):
    images = machine_tells(images)
    breasts = make_breasts(images)
    machine = images.drop_duplicates("prediction_id").machine_id.to_numpy()
    breasts["probability"] = np.where(machine == 48, 0.8, 0.2)
    assert roc_auc_score(breasts.cancer, breasts.probability) > 0.85
    within = auc_within(breasts, images, "machine_id")
    assert (within.value, within.low, within.high) == (0.5, 0.5, 0.5)


def test_two_machines_alike_tell_more_than_one(images):
    """Draws of machines with equally many patients are not the same draws."""
    half = make_images().assign(machine_id=21)
    other = half.assign(machine_id=48, patient_id="q" + half.patient_id, prediction_id="q" + half.prediction_id)
    one = make_breasts(half)
    two = pd.concat([one, one.assign(patient_id="q" + one.patient_id, prediction_id="q" + one.prediction_id)])
    alone = auc_within(one, half, "machine_id")
    both = auc_within(two, pd.concat([half, other]), "machine_id")
    assert both.value == pytest.approx(alone.value)
    assert (both.high - both.low) / (alone.high - alone.low) == pytest.approx(np.sqrt(0.5), abs=0.08)


def test_machines_with_one_label_have_no_pairs(images):
    images = images.assign(machine_id=np.where(images.cancer == 1, 48, 21))
    assert np.isnan(auc_within(make_breasts(images), images, "machine_id").value)


def make_manifest(images, height=2000):
    return pd.DataFrame({"image_id": images.image_id, "source_height": height, "source_width": 1500, "error": ""}).astype(str)


def test_planted_number_of_images_is_found(images):
    planted = pd.concat([images, images[images.cancer == 1].assign(view="CC", image_id=lambda table: table.image_id + "b")])
    sources = sources_of_auc(make_breasts(planted), planted, make_manifest(planted))
    assert sources.loc["images per breast", "AUC [95 %]"].value == 1
    assert sources.loc["images per breast", VERDICT] == "worse"
    assert sources.loc["image size", "AUC [95 %]"].high < 0.75


def test_one_image_of_each_breast_hides_the_number_from_the_others_but_still_names_it(images):
    planted = pd.concat([images, images[images.cancer == 1].assign(view="XX", image_id=lambda table: table.image_id + "b")])
    manifest = make_manifest(planted)
    name = "metadata (age, implant, view, machine, site)"
    whole, fair = (sources_of_auc(make_breasts(planted), planted, manifest, one_image) for one_image in (False, True))
    assert fair.loc["images per breast", "AUC [95 %]"].value == 1
    # A third of the images of breasts with cancer have a view that no other has: one drawn image mostly is not of it.
    assert whole.loc[name, "AUC [95 %]"].value > fair.loc[name, "AUC [95 %]"].value + 0.1


def test_planted_image_size_is_found(images):
    manifest = make_manifest(images, np.where(images.cancer == 1, 2000, 3000))
    sources = sources_of_auc(make_breasts(images), images, manifest)
    assert sources.loc["image size", "AUC [95 %]"].value == 1
    assert sources.loc["image size", VERDICT] == "worse"
    assert sources.loc["images per breast", "AUC [95 %]"].value == 0.5


def test_model_that_reads_more_is_better_than_metadata_and_one_that_guesses_is_not(images):
    name = "metadata (age, implant, view, machine, site)"
    for gain, verdict in ((0.6, "better"), (0.0, "not measurably different")):
        breasts = make_breasts(images, gain)
        sources = sources_of_auc(breasts, images, make_manifest(images))
        model = sources.loc["the model", "AUC [95 %]"]
        assert model.value == pytest.approx(roc_auc_score(breasts.cancer, breasts.probability))
        assert sources.loc[name, VERDICT] == verdict
        difference = model.value - sources.loc[name, "AUC [95 %]"].value
        assert value_of(sources.loc[name, "model minus it"]) == pytest.approx(difference, abs=6e-4)


def test_model_that_reads_the_machine_is_no_better_than_metadata(images):
    images = machine_tells(images)
    breasts = make_breasts(images)
    breasts["probability"] = images.drop_duplicates("prediction_id").machine_id.to_numpy() / 100
    sources = sources_of_auc(breasts, images, make_manifest(images))
    assert sources.loc["metadata (age, implant, view, machine, site)", VERDICT] != "better"
    assert sources.loc["the model, within each machine", "AUC [95 %]"].value == 0.5


def test_baselines_learn_from_the_folds_that_the_model_has_not_finished(images):
    images = machine_tells(images)
    breasts, manifest = make_breasts(images), make_manifest(images)
    finished = breasts[breasts.fold == 0]
    sources = sources_of_auc(finished, images, manifest)
    folded = images.assign(fold=images.patient_id.map(breasts.set_index("patient_id").fold))
    expected = aggregate(metadata_oof(folded)).loc[finished.prediction_id]
    found = sources.loc["metadata (age, implant, view, machine, site)", "AUC [95 %]"].value
    assert found == pytest.approx(roc_auc_score(finished.cancer, expected)) and found > 0.5
