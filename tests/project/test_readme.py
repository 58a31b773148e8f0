"""README: its code runs, its figures are those that were measured, and it stays short.

And the pages: their links lead somewhere, and the index leads to each of them.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cossim_fast
import cossim_fast.losses

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_it_is_read_in_two_minutes() -> None:
    lines = README.splitlines()
    assert len(lines) < 140
    assert max(map(len, lines)) <= 300


def test_every_extra_for_users_is_in_the_table() -> None:
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    (extras,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS"
    )
    ours = {"adapters", "bench", "docs", "lint", "model", "peers", "test"}  # for our own work
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", README, flags=re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(rows))) == set(extras) - ours


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in set(cossim_fast.__all__) - {"Explanation", "__version__"}:
        assert re.search(rf"^\| `{name}[(.]", page, flags=re.MULTILINE), name
    shown = set(re.findall(r"^::: cossim_fast\.(\w+)$", page, flags=re.MULTILINE))
    assert shown == set(cossim_fast.__all__) - {"diagnose", "__version__"}
    for room in (cossim_fast.retrieval, cossim_fast.diagnose):
        short = room.__name__.removeprefix("cossim_fast.")
        here = set(re.findall(rf"^::: cossim_fast\.{short}\.(\w+)$", page, flags=re.MULTILINE))
        assert here | shown | {"plots"} >= set(room.__all__)
    # A loss stands in a module of its own name.
    losses = re.findall(r"^::: cossim_fast\.losses\.(?:(\w+)\.\1|([A-Z]\w+))$", page, re.MULTILINE)
    assert {one or other for one, other in losses} == set(cossim_fast.losses.__all__)


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    links = set(re.findall(r"\]\(([^()\s#]+)", index.read_text(encoding="utf-8")))
    assert {path.name for path in ROOT.glob("docs/*.md")} - {"index.md"} <= links


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


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/exact-search.md"])
def test_every_module_that_a_page_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    folders = ("cossim_fast", "kernels", "benchmarks", "tests", "examples")
    there = [f"/{path.as_posix()}" for one in folders for path in (ROOT / one).rglob("*.py")]
    named = set(re.findall(r"[\w/]+\.py\b", text))
    assert len(named) > 20
    absent = {one for one in named if not any(path.endswith(f"/{one}") for path in there)}
    assert not absent
