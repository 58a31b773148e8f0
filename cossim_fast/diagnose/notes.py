"""The shape that both reports share: a finding first, then its evidence, then the facts."""

import html
import math
import textwrap
from dataclasses import dataclass

from cossim_fast._escaped import escaped

WIDTH = 79


@dataclass(frozen=True)
class Finding:
    """One cause: its name, the numbers that show it, what to do, and how many rows it explains."""

    name: str
    evidence: str
    advice: str
    rows: int = 0


class Findings:
    """What both reports say of their findings, the first of which is the main one."""

    findings: tuple[Finding, ...]

    @property
    def also(self) -> tuple[str, ...]:
        """The names of the further findings that hold."""
        return tuple(finding.name for finding in self.findings[1:])

    @property
    def evidence(self) -> str:
        """The numbers that show the main finding."""
        return self.findings[0].evidence

    @property
    def advice(self) -> str:
        """What to do about the main finding."""
        return self.findings[0].advice


@dataclass(frozen=True)
class Note:
    """What a report prints: a title, its findings, tables of facts, and remarks."""

    title: str
    findings: tuple[Finding, ...]
    tables: tuple[tuple[tuple[str, ...], ...], ...]
    remarks: tuple[str, ...] = ()


def as_text(note: Note) -> str:
    """Render a note for a terminal."""
    first, *others = note.findings
    lines = [escaped(f"{note.title}: {first.name}"), ""]
    lines += _wrap("why", sentence(first.evidence)) + _wrap("do", first.advice)
    for other in others:
        lines += _wrap("also", f"{other.name}: {other.evidence}")
    for remark in note.remarks:
        lines += _wrap("note", remark)
    for given in note.tables:
        table = [[escaped(cell) for cell in row] for row in given]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines.append("")
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  " + "   ".join(cells).rstrip())
    return "\n".join(lines)


def as_html(note: Note) -> str:
    """Render a note as an HTML fragment, for notebooks and the report."""
    first, *others = note.findings
    parts = [
        f"<h3>{html_text(note.title)}: <code>{html_text(first.name)}</code></h3>",
        f"<p>{html_text(sentence(first.evidence))}</p>",
        f"<p><b>What to do.</b> {html_text(first.advice)}</p>",
    ]
    parts += [
        f"<p>Also <code>{html_text(other.name)}</code>: {html_text(other.evidence)}</p>"
        for other in others
    ]
    parts += [f"<p>{html_text(remark)}</p>" for remark in note.remarks]
    for table in note.tables:
        rows = (
            "<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>"
            for row in table
        )
        parts.append("<table>" + "".join(rows) + "</table>")
    return "\n".join(parts)


def html_text(text: str) -> str:
    """A text as it stands in HTML, which has no controls; UTF-8 has no lone surrogates."""
    return html.escape(escaped(text))


def sentence(text: str) -> str:
    """Begin with a capital."""
    return text[:1].upper() + text[1:]


def number(value: float, digits: int = 4) -> str:
    """Format a figure to ``digits`` significant digits, without trailing noise."""
    if 10.0**digits <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def percent(share: float, digits: int = 3) -> str:
    """Format a share; what is left of rounding is nothing.

    >>> percent(0.5), percent(1.0, 2), percent(3e-17)
    ('50 %', '100 %', '0 %')
    """
    return f"{number(100 * share if share > 1e-10 else 0.0, digits)} %"


def cosine(value: float) -> str:
    """Format a cosine; near ±1 by its distance from it, which is what is left to see.

    >>> cosine(0.25), cosine(1.0), cosine(1 - 3e-9)
    ('0.2500', '1', '1 - 3e-09')
    """
    gap = 1 - abs(value)
    if math.isnan(value):
        return "not defined"
    if abs(gap) >= 5e-4:
        return f"{value:.4f}"
    if abs(gap) < 1e-15:
        return "1" if value > 0 else "-1"
    sign = "-" if (gap > 0) == (value > 0) else "+"
    return f"{'1' if value > 0 else '-1'} {sign} {abs(gap):.1g}"


def _wrap(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        escaped(text), WIDTH, initial_indent=f"  {label:<6}", subsequent_indent=" " * 8
    )
