import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from utils.explore.shortcuts import SMOOTHING, out_of_fold_auc, shortcut_audit
from utils.explore.summary import (
    cancer_by,
    density_by_age,
    describe_cancer_by,
    describe_columns,
    describe_views,
    views_per_breast,
)
from utils.tables.competition import image_paths

OPTIONAL = ["biopsy", "invasive", "BIRADS", "density", "difficult_negative_case"]


def make_table(n_patients=200, seed=0, **columns):
    """One CC and one MLO of both breasts of each patient; cancer in a quarter of the left ones. Columns go by breast."""
    rng = np.random.default_rng(seed)
    breasts = pd.DataFrame(
        {"patient_id": np.repeat(np.arange(n_patients), 2).astype(str), "laterality": ["L", "R"] * n_patients}
    )
    breasts["prediction_id"] = breasts.patient_id + "_" + breasts.laterality
    breasts["cancer"] = (breasts.laterality == "L") & (rng.random(len(breasts)) < 0.25)
    breasts = breasts.assign(site_id=1, machine_id=49, age=50.0, implant=0).astype({"cancer": int})
    breasts = breasts.assign(**{name: make(breasts, rng) for name, make in columns.items()})
    images = breasts.merge(pd.DataFrame({"view": ["CC", "MLO"]}), how="cross")
    return images.assign(image_id=rng.permutation(len(images)).astype(str))


def make_test_table():
    return make_table(20, seed=1).drop(columns="cancer")


def test_cancer_by_machine_counts_breasts_and_calls_out_what_is_odd():
    images = make_table(
        50, machine_id=lambda breasts, rng: np.where(breasts.cancer == 1, 49, rng.choice([49, 210], len(breasts)))
    )
    table = cancer_by(images, "machine_id", make_test_table().assign(machine_id=[7] * 8 + [49] * 72))
    breasts = images.drop_duplicates("prediction_id")
    for machine in (49, 210):
        labels = breasts.cancer[breasts.machine_id == machine]
        assert tuple(table.loc[machine, ["breasts", "positives"]]) == (len(labels), labels.sum())
    assert table.loc[210].note.startswith("no positive") and table.loc[7].note == "only in test.csv"
    assert table.loc[7].test_breasts == 4 and np.isnan(table.loc[7].rate)
    assert "machine_id 210: no positive" in describe_cancer_by(
        table
    ) and "machine_id 7: only in test.csv" in describe_cancer_by(table)


def test_cancer_by_counts_missing_values_and_survives_a_missing_column():
    images = make_table(10, age=lambda breasts, rng: np.where(breasts.index < 4, np.nan, 50.0))
    assert cancer_by(images, "age").loc["unknown"].breasts == 4
    assert cancer_by(images, "scanner").empty
    assert describe_cancer_by(cancer_by(images, "scanner")) == "The tables have no column scanner."


def test_density_by_age_counts_breasts_once():
    ages = [39.0, 40.0, 49.0, 80.0, np.nan, 50.0]
    images = pd.DataFrame({"prediction_id": list("abcdef"), "age": ages, "density": ["A", "B", "B", "D", "C", None]})
    table = density_by_age(pd.concat([images, images]))
    assert table.loc["39 and under", "A"] == 1 and table.loc["40 to 49", "B"] == 2 and table.loc["80 and over", "D"] == 1
    assert table.loc["unknown", "C"] == 1 and table.loc["50 to 59", "unknown"] == 1
    assert table.to_numpy().sum() == 6 and list(table.columns) == ["A", "B", "C", "D", "unknown"]


def test_views_per_breast_finds_duplicates_and_single_views():
    views = {"a": ["MLO", "CC"], "b": ["CC", "MLO", "MLO"], "c": ["MLO"], "d": ["CC", "CC"], "e": ["AT", "MLO", "CC"]}
    rows = [(breast, view, int(breast == "b")) for breast, taken in views.items() for view in taken]
    table = views_per_breast(pd.DataFrame(rows, columns=["prediction_id", "view", "cancer"]))
    assert set(table.index) == {"CC + MLO", "CC + 2 MLO", "MLO", "2 CC", "CC + MLO + AT"}
    assert set(table.index[table.duplicate]) == {"CC + 2 MLO", "2 CC"} and set(table.index[table.one_view]) == {"MLO", "2 CC"}
    assert table.loc["CC + 2 MLO", ["images", "positives"]].tolist() == [3, 1]
    assert "2 have a view more than once, 2 have one kind" in describe_views(table)


def test_described_columns_tell_what_is_missing_and_what_the_test_lacks():
    images = make_table(10, biopsy=lambda breasts, rng: np.where(breasts.index < 5, np.nan, 1.0))
    table = describe_columns(images, make_test_table())
    assert table.loc["biopsy", ["missing", "missing_share", "unique", "in_test"]].tolist() == [10, 0.25, 1, False]
    assert table.loc["view", "in_test"] and table.loc["view", "values"] == "CC (50.0%), MLO (50.0%)"
    assert "prediction_id" not in table.index


def test_out_of_fold_auc_matches_brute_force():
    rng = np.random.default_rng(3)
    categories, cancer, fold = pd.Series(rng.choice(["a", "b", None], 90)), rng.integers(0, 2, 90), rng.integers(0, 3, 90)
    aucs, weights = [], []
    for held_out in (fold == number for number in range(3)):
        overall = cancer[~held_out].mean()
        known = categories.fillna("missing").to_numpy()
        groups = {name: cancer[~held_out & (known == name)] for name in np.unique(known)}
        share = {name: (labels.sum() + SMOOTHING * overall) / (len(labels) + SMOOTHING) for name, labels in groups.items()}
        aucs.append(roc_auc_score(cancer[held_out], [share[name] for name in known[held_out]]))
        weights.append(cancer[held_out].sum() * (1 - cancer[held_out]).sum())
    assert out_of_fold_auc(categories, cancer, fold) == pytest.approx(np.average(aucs, weights=weights))


def test_constant_column_reaches_exactly_one_half():
    fold, cancer = np.repeat(range(4), 10), np.tile([1, 0, 0, 0, 0, 1, 0, 0, 0, 0], 4)
    cancer[:5] = 1  # the folds' shares differ
    assert out_of_fold_auc(pd.Series(7, index=range(40)), cancer, fold) == 0.5


def test_audit_finds_a_planted_leak_a_planted_shortcut_and_nothing_in_noise():
    images = make_table(
        1000,
        report=lambda breasts, rng: np.where(breasts.cancer == 1, "see below", "nothing"),
        age=lambda breasts, rng: np.round(rng.normal(50, 8, len(breasts)) + 15 * breasts.cancer),
        machine_id=lambda breasts, rng: np.where(rng.random(len(breasts)) < 0.8, 49 - breasts.cancer, 49),
        implant=lambda breasts, rng: rng.integers(0, 2, len(breasts)),
        biopsy=lambda breasts, rng: breasts.cancer,
    )
    audit = shortcut_audit(images, make_test_table().assign(machine_id=210))
    assert audit.loc["report"].auc == 1 and audit.loc["report", ["kind", "reason"]].tolist() == ["leak", "not in test.csv"]
    assert audit.loc["biopsy"].kind == "leak"
    assert audit.loc["biopsy"].reason == "not in test.csv, known only after the diagnosis"
    assert audit.loc["age"].auc > 0.8 and audit.loc["age"].kind == "shortcut"
    assert audit.loc["age"].reason.startswith("a trait of the patient")
    assert audit.loc["machine_id"].kind == "shortcut" and audit.loc["machine_id"].new_in_test == 1
    assert audit.loc[["implant", "view", "site_id"], "kind"].eq("harmless").all()
    assert audit.loc[["implant", "view", "site_id"], "reason"].eq("").all()


def test_chance_bounds_what_random_columns_reach():
    noise = {f"noise{number}": lambda breasts, rng: rng.integers(0, 10, len(breasts)) for number in range(30)}
    audit = shortcut_audit(make_table(**noise)).filter(like="noise", axis=0)
    assert (audit.auc <= audit.chance).mean() > 0.9
    assert audit.chance.mean() == pytest.approx(0.5 + 2.5 * (audit.auc - 0.5).std(), abs=0.05)


def test_audit_finds_that_the_number_of_images_tells_the_label_and_that_ids_do_not():
    images = make_table()
    audit = shortcut_audit(images[(images.cancer == 1) | (images.view == "CC")].sort_values("image_id"))
    assert audit.loc["images_per_breast"].auc == 1 and audit.loc["images_per_breast"].kind == "shortcut"
    assert audit.loc["images_per_breast"].reason.startswith("predicts the label almost alone")
    assert audit.loc["image_id"].auc < audit.loc["image_id"].chance


def test_audit_judges_headers_on_their_own_breasts():
    images = make_table()
    breasts = images.drop_duplicates("prediction_id").set_index("prediction_id")
    headers = pd.DataFrame({"codec": np.where(breasts.cancer == 1, "a", "b")}, index=breasts.index).iloc[:300]
    assert shortcut_audit(images, headers=headers).loc["codec"].auc == 1


def test_audit_of_few_or_one_sided_breasts_says_that_it_can_not_tell():
    images = make_table(6).assign(cancer=0)
    assert shortcut_audit(images).kind.eq("unclear").all()
    assert np.isnan(shortcut_audit(images[images.patient_id == "0"]).auc).all()


def test_tables_and_figures_survive_missing_columns(images, test_images):
    from utils.explore.figures import show_audit, show_cancer_by, show_density, show_views

    bare = images.drop(columns=OPTIONAL)
    figures = [
        show_density(density_by_age(bare)),
        show_views(views_per_breast(test_images)),
        show_cancer_by({column: cancer_by(bare, column, test_images) for column in ("machine_id", "scanner")}),
        show_audit(shortcut_audit(bare, test_images)),
        show_audit(shortcut_audit(bare.assign(cancer=0), test_images)),
    ]
    assert all(isinstance(figure, Figure) and figure.axes for figure in figures)
    assert not set(OPTIONAL) & set(describe_columns(bare, test_images).index)


def test_examples_and_segmentation_come_straight_from_the_files(competition, images, settings, cache_dir):
    from utils.explore.examples import pick_by_label, pick_by_machine, segment_images
    from utils.explore.figures import show_examples, show_segmentation

    examples = pick_by_label(images, competition, count=2)
    assert examples.example.unique().tolist() == ["invasive cancer", "non-invasive cancer", "no cancer"]
    assert examples.cancer.tolist() == [int(kind != "no cancer") for kind in examples.example]
    assert len(show_examples(examples, cache_dir).axes) == 6
    chosen = pick_by_machine(images, competition, count=2)
    segmentations = segment_images(chosen, competition, settings)
    assert chosen.machine_id.nunique() == len(segmentations) == 2
    assert all(found.mask.any() and found.cached.shape == (64, 48) for found in segmentations)
    assert show_segmentation(segmentations).axes


def test_machines_without_files_do_not_take_the_place_of_those_with_files(competition, images, tmp_path):
    from utils.explore.examples import pick_by_machine

    lost, *kept = images.machine_id.value_counts().index
    assert len(kept) >= 2
    for row in images.itertuples():  # the patients of the most common machine have folders, but no files
        (tmp_path / "train_images" / row.patient_id).mkdir(parents=True, exist_ok=True)
    chosen = images[images.machine_id != lost]
    for path, target in zip(*(image_paths(chosen, folder, "train") for folder in (tmp_path, competition)), strict=True):
        path.symlink_to(target)
    assert set(pick_by_machine(images, tmp_path, count=len(kept)).machine_id) == set(kept)
    assert pick_by_machine(images[images.machine_id == lost], tmp_path).empty


def test_all_cancer_is_one_kind_where_the_table_has_no_invasive(competition, images):
    from utils.explore.examples import pick_by_label

    assert set(pick_by_label(images.drop(columns="invasive"), competition).example) == {"cancer", "no cancer"}


def test_folder_of_tables_alone_gives_sentences_instead_of_pictures(images, settings, tmp_path):
    from utils.explore.examples import pick_by_label, pick_by_machine, segment_images
    from utils.explore.figures import show_examples, show_segmentation
    from utils.explore.shortcuts import read_headers

    examples = pick_by_label(images, tmp_path)
    assert examples.empty and read_headers(images, tmp_path).empty
    nothing = segment_images(pick_by_machine(images, tmp_path), tmp_path, settings)
    for figure in (show_examples(examples, tmp_path), show_segmentation(nothing)):
        assert "no image" in figure.axes[0].texts[0].get_text()


def test_headers_are_read_of_one_image_a_breast(competition, images):
    from utils.explore.shortcuts import read_headers

    headers = read_headers(images, competition, per_label=3, num_workers=0)
    labels = images.drop_duplicates("prediction_id").set_index("prediction_id").cancer
    assert headers.index.is_unique and labels[headers.index].tolist().count(1) == 3 and len(headers) == 6
    assert set(headers.codec) <= {"jpeg2000", "jpeg_lossless", "rle", "uncompressed"}


def test_headers_are_read_in_processes_whose_memory_is_limited(competition, images, monkeypatch):
    from utils.explore import shortcuts

    asked = []
    monkeypatch.setattr(shortcuts, "map_items", lambda function, items, num_workers, *title: asked.append(num_workers) or [])
    shortcuts.read_headers(images, competition)
    shortcuts.read_headers(images, competition, num_workers=3)
    assert asked == [1, 3]
