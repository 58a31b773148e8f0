"""README: its code runs, its names exist, its figures are those that were measured.

And the pages: their links lead somewhere.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cossim_fast

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_every_public_name_is_in_the_table() -> None:
    for name in set(cossim_fast.__all__) - {"Explanation", "__version__"}:
        assert re.search(rf"^\| `{name}[(.]", README, flags=re.MULTILINE), name


def test_figures_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "report.py", "check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^()\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_file_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = text.partition("## Rooms")[2].partition("\n## ")[0]
    there = {
        path.name
        for folder in ("cossim_fast", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    named = set(re.findall(r"(\w+\.py)\b", rooms))
    assert named
    assert named <= there, named - there
