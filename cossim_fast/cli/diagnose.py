"""`cossim diagnose`: have the embeddings collapsed?"""

from pathlib import Path
from typing import Annotated

import typer

from cossim_fast import diagnose as room
from cossim_fast import files
from cossim_fast._escaped import escaped
from cossim_fast.cli import inputs, outputs
from cossim_fast.cli.terminal import FINDING, bar_wanted, console, note, one_line_errors

EXAMPLE = "Example: cossim diagnose embeddings.npy --html report.html"


def diagnose(
    embeddings: inputs.Embeddings,
    labels: Annotated[Path | None, typer.Option(help="n labels, in the same formats.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained report.")] = None,
    key: inputs.Key = None,
    format: inputs.Format = None,
    sample: Annotated[int | None, typer.Option(help="Rows whose pairs are counted.")] = None,
    progress: inputs.Progress = None,
) -> None:
    """Check whether embeddings have collapsed: exit 0 healthy, 1 a finding, 2 bad input."""
    with one_line_errors():
        if html is not None:
            outputs.check_place(html, (embeddings, labels))
        x = files.load(embeddings, key=key, format=format, note=note)
        y = None if labels is None else files.load(labels, ndim=1)
        report = room.embeddings(x, y, sample=sample, progress=bar_wanted(progress))
        if html is not None:
            report.to_html(html, title=embeddings.name)
    shown = console(soft_wrap=True)
    healthy = report.verdict == "healthy"
    first, _, rest = str(report).partition("\n")
    shown.print(first, style=f"bold {'green' if healthy else 'red'}")
    shown.print(rest)
    if html is not None:
        shown.print(f"\nwrote {escaped(str(html))}")
    raise typer.Exit(0 if healthy else FINDING)
