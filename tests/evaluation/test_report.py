"""A report is one file that needs nothing else, and that a real browser shows whole, on a desk and on a phone."""

import base64
import contextlib
import io
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from tests.helpers import TINY, make_config
from utils.core.errors import KitError
from utils.evaluation import report
from utils.evaluation.report import LARGEST, Page, describe_runs
from utils.images.training_data import TrainingData
from utils.metrics.intervals import Interval
from utils.training.folds import train_run

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(1280, 900), (390, 844)]  # a desk's screen and a phone's
SMALLEST_FONT = 14  # px
FETCHED = ("src", "srcset", "href", "data", "action", "poster", "background")  # attributes that name another file


class Outline(HTMLParser):
    """What a page holds: headings, table cells by row, pictures, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.rows, self.pictures, self.references, self.tags = [], [], [], [], []
        self._open = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.references += [attributes[name] for name in FETCHED if attributes.get(name)]
        if tag == "img":
            self.pictures.append(attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "h2":
            self.headings.append("")
        self._open = tag if tag in ("th", "td", "h2") else self._open

    def handle_endtag(self, tag):
        self._open = None if tag == self._open else self._open

    def handle_data(self, data):
        if self._open == "h2":
            self.headings[-1] += data
        elif self._open:
            self.rows[-1][-1] += data


def outline(*items, caption=""):
    page = Page("Title")
    for item in items:
        page.add("Section", item, caption)
    return Outline(page.to_html())


@pytest.fixture
def figure():
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([0, 1])
    plt.close(figure)
    return figure


# What a page is made of


def test_sections_come_in_the_order_of_their_first_item_and_are_linked():
    page = Page("Title", "about")
    for section, text in (("B", "one"), ("A", "two"), ("B", "three")):
        assert page.add(section, text) == text
    content = page.to_html()
    assert Outline(content).headings == ["B", "A"]
    places = [content.index(f"<p>{text}</p>") for text in ("one", "three", "two")]
    assert places == sorted(places)
    links = dict(re.findall(r'<a href="#(\w+)">(\w+)</a>', content))
    anchors = dict(re.findall(r'<h2 id="(\w+)">(\w+)</h2>', content))
    assert links == anchors and len(links) == 2


def test_every_text_is_escaped(figure):
    evil = "<script>alert('x')</script> & \" onerror=\"x"
    table = pd.DataFrame({evil: [evil]}, index=pd.Index([evil], name=evil + "2"))
    page = Page(evil, evil)
    for item in (evil, table, figure):
        page.add(evil, item, evil)
    page.note(evil, evil)
    content = page.to_html()
    found = Outline(content)
    assert "script" not in found.tags and "onerror" not in found.pictures[0]
    assert found.headings == [evil] and found.rows == [[evil + "2", evil], [evil, evil]]
    assert found.pictures[0]["alt"] == evil
    assert content.count("&lt;script&gt;") == 14  # title twice, subtitle, link, heading, text, captions, cells, alt, note


def test_cells_show_intervals_whole_numbers_rounded_numbers_and_nothing_for_nan():
    table = pd.DataFrame(
        {"a": [Interval(0.5, 0.25, 0.75), Interval(np.nan, np.nan, np.nan)], "b": [0.123456, np.nan], "c": [1234567, None]},
        dtype=object,
    )
    first, second = outline(table.assign(d=np.float64(1e-7))).rows[1:]
    assert first == ["0.500 [0.250, 0.750]", "0.1235", "1234567", "1e-07"]
    assert second == [str(Interval(np.nan, np.nan, np.nan)), "", "", "1e-07"]


def test_index_is_shown_unless_it_only_counts():
    table = pd.DataFrame({"value": [1, 2]})
    assert outline(table).rows == [["value"], ["1"], ["2"]]
    named = outline(table.set_axis(pd.Index(["x", "y"], name="figure")))
    assert named.rows == [["figure", "value"], ["x", "1"], ["y", "2"]]
    assert named.tags.count("th") == 4 and named.tags.count("td") == 2  # a row's name is a heading too


def test_empty_table_leaves_its_caption():
    assert "nothing here" in _page_of(pd.DataFrame(), "nothing here").to_html()


def _page_of(item, caption=""):
    page = Page("Title")
    page.add("Section", item, caption)
    return page


def test_figure_is_a_picture_inside_the_page_with_its_caption_as_alternative(figure):
    found = outline(figure, caption="what it shows").pictures[0]
    assert found["alt"] == "what it shows"
    kind, data = found["src"].split(",")
    assert kind == "data:image/png;base64"
    expected = tuple((figure.get_size_inches()[::-1] * report.DPI).astype(int))
    assert matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png").shape[:2] == expected


@pytest.mark.parametrize("item", [None, 3, [1, 2], {"a": 1}, pd.Series([1])])
def test_other_things_are_refused(item):
    page = Page("Title")
    with pytest.raises(TypeError, match=f"tables, figures and text, not {type(item).__name__}"):
        page.add("Section", item)


def test_note_is_printed_and_marked(capsys):
    page = Page("Title")
    assert page.note("Summary", "look out") == "look out"
    assert capsys.readouterr().out == "look out\n"
    assert '<p class="note">look out</p>' in page.to_html()


def test_page_is_one_html_document_without_scripts_or_other_files(figure):
    content = _page_of(figure, "caption").to_html()
    assert content.startswith("<!doctype html>") and '<meta charset="utf-8">' in content and 'name="viewport"' in content
    assert_stands_alone(content)


def assert_stands_alone(content):
    found = Outline(content)
    assert [reference for reference in found.references if not reference.startswith(("#", "data:"))] == []
    assert not {"script", "iframe", "object", "embed", "base"} & set(found.tags)
    style = re.search(r"<style>(.*?)</style>", content, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_other_files_would_be_noticed():
    for part in ('<img src="a.png">', '<a href="https://x.org">x</a>', "<script>1</script>", '<link href="a.css">'):
        with pytest.raises(AssertionError):
            assert_stands_alone(f"<style></style>{part}")
    with pytest.raises(AssertionError):
        assert_stands_alone("<style>body { background: url(a.png); }</style>")


# Writing


def test_page_is_written_as_utf8_into_a_folder_that_it_makes(tmp_path):
    path = tmp_path / "new" / "report.html"
    page = _page_of("Größe – 256 × 512")
    assert page.write(path) == path
    assert path.read_text(encoding="utf-8") == page.to_html()


def test_page_that_is_too_large_is_refused_and_the_old_file_kept(tmp_path):
    path = tmp_path / "report.html"
    room = LARGEST - len(_page_of("").to_html())
    _page_of("x" * room).write(path)
    assert path.stat().st_size == LARGEST
    with pytest.raises(KitError, match="has 10.0 MB, more than 10: name fewer run_dirs"):
        _page_of("y" * (room + 1)).write(path)
    assert path.stat().st_size == LARGEST and "xx" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    _page_of("old").write(path)
    whole = Path.write_bytes

    def fail_half_way(self, content):
        whole(self, content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail_half_way)
    with pytest.raises(OSError, match="No space"):
        _page_of("new").write(path)
    assert path.read_text() == _page_of("old").to_html()
    assert list(tmp_path.iterdir()) == [path]


# The page of report.ipynb


@pytest.fixture(scope="module")
def runs(images, cache_dir, tmp_path_factory):
    """A run of images and one of breasts, one epoch each."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {"images": make_config(TINY, epochs=1), "breasts": make_config(TINY, epochs=1, model={"level": "breast"})}
    for name, config in configs.items():
        train_run(config, TrainingData(images, cache_dir, is_phantom=True), folder / name)
    return {name: folder / name for name in configs}


@pytest.fixture(scope="module")
def written(runs, competition, cache_dir):
    """The page that report.ipynb writes: its cells, run here, since a kernel would need ten more seconds."""
    path = next(iter(runs.values())).parent / "report.html"
    parameters = {"run_dirs": ",".join(map(str, runs.values())), "report_path": str(path)}
    parameters |= {"competition_dir": str(competition), "cache_dir": str(cache_dir)}
    names, before = {"display": lambda item: None}, list(sys.path)
    with contextlib.chdir(ROOT):
        for cell in nbformat.read(ROOT / "notebooks" / "report.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"report.ipynb, cell {cell.id}", "exec"), names)
                names |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
    sys.path[:] = before
    return path


def test_runs_are_described_by_their_configuration(runs):
    table = describe_runs(runs)
    assert table.index.tolist() == ["images", "breasts"]
    assert table.reads.tolist() == ["image", "breast"] and set(table["weights from"]) == {"scratch"}
    assert set(table["image size"]) == {"64 × 48"} and set(table.folds) == {"2 by patient"} and set(table.epochs) == {1}


def test_report_has_the_notebooks_sections_both_runs_and_says_that_it_is_a_phantom(written):
    content = written.read_text()
    found = Outline(content)
    cells = nbformat.read(ROOT / "notebooks" / "report.ipynb", as_version=4).cells
    expected = [cell.source.splitlines()[0].removeprefix("## ") for cell in cells if cell.source.startswith("## ")]
    assert found.headings == expected[:-1]  # the last is "Next"
    assert "PHANTOM: synthetic images" in content and "the average of 2 runs" in content
    assert content.count("Gudur") == 1
    assert {"images", "breasts"} <= {row[0] for row in found.rows}
    assert len(found.pictures) >= 7  # two of curves, one of learning and one of pictures for each run, calibration


def test_report_stands_alone_and_can_be_mailed(written):
    assert_stands_alone(written.read_text())
    assert written.stat().st_size < LARGEST


# In a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium or Chrome on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


LOOK = """() => {
  const faults = [], width = document.documentElement.clientWidth;
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) faults.push("broken picture");
    if (!image.alt.trim()) faults.push("picture without alternative text");
  }
  if (document.documentElement.scrollWidth > width) faults.push("page scrolls sideways");
  for (const item of document.querySelectorAll("table, img")) {
    let box = item.parentElement;
    while (box && !["auto", "scroll"].includes(getComputedStyle(box).overflowX)) box = box.parentElement;
    if (!box) { faults.push("wide item without a box of its own"); continue; }
    if (box.getBoundingClientRect().right > width) faults.push("box sticks out");
  }
  const font = parseFloat(getComputedStyle(document.body).fontSize);
  return [faults, font];
}"""

SCROLL = """() => [...document.querySelectorAll(".wide, .picture")].map(box => {
  box.scrollLeft = 1e6;
  return [box.className, box.scrollWidth - box.clientWidth, Math.ceil(box.scrollLeft)];
})"""


def look_at(browser, path, size):
    """Open a page; give everything that is wrong with it, and how far each of its boxes scrolls."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height})
    found = []
    page.on("console", lambda message: found.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.append(f"page error: {error}"))
    page.on("requestfailed", lambda request: found.append(f"failed request: {request.url}"))
    page.goto(path.as_uri(), wait_until="load")
    faults, font = page.evaluate(LOOK)
    small = [f"font of {font} px"] if font < SMALLEST_FONT else []
    boxes = page.evaluate(SCROLL)
    page.close()
    return [*found, *faults, *small], boxes


@pytest.mark.parametrize("size", SIZES, ids=["desk", "phone"])
def test_browser_shows_the_report_without_a_fault(browser, written, size):
    faults, boxes = look_at(browser, written, size)
    assert faults == []
    assert all(moved == hidden for _, hidden, moved in boxes)  # what does not fit can be scrolled to


def test_wide_tables_and_pictures_scroll_inside_their_boxes_on_a_phone(browser, written):
    _, boxes = look_at(browser, written, SIZES[1])
    hidden = pd.DataFrame(boxes, columns=["kind", "hidden", "moved"]).groupby("kind").hidden.max()
    assert hidden["wide table"] > 100 and hidden["picture"] > 100


def test_all_columns_fit_on_a_desk_and_those_of_the_summary_on_a_phone(browser, written):
    desk, phone = (look_at(browser, written, size)[1] for size in SIZES)
    hidden = [columns for kind, columns, _ in desk if kind == "wide table"]
    assert len(hidden) > 5 and set(hidden) == {0}
    assert phone[0][:2] == ["wide table", 0]


FAULTY = {
    "broken picture": '<div class="picture"><img alt="x" src="data:image/png;base64,AAAA"></div>',
    "failed request": '<div class="picture"><img alt="x" src="missing.png"></div>',
    "picture without alternative text": '<div class="picture"><img src="PICTURE"></div>',
    "console error: planted": "<script>console.error('planted')</script>",
    "console warning: planted": "<script>console.warn('planted')</script>",
    "page error: planted": "<script>throw 'planted'</script>",
    "page scrolls sideways": '<div style="width: 2000px">x</div>',
    "wide item without a box of its own": "<table><tr><td>x</td></tr></table>",
    "font of 12 px": "<style>body { font-size: 12px !important; }</style>",
}
STICKING_OUT = '<div class="wide table" style="width: 2000px"><table><tr><td>x</td></tr></table></div>'


@pytest.mark.parametrize("size", SIZES, ids=["desk", "phone"])
def test_faults_are_noticed(browser, figure, tmp_path, size):
    page = _page_of(figure, "caption")
    page.add("Section", pd.DataFrame({"a": [1]}))
    good, path = page.to_html(), tmp_path / "report.html"
    picture = re.search(r'src="(data:image/png[^"]*)"', good)[1]
    found = {}
    for name, part in {"good": "", "faulty": "".join(FAULTY.values()), "sticking out": STICKING_OUT}.items():
        path.write_text(good.replace("</body>", part.replace("PICTURE", picture) + "</body>"))
        found[name] = look_at(browser, path, size)[0]
    assert found["good"] == []
    assert [fault for fault in FAULTY if not any(text.startswith(fault) for text in found["faulty"])] == []
    assert set(found["sticking out"]) == {"box sticks out", "page scrolls sideways"}
