"""README and docs: short, linked, for someone; the jobs know their commands, and `make docs-check` runs them."""

import re
from pathlib import Path

import pytest
from commands import PAGES, blocks, check, commands, lay_out, run, runnable
from conftest import ROOT

from d3hr_ray.results.render import anchor

TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "tests" / "golden" / "README.md"]
LINK = re.compile(r"(?<!`)\[[^\]]*\]\((?!https?://)([^)\s#]*)(?:#([^)\s]+))?\)")
LINES, WORDS = (200, 260), 2200  # of README.md: the length of those that people praise
RUN = [page for page in PAGES if page.name not in ("library.md", "own-data.md")]  # which have tests of their own


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {anchor(title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_the_readme_is_read_in_one_go():
    text = (ROOT / "README.md").read_text()
    assert LINES[0] <= len(text.splitlines()) <= LINES[1] and len(text.split()) <= WORDS


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=ids)
def test_a_page_says_who_it_is_for_and_the_readme_leads_to_it(page):
    assert page.read_text().startswith("For those who ") or page.read_text().startswith(("For those with ", "For "))
    assert f"(docs/{page.name})" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", TEXTS, ids=ids)
def test_every_link_leads_somewhere(page):
    for target, place in LINK.findall(page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name}: ({target})"
        assert not place or place in anchors(there), f"{page.name}: ({target}#{place})"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_the_jobs_know_every_flag(page):
    wrong = {f"line {block.line}": found for block in blocks(page) for w in commands(block.text) if (found := check(w))}
    assert not wrong


def test_the_readmes_figures_are_those_of_the_records():
    results = (ROOT / "docs" / "results.md").read_text().splitlines()
    figures = [line for line in (ROOT / "README.md").read_text().splitlines() if re.match(r"\|.* \| \d+\.\d \|", line)]
    assert len(figures) >= 3 and not [line for line in figures if line not in results]


@pytest.mark.docs
@pytest.mark.parametrize("page", RUN, ids=ids)
def test_the_commands_of_a_page_run_in_their_order(page, tmp_path):
    lay_out(tmp_path)
    for block in runnable(page):
        run(block, tmp_path)
