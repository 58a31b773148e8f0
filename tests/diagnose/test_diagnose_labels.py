"""Whatever classes are called, pictures and pages show it as plain text, without a warning."""

import io
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import font_manager

from cossim_fast import diagnose
from cossim_fast.diagnose import labels, plots
from html_page import Resources

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
# Each name, and how it is drawn where no font but matplotlib's own is there.
NAMES = {
    r"$\frac{$": r"$\frac{$",
    "$x^2$": "$x^2$",
    "a$b$c": "a$b$c",
    r"\$5 & 10%_#{}": r"\$5 & 10%_#{}",
    "_under": "_under",
    "": "",
    "naïve Ελληνικά": "naïve Ελληνικά",
    "中文": r"\u4e2d\u6587",
    "🪿": r"\U0001fabf",
    "half \ud800": r"half \ud800",
    "\x1b[31mred": r"\x1b[31mred",
    "\u202eabc\u2028": r"\u202eabc\u2028",
    "two\nlines": r"two\x0alines",
    "x" * 40 + "end": "x" * 16 + "..." + "x" * 10 + "end",
    "<b onload=alert(1)>": "<b onload=alert(1)>",
    "中" * 30: (r"\u4e2d" * 9)[:16] + "..." + (r"\u4e2d" * 9)[-13:],
}


@pytest.fixture
def own_fonts(monkeypatch):
    """No fonts but those that come with matplotlib, on every machine."""
    kept = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", kept)


def report_of(name):
    return diagnose.embeddings(X, np.array([name, "other"] * 20, dtype=object))


def drawn(report):
    """The names in the legend, after a picture was made without a warning."""
    figure = plots.pca(report)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        figure.savefig(io.BytesIO(), format="png")
        figure.savefig(io.BytesIO(), format="svg")
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_drawn_as_it_is(name, own_fonts, caplog):
    assert sorted(drawn(report_of(name))) == sorted([NAMES[name], "other"])
    assert caplog.records == []  # the search for fonts says nothing either


def test_mathematics_is_not_read(own_fonts):
    """What is drawn has the width of its letters, not that of a formula."""
    figure = plots.pca(report_of("$x^2$"))
    figure.savefig(io.BytesIO(), format="png")
    shown, plain = figure.axes[0].get_legend().get_texts()
    if shown.get_text() == "other":
        shown, plain = plain, shown
    width = shown.get_window_extent().width
    shown.set_parse_math(True)
    assert width > 1.3 * shown.get_window_extent().width


def test_another_font_is_taken_for_what_the_first_lacks(own_fonts):
    first, second = (
        font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=[family])))
        for family in ("sans-serif", "STIXGeneral")
    )
    beyond = next(
        chr(code)
        for code in second.get_charmap()
        if chr(code).isalpha() and not first.get_char_index(code)
    )
    report = report_of(f"a{beyond}")
    assert f"a{beyond}" in drawn(report)
    families = plots.pca(report).axes[0].get_legend().get_texts()[0].get_fontfamily()
    assert families[0] == "sans-serif"
    assert len(families) > 1


def test_a_font_that_cannot_be_drawn_with_is_left_out(tmp_path):
    (tmp_path / "font.ttf").write_bytes(b"no font")
    for path in (tmp_path / "font.ttf", tmp_path / "none.ttf"):
        assert labels._drawn_by(font_manager, str(path), {"a"}) == set()


def test_a_user_who_draws_with_tex_gets_plain_names(own_fonts):
    with matplotlib.rc_context({"text.usetex": True}):
        legend = plots.pca(report_of("100 % {")).axes[0].get_legend()
    assert not any(text.get_usetex() for text in legend.get_texts())


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_page_is_written_whatever_classes_and_title_are_called(name, own_fonts, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = report_of(name).to_html(tmp_path / "page.html", title=name)
    text = path.read_bytes().decode("utf-8")
    page = Resources()
    page.feed(text)
    assert set(page.tags) == set(TAGS)
    assert page.links == []
    assert page.images == 5
    assert '<meta charset="utf-8">' in text[:200]


TAGS = [
    "html", "head", "meta", "title", "style", "body", "h1", "h3", "code", "p", "b", "table", "tr",
    "td", "div", "img",
]  # fmt: skip


@pytest.mark.parametrize(
    "title", ["</title><script>alert(1)</script>", '"><img src=x onerror=y>', "&lt;", "\x00\x9b"]
)
def test_a_title_is_text(title, tmp_path):
    path = diagnose.embeddings(torch.zeros(5, 3)).to_html(tmp_path / "page.html", title=title)
    page = Resources()
    text = path.read_text(encoding="utf-8")
    page.feed(text)
    assert set(page.tags) == set(TAGS) - {"img"}
    assert not {"\x00", "\x9b"} & set(text)


def test_a_finding_is_text():
    finding = diagnose.notes.Finding("<i>", "a\x1b[2J</p>\u202e", "b\ud800")
    note = diagnose.notes.Note("<t>\x07", (finding, finding), ((("<td>", "\x9b"),),), ("<r>\x85",))
    for text in (diagnose.notes.as_text(note), diagnose.notes.as_html(note)):
        assert text.replace("\n", "").isprintable()
    page = Resources()
    page.feed(diagnose.notes.as_html(note))
    assert set(page.tags) == {"h3", "code", "p", "b", "table", "tr", "td"}
    assert r"a\x1b[2J</p>\u202e" in " ".join(diagnose.notes.as_text(note).split())
