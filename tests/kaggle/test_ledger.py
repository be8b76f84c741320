"""Facts about the ledger of submissions: rows, scores, and that none is lost."""

import hashlib
import json
import math
import multiprocessing

import pytest

from utils.kaggle import ledger
from utils.kaggle.ledger import LedgerError, find_earlier, keep, ranked, read_ledger, record, update_scores

NESTED = {"value": 0.5, "low": 0.4, "high": 0.6}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "submissions_dir", lambda: tmp_path / "submissions")
    (tmp_path / "submissions").mkdir()
    return tmp_path / "submissions"


def write_submission(folder, name="mine", content="prediction_id,cancer\n1_L,0\n", nested=NESTED):
    path = folder / f"{name}.csv"
    path.write_text(content)
    provenance = {"name": name, "runs": ["/runs/cnn", "/runs/my rnn"], "tuned": {"pf1_nested": nested}}
    path.with_suffix(".json").write_text(json.dumps(provenance))
    return path


def scored(public, private=math.nan, status="complete"):
    return {"status": status, "public_score": public, "private_score": private}


def test_row_holds_the_files_hash_and_what_its_provenance_says(folder):
    path = write_submission(folder)
    message = 'with "quotes", commas\nand a line'
    record(path, message, ref="7", kernel="me/submit", version="3")
    row = read_ledger().iloc[0]
    assert row.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (row.pf1_nested, row.pf1_nested_low, row.pf1_nested_high) == (0.5, 0.4, 0.6)
    assert (row.file, row.kernel, row.version, row.ref) == ("mine.csv", "me/submit", "3", "7")
    assert (row.message, row.runs, row.status) == (message, "cnn, my rnn", "pending")
    assert math.isnan(row.public_score)


def test_submission_without_provenance_or_with_undefined_nested_pf1_is_recorded(folder):
    (folder / "bare.csv").write_text("prediction_id,cancer\n")
    record(folder / "bare.csv", "bare")
    record(write_submission(folder, nested={"value": None, "low": None, "high": None}), "undefined")
    rows = read_ledger()
    assert rows.message.tolist() == ["bare", "undefined"] and rows.pf1_nested.isna().all()
    assert ranked(rows)["nested pF1 [95 %]"].tolist() == ["undefined", "undefined"]


def test_scores_reach_the_ledger_and_the_provenance_beside_the_csv(folder):
    first, second = write_submission(folder, "a"), write_submission(folder, "b", "prediction_id,cancer\n1_L,1\n")
    for path, ref in ((first, "1"), (second, "2"), (first, "3")):
        record(path, path.name, ref=ref)
    rows = update_scores({"1": scored(0.61, 0.55), "99": scored(0.9)})
    assert rows.public_score.tolist()[:1] == [0.61] and rows.public_score[1:].isna().all()
    assert rows.status.tolist() == ["complete", "pending", "pending"]
    written = json.loads(first.with_suffix(".json").read_text())
    assert written["tuned"]["pf1_nested"] == NESTED
    both = [(one["ref"], one["status"], one["public_score"], one["private_score"]) for one in written["kaggle"]]
    assert both == [("1", "complete", 0.61, 0.55), ("3", "pending", None, None)]
    assert "kaggle" not in json.loads(second.with_suffix(".json").read_text())
    assert update_scores({"1": scored(0.61, 0.55)}).equals(rows)


def test_same_file_sent_again_is_told_with_its_day_and_score(folder):
    path = write_submission(folder)
    assert find_earlier(path) == ""
    row = record(path, "first", ref="5")
    assert "pending" in find_earlier(path)
    update_scores({"5": scored(0.61, 0.55)})
    told = find_earlier(write_submission(folder, "copy"))
    assert row.time in told and "public 0.61, private 0.55" in told
    assert find_earlier(write_submission(folder, "other", "prediction_id,cancer\n1_L,1\n")) == ""


def test_another_version_of_a_kernel_is_another_submission_though_its_visible_csv_is_the_same(folder):
    path = write_submission(folder)
    record(path, "", kernel="me/submit", version="1")
    assert find_earlier(path, "me/submit", "1") and not find_earlier(path, "me/submit", "2")


def test_best_private_score_stands_first_then_public_and_unscored_last(folder):
    path = write_submission(folder)
    for ref in "1234":
        record(path, ref, ref=ref)
    update_scores({"2": scored(0.5, 0.4), "3": scored(0.4, 0.6), "4": scored(0.7)})
    shown = ranked(read_ledger())
    assert shown.message.tolist() == ["3", "2", "4", "1"]
    assert shown.iloc[0][["nested pF1 [95 %]", "public", "private"]].tolist() == ["0.500 [0.400, 0.600]", "0.4", "0.6"]


def test_keeping_copies_csv_and_provenance_and_overwrites_nothing(folder, tmp_path):
    (tmp_path / "out").mkdir()
    path = write_submission(tmp_path / "out")
    kept = keep(path)
    assert kept == folder / "mine.csv" and kept.with_suffix(".json").is_file()
    assert keep(path) == keep(kept) == kept
    path.write_text("prediction_id,cancer\n1_L,1\n")
    other = keep(path)
    assert other != kept and other.read_bytes() == path.read_bytes() != kept.read_bytes()


def test_copies_of_one_name_are_each_those_of_their_file(folder, tmp_path):
    (tmp_path / "out").mkdir()
    path = write_submission(tmp_path / "out")
    for share in range(4):
        path.write_text(f"prediction_id,cancer\n1_L,{share}\n")
        assert keep(path).read_bytes() == path.read_bytes()
    assert len(list(folder.glob("*.csv"))) == 4


def test_file_that_is_no_ledger_is_an_error_that_names_it(folder):
    (folder / "ledger.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LedgerError, match=r"ledger.csv is not a ledger"):
        read_ledger()
    with pytest.raises(LedgerError, match=r"ledger.csv is not a ledger"):
        record(write_submission(folder), "")


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_broken_provenance_is_an_error_that_names_it(folder, content):
    path = write_submission(folder)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(LedgerError, match=r"mine.json"):
        record(path, "")


def test_name_in_an_edited_ledger_reaches_no_file_elsewhere(folder):
    outside = write_submission(folder.parent, "outside")
    before = outside.with_suffix(".json").read_bytes()
    record(write_submission(folder), "", ref="1")
    path = folder / "ledger.csv"
    path.write_text(path.read_text().replace("mine.csv", "../outside.csv"))
    update_scores({"1": scored(0.5)})
    assert outside.with_suffix(".json").read_bytes() == before


def record_ten(path, name):
    for number in range(10):
        record(path, f"{name}{number}")


def test_processes_that_record_at_the_same_time_lose_no_row(folder):
    path = write_submission(folder)
    context = multiprocessing.get_context("fork")  # a new interpreter would import for seconds
    running = [context.Process(target=record_ten, args=(path, name)) for name in "abc"]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert sorted(read_ledger().message) == sorted(f"{name}{number}" for name in "abc" for number in range(10))


def test_ledger_whose_lock_is_a_link_is_an_error(folder, tmp_path):
    (tmp_path / "precious").write_text("mine")
    folder.mkdir(exist_ok=True)
    (folder / ".ledger.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(LedgerError, match="can't be locked .*delete it"):
        record(write_submission(folder), "")
    assert (tmp_path / "precious").read_text() == "mine"


def test_ledger_that_another_process_holds_is_an_error_in_time(folder, monkeypatch):
    monkeypatch.setattr(ledger, "LOCK_SECONDS", 0.1)
    with ledger.FileLock(folder / ".ledger.lock"), pytest.raises(LedgerError, match="Another process"):
        record(write_submission(folder), "")
