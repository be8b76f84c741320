"""PyPI's medip, run as its README says; by the Python of medip's own environment, so nothing of the kit is imported here.

medip crops but can't resize to a given size: it writes the breast at full resolution, so its row lacks a step of the others'.
"""

import argparse
from pathlib import Path

import medip

# The default preset, with what its own documentation offers to come near the other paths: a crop, 8 bits, no JSON beside.
CONFIG = """\
profile: png16_minmax_masked
roi:
  crop_policy: bbox
export:
  format: png8
  save_metadata_json: false
runtime:
  num_workers: {workers}
"""


def main() -> None:
    """Convert the first files of a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=8)
    given = parser.parse_args()
    config = _write_config(given.out, given.workers)
    summary = medip.run(_link_files(given.files, given.out, given.count), given.out / "pictures", config)
    if summary["failures"]:
        raise SystemExit(f"{len(summary['failures'])} of {summary['total']} images failed, first: {summary['failures'][0]}")


def _write_config(out: Path, workers: int) -> Path:
    path = out / "medip.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CONFIG.format(workers=workers), encoding="utf-8")
    return path


def _link_files(files: Path, out: Path, count: int) -> Path:
    """Make a folder with links to the first files, since medip takes whole folders."""
    folder = out / "inputs"
    folder.mkdir()
    for path in sorted(files.rglob("*.dcm"))[:count]:
        (folder / path.name).symlink_to(path.resolve())
    return folder


if __name__ == "__main__":
    main()
