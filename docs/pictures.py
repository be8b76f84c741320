"""Renew this folder's pictures of the demo: ``python docs/pictures.py`` after ``make demo``."""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 900, 1240  # px, of the report's top


def main() -> None:
    """Copy the demo's figure, and take a screenshot of the top of its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo_dir", type=Path, nargs="?", default=DOCS.parent / "outputs" / "demo")
    demo_dir = parser.parse_args().demo_dir.resolve()
    shutil.copyfile(demo_dir / "demo.png", DOCS / "demo.png")
    with sync_playwright() as started:
        installed = next(filter(None, map(shutil.which, BROWSERS)), None)  # None: the one of playwright install
        browser = started.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto((demo_dir / "report.html").as_uri())
        page.screenshot(path=DOCS / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
