import pytest

from utils.core import folders
from utils.core.errors import KitError
from utils.images import inputs
from utils.images.inputs import Inputs, few_patients, open_inputs, site_of_breasts
from utils.images.settings import CacheSettings
from utils.tables.breasts import by_breast


def test_named_competition_is_taken_and_announced(competition, tmp_path, capsys):
    found = open_inputs(competition, tmp_path / "cache", 64, 48)
    assert found.competition_dir == competition and found.is_phantom
    assert found.settings == CacheSettings(64, 48) and found.cache_dir == tmp_path / "cache"
    assert "PHANTOM" in capsys.readouterr().out.splitlines()[0]


def test_without_data_the_phantom_is_made_and_said_so(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(folders, "find_competition", lambda: None)
    monkeypatch.setattr(inputs, "working_dir", lambda: tmp_path)
    monkeypatch.setattr(inputs, "make_competition", lambda folder, **options: made.append(folder) or folder)
    assert open_inputs("", smoke_test=True).is_phantom and made == [tmp_path / "phantom-smoke"]
    assert "No competition data found" in capsys.readouterr().out.splitlines()[0]


def test_found_data_is_preferred_to_the_phantom(competition, monkeypatch):
    monkeypatch.setattr(folders, "find_competition", lambda: competition)
    monkeypatch.setattr(inputs, "make_competition", None)
    assert open_inputs(None).competition_dir == competition


def test_real_data_gets_the_large_default_size(competition, tmp_path, monkeypatch):
    (tmp_path / "test.csv").touch()
    assert open_inputs(tmp_path).settings == CacheSettings(1024, 512)
    assert open_inputs(competition).settings == CacheSettings(160, 96)
    assert open_inputs(competition, smoke_test=True).settings == CacheSettings(64, 48)


def test_named_folder_without_tables_is_an_error(tmp_path):
    with pytest.raises(KitError, match="has no train.csv and no test.csv"):
        open_inputs(tmp_path)
    with pytest.raises(KitError, match="competition_dir .*nowhere does not exist"):
        open_inputs(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [("512", 512), (512, -1), (0.5, 512)])
def test_size_must_be_whole_numbers(competition, size):
    with pytest.raises(KitError, match="^image_(height|width) is .*, but must be (a whole number|from 1 to )"):
        open_inputs(competition, None, *size)


def test_smoke_test_keeps_both_classes_and_whole_patients(images, test_images):
    few = few_patients(images, 6)
    assert few.patient_id.nunique() == 6 and set(by_breast(few).cancer) == {0, 1}
    assert len(few) == images.patient_id.isin(few.patient_id).sum()
    assert few_patients(test_images, 2).patient_id.nunique() == 2


def test_each_breast_of_train_has_its_site(competition, images, monkeypatch):
    sites = site_of_breasts(competition)
    assert sites.index.tolist() == images.prediction_id.unique().tolist()
    by_image = sites.loc[images.prediction_id].to_numpy()
    assert (by_image == images.site_id).all() and sites.nunique() == 2
    monkeypatch.setattr(folders, "find_competition", lambda: competition)
    assert site_of_breasts(None).equals(sites)


def test_sites_without_a_competition_say_what_to_give(monkeypatch):
    monkeypatch.setattr(folders, "find_competition", lambda: None)
    with pytest.raises(KitError, match="give competition_dir"):
        site_of_breasts("")


def test_folder_with_a_training_table_alone_can_be_trained_on(tmp_path):
    (tmp_path / "train.csv").touch()
    assert open_inputs(tmp_path).competition_dir == tmp_path


def test_boxes_are_those_of_the_folders_or_of_the_file_that_is_named(tmp_path):
    def write(path, *rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "image_id,x_min,y_min,x_max,y_max,label\n" + "".join(f"{row},0,0,2,2,{path.parent.name}\n" for row in rows)
        )
        return path

    for name in ("own", "other", "bare"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").touch()
    real, extra = Inputs(tmp_path / "own", False, CacheSettings(), tmp_path, False), f"{tmp_path / 'other'},{tmp_path / 'bare'}"
    assert real.boxes("", extra) is None
    write(tmp_path / "other" / "boxes.csv", "b", "c")
    assert real.boxes("", extra).image_id.tolist() == ["b", "c"] and real.boxes("") is None
    write(tmp_path / "own" / "boxes.csv", "a")
    assert real.boxes("", extra).image_id.tolist() == ["a", "b", "c"]
    named = write(tmp_path / "named" / "boxes.csv", "b")
    assert real.boxes(named, extra).label.tolist() == ["named", "other"]
