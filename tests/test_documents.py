"""Facts about README.md and docs: they are short enough to read, and their links and commands lead somewhere."""

import re
from pathlib import Path

import pytest

from utils.runs.recipes import RECIPES
from utils.runs.settings import KINDS, parse_recipe

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONGEST_LINE = 120
LONGEST_README = 150


def anchors(path):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_fit_a_screen(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > LONGEST_LINE]
    assert path.name != "README.md" or len(lines) <= LONGEST_README


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DOCUMENTS:
        named = {name for code in code_of(path) for name in re.findall(r"^make ([a-z-]+)", code, re.MULTILINE)}
        assert named <= targets, path


def test_benchmarks_and_modules_that_commands_name_exist():
    for path in DOCUMENTS:
        for module in re.findall(r"python -m ((?:utils|benchmarks)(?:\.\w+)*)", path.read_text(encoding="utf-8")):
            file = ROOT / module.replace(".", "/")
            assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), (path, module)


def test_recipes_are_described_as_they_are():
    text = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    for name, recipe in RECIPES.items():
        hours = f" ({recipe.hours:g} h)" if recipe.hours else ""
        assert f"`{name}`{hours}: {recipe.purpose}. After: {recipe.source}. Measured: {recipe.measured}." in text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_settings_that_a_page_gives_to_recipe_exist(path):
    commands = re.findall(r"-p recipe (?:\"([^\"]+)\"|(\S+))", path.read_text(encoding="utf-8"))
    for quoted, bare in commands:
        name, _, problems = parse_recipe(quoted or bare.rstrip(",)`"))
        assert not problems, (name, problems)
    if path.name == "training.md":
        named = {name for code in code_of(path) for name in re.findall(r"(\w+)=", code)}
        assert commands and named - {"name"} <= set(KINDS)


def code_of(path):
    """Code of a page: blocks, and what stands between backticks."""
    text = path.read_text(encoding="utf-8")
    return re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
