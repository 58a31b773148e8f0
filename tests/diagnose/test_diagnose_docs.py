"""The pages on a cosine of 1: their snippets run, and both languages show the same ones."""

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("why-is-my-cosine-1.md", "why-is-my-cosine-1.zh.md")


def snippets(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_snippets_print_what_the_page_shows(page):
    code = "\n".join(snippets(page))
    test = doctest.DocTestParser().get_doctest(code, {}, page, page, 0)
    assert len(test.examples) > 40
    output = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test, out=output.append).failed == 0, "".join(output)


def test_both_languages_show_the_same_snippets():
    assert snippets(PAGES[0]) == snippets(PAGES[1])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 2
    for link in links:
        assert (DOCS / link).exists(), link
