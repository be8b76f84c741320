"""A report as one self-contained HTML file, with the tables and figures of a notebook."""

import base64
import html
import io
import re
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from utils.core.errors import KitError
from utils.core.files import write_atomic
from utils.runs.config import ModelConfig
from utils.runs.run import Run

LARGEST = 10_000_000  # bytes; a larger page cannot be mailed
DPI = 90
BOUNDS = re.compile(r"\[[-+.\d]+, [-+.\d]+\]")  # of an interval; a wide screen shows them on one line
STYLE = """
:root { --ink: #1c2733; --soft: #5b6773; --line: #d9dfe5; --tint: #f4f6f8; --accent: #0b62a4; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 0 20px 60px; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.9em; line-height: 1.2; margin: 1.2em 0 .2em; }
h2 { font-size: 1.35em; margin: 2.2em 0 .4em; padding-top: .5em; border-top: 1px solid var(--line); }
p { max-width: 75ch; margin: .5em 0; }
nav { margin: 1em 0; display: flex; flex-wrap: wrap; gap: .3em 1.1em; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.soft, figcaption { color: var(--soft); font-size: .92em; }
figure { margin: 1em 0 1.6em; } figcaption { margin-top: .4em; max-width: 75ch; }
img { max-width: 100%; height: auto; display: block; } .picture { overflow-x: auto; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
.wide.table { background: linear-gradient(to right, #fff 30%, #fff0), linear-gradient(to left, #fff 30%, #fff0) 100% 0,
  radial-gradient(farthest-side at 0 50%, #0003, #0000), radial-gradient(farthest-side at 100% 50%, #0003, #0000) 100% 0;
  background-repeat: no-repeat; background-size: 40px 100%, 40px 100%, 12px 100%, 12px 100%;
  background-attachment: local, local, scroll, scroll; }
table { border-spacing: 0; font-size: .88em; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .4em .6em; text-align: left; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); } tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 600; } td span { white-space: nowrap; }
.note { border-left: 4px solid #c77700; background: #fff8ec; padding: .6em 1em; max-width: 75ch; }
@media (max-width: 600px) { body { padding: 0 14px 40px; font-size: 15px; } h1 { font-size: 1.5em; }
  table, figcaption { font-size: .95em; } .picture img { max-width: none; width: calc(.8 * var(--width)); }
  tr > :first-child { position: sticky; left: 0; background: #fff; min-width: 8em; overflow-wrap: anywhere; }
  td span { white-space: normal; }
  nav::after { content: "Tables and figures wider than the screen scroll sideways."; color: var(--soft); font-size: .92em; } }
@media print { nav { display: none; } h2 { break-after: avoid; } figure, .wide { break-inside: avoid; } }
"""


def describe_runs(runs: dict[str, Path]) -> pd.DataFrame:
    """Return how each run was made: architecture, image size, folds, epochs, versions."""
    rows = {}
    for name, run in runs.items():
        config, notes = Run(run).config, Run(run).notes
        rows[name] = {
            "architecture": config.model.architecture,
            "image size": f"{config.model.image_height} × {config.model.image_width}",
            "reads": config.model.item,
            "weights from": _weights_source(config.model),
            "folds": f"{config.n_folds} by {config.fold_by}",
            "epochs": config.epochs,
            "keep_epoch": config.keep_epoch,
            "seed": config.seed,
            "commit": notes.versions.get("commit", "unknown"),
            "torch": notes.versions.get("torch", "unknown"),
        }
    return pd.DataFrame(rows).T.rename_axis("run")


def _weights_source(model: ModelConfig) -> str:
    """Return where a network's first weights came from: a file, timm, or none."""
    if model.weights_path:
        return Path(model.weights_path).name
    return "timm" if model.pretrained else "scratch"


class Page:
    """A page with sections of tables, figures and sentences."""

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self.sections: dict[str, list[str]] = {}

    def add(self, section: str, item: pd.DataFrame | Figure | str, caption: str = "") -> pd.DataFrame | Figure | str:
        """Add a table, a figure or a paragraph to a section, and return it for the notebook to show.

        Parameters
        ----------
        section : str
            Heading. Sections are ordered by their first item.
        caption : str
            Text under a figure or table.
        """
        self.sections.setdefault(section, []).append(_to_html(item, caption))
        return item

    def note(self, section: str, text: str) -> str:
        """Add a warning that must not be overlooked, print it, and return it."""
        self.sections.setdefault(section, []).append(f'<p class="note">{html.escape(text)}</p>')
        print(text)
        return text

    def to_html(self) -> str:
        """Return the complete page with its images and style."""
        anchors = {name: f"s{number}" for number, name in enumerate(self.sections)}
        links = "".join(f'<a href="#{anchor}">{html.escape(name)}</a>' for name, anchor in anchors.items())
        parts = (f'<h2 id="{anchors[name]}">{html.escape(name)}</h2>{"".join(items)}' for name, items in self.sections.items())
        title, subtitle = html.escape(self.title), html.escape(self.subtitle)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
            f'<p class="soft">{subtitle}</p><nav>{links}</nav>{"".join(parts)}</body></html>\n'
        )

    def write(self, path: str | Path) -> Path:
        """Write the complete page or nothing.

        Raises
        ------
        KitError
            If it is larger than 10 MB.
        """
        content = self.to_html().encode(errors="replace")  # a folder's name may not be valid Unicode
        if len(content) > LARGEST:
            raise KitError(f"The report has {len(content) / 1e6:.1f} MB, more than 10: name fewer run_dirs.")
        with write_atomic(path) as temporary:
            temporary.write_bytes(content)
        return Path(path)


def _to_html(item: pd.DataFrame | Figure | str, caption: str) -> str:
    """Return an item and its caption as HTML."""
    if isinstance(item, str):
        return f"<p>{html.escape(item)}</p>"
    if isinstance(item, Figure):
        body = _picture(item, caption)
    elif isinstance(item, pd.DataFrame):
        body = f'<div class="wide table">{_table(item)}</div>'
    else:
        raise TypeError(f"A page shows tables, figures and text, not {type(item).__name__}.")
    return f"<figure>{body}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _picture(figure: Figure, caption: str) -> str:
    """Return a figure as an embedded PNG."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=DPI)
        data = base64.b64encode(file.getvalue()).decode()
    width = f'style="--width: {figure.get_figwidth() * DPI:.0f}px"'
    picture = f'<img alt="{html.escape(caption, quote=True)}" {width} src="data:image/png;base64,{data}">'
    return f'<div class="picture">{picture}</div>'


def _table(table: pd.DataFrame) -> str:
    """Return a table as HTML, with its index unless it only counts the rows."""
    shown = table.astype(object).where(table.notna(), "").rename_axis(index=None, columns=table.index.name)
    with pd.option_context("display.max_colwidth", None):
        cells = shown.to_html(index=not isinstance(table.index, pd.RangeIndex), float_format="{:.4g}".format, border=0)
    return BOUNDS.sub(r"<span>\g<0></span>", cells)
