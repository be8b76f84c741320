"""Table and picture of what `benchmarks.preprocessing` measured."""

from pathlib import Path
from statistics import median

LABELS = {
    "kit": "this kit",
    "usual": "usual (dicomsdl, full decode)",
    "pydicom": "pydicom + pylibjpeg",
    "medip": "medip 0.2.0 (no resize)",
}
COLORS = {"kit": "#1b7837", "usual": "#8c8c8c", "pydicom": "#6baed6", "medip": "#9970ab"}
CODEC_NAMES = {"jpeg2000": "JPEG 2000", "jpeg-lossless": "JPEG Lossless"}


def write_report(results: dict, out: Path) -> None:
    """Write preprocessing.md and preprocessing.png into ``out``."""
    cells = summarise(results["runs"])
    (out / "preprocessing.md").write_text(table(cells, results) + own_path(results), encoding="utf-8")
    plot(cells, out / "preprocessing.png")


def own_path(results: dict) -> str:
    """Return Markdown on where the kit's own path spends its time, beside the floor."""
    rows = results["stages"]
    stages = list(rows[0]["stages"])
    lines = [
        "",
        "The kit's own path on one core, per image: its time, the floor (reading the needed bytes and decoding just the needed",
        "levels), their ratio in interleaved rounds [lowest, highest], the share of the file that it reads, and the shares of",
        "its stages.",
        "",
        "| files | target | ms | floor, ms | ratio | read | " + " | ".join(stages) + " |",
        "|---" * (len(stages) + 6) + "|",
    ]
    for row in rows:
        ratio = _spread(row["ratios"], "{:.2f}", "{:.2f}")
        figures = [f"{row['ms']:.0f}", f"{row['floor_ms']:.0f}", ratio, f"{row['share_read']:.0%}"]
        figures += [f"{row['stages'][stage] / row['ms']:.0%}" for stage in stages]
        lines.append("| " + " | ".join([kind_name(row["kind"]), "{} × {}".format(*row["target"]), *figures]) + " |")
    return "\n".join(lines) + "\n"


def summarise(runs: list[dict]) -> list[dict]:
    """Sum up the rounds: one dict for each kind of file and target.

    Returns
    -------
    list of dict
        ``kind``, ``target``; ``paths``: for each path its ``images_per_s`` (one a round) and ``peak_mib``, or ``error``; and
        ``ratios``: kit over usual, one a round.
    """
    cells = []
    for kind, target in dict.fromkeys((row["kind"], tuple(row["target"])) for row in runs):
        paths = {}
        for path in LABELS:
            rows = [row for row in runs if (row["kind"], row["path"]) == (kind, path)]
            # A path that does not resize was run for one target, and serves all.
            paths[path] = _sum_up([row for row in rows if tuple(row["target"]) == target] or rows)
        cells.append({"kind": kind, "target": target, "paths": paths, "ratios": _ratios(runs, kind, target)})
    return cells


def table(cells: list[dict], results: dict) -> str:
    """Return the Markdown table."""
    machine = results["machine"]
    lines = [
        f"Images a second with {machine['workers']} processes on {machine['cpus']} CPUs ({machine['cpu']}): median of "
        f"{1 + max(row['round'] for row in results['runs'])} round(s), [lowest, highest], and peak memory of all processes.",
        "",
        "| files | target | " + " | ".join(LABELS.values()) + " | kit / usual |",
        "|---" * (len(LABELS) + 3) + "|",
    ]
    for cell in cells:
        row = [
            f"{kind_name(cell['kind'])}, {results['bits_per_pixel'][cell['kind']]:.1f} bits/px",
            "{} × {}".format(*cell["target"]),
        ]
        row += [_path_text(cell["paths"][path]) for path in LABELS]
        lines.append("| " + " | ".join([*row, _spread(cell["ratios"], "**{:.1f}×**", "{:.1f}")]) + " |")
    return "\n".join(lines) + "\n"


def plot(cells: list[dict], path: Path) -> None:
    """Draw images a second as horizontal bars on a log scale, a group for each kind of file and a panel for each target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    targets = list(dict.fromkeys(cell["target"] for cell in cells))
    figure, panels = plt.subplots(
        1, len(targets), figsize=(9, 4.6), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for panel, target in zip(panels[0], targets, strict=True):
        _draw_panel(panel, [cell for cell in cells if cell["target"] == target])
        panel.set_title("to {} × {}".format(*target), fontsize=11)
    figure.legend(*_legend(panels[0][0]), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def kind_name(kind: str) -> str:
    """Return a kind of file as a person writes it."""
    codec, size = kind.rsplit("-", 1)
    return f"{CODEC_NAMES[codec]}, {size.replace('x', ' × ')}"


def _draw_panel(panel, cells: list[dict]) -> None:
    for group, cell in enumerate(cells):
        for place, path in enumerate(LABELS):
            speeds = cell["paths"][path]["images_per_s"]
            if not speeds:
                continue
            y, speed = group + 0.2 * (place - 1.5), median(speeds)
            panel.barh(y, speed, 0.19, color=COLORS[path], label=LABELS[path])
            panel.plot([min(speeds), max(speeds)], [y, y], color="black", linewidth=0.8)
            text = (
                f"{speed:.3g}" if path != "kit" or not cell["ratios"] else f"{speed:.3g}   {median(cell['ratios']):.1f}× usual"
            )
            panel.annotate(text, (max(speeds), y), (3, 0), textcoords="offset points", va="center", fontsize=8)
    panel.set_yticks(range(len(cells)), [kind_name(cell["kind"]).replace(",", "\n") for cell in cells], fontsize=9)
    panel.set_ylim(len(cells) - 0.5, -0.5)
    panel.set_xscale("log")
    lowest = min(
        (min(path["images_per_s"]) for cell in cells for path in cell["paths"].values() if path["images_per_s"]), default=1
    )
    panel.set_xlim(left=lowest / 2)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("images/s (log scale)", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(panel) -> tuple[list, list]:
    handles, labels = panel.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    return list(unique.values()), list(unique)


def _sum_up(rows: list[dict]) -> dict:
    done = [row for row in rows if "error" not in row]
    return {
        "images_per_s": [row["images_per_s"] for row in done],
        "peak_mib": max((row["peak_mib"] for row in done), default=0),
        "error": next((row["error"] for row in rows if "error" in row), "") if not done else "",
    }


def _ratios(runs: list[dict], kind: str, target: tuple[int, int]) -> list[float]:
    """Kit over usual, within each round."""
    here = [row for row in runs if (row["kind"], tuple(row["target"])) == (kind, target) and "error" not in row]
    speeds = {(row["round"], row["path"]): row["images_per_s"] for row in here}
    rounds = sorted({number for number, _ in speeds})
    return [speeds[n, "kit"] / speeds[n, "usual"] for n in rounds if (n, "kit") in speeds and (n, "usual") in speeds]


def _path_text(summary: dict) -> str:
    if not summary["images_per_s"]:
        return summary["error"][:60]
    return f"{_spread(summary['images_per_s'], '{:.1f}', '{:.1f}')} {summary['peak_mib']:.0f} MiB"


def _spread(values: list[float], middle: str, end: str) -> str:
    if not values:
        return "–"
    return f"{middle.format(median(values))} [{end.format(min(values))}, {end.format(max(values))}]"
