"""The ``cossim`` command: parsing and printing, nothing else."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cossim_fast._extras import require

HEALTHY, FINDING, BAD_INPUT = 0, 1, 2


def main() -> None:
    """Run the command; the exit status says what was found."""
    try:
        app = _build()
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_INPUT)
    app()


def _build() -> Any:
    typer = require("typer", extra="cli")
    console_module = require("rich.console", extra="cli")
    app = typer.Typer(add_completion=False, no_args_is_help=True)

    @app.callback()  # type: ignore[untyped-decorator]
    def cossim() -> None:
        """Cosine similarity of embeddings."""

    @app.command()  # type: ignore[untyped-decorator]
    def diagnose(
        embeddings: Annotated[
            Path,
            typer.Argument(help="(n, d) in .npy, .npz, .pt, .safetensors or .parquet"),
        ],
        labels: Annotated[Path | None, typer.Option(help="n labels, in the same formats")] = None,
        html: Annotated[Path | None, typer.Option(help="write a self-contained report")] = None,
        key: Annotated[str | None, typer.Option(help="which array of the file")] = None,
        sample: Annotated[int | None, typer.Option(help="rows whose pairs are counted")] = None,
        progress: Annotated[bool, typer.Option(help="show a bar")] = sys.stderr.isatty(),
    ) -> None:
        """Say whether embeddings have collapsed: exit 0 healthy, 1 a finding, 2 bad input."""
        from cossim_fast import diagnose as room  # noqa: PLC0415
        from cossim_fast.diagnose import files  # noqa: PLC0415

        console = console_module.Console(soft_wrap=True, highlight=False)
        try:
            x = files.load(embeddings, key=key)
            y = None if labels is None else files.load(labels, ndim=1)
            report = room.embeddings(x, y, sample=sample, progress=progress)
            if html is not None:
                report.to_html(html, title=embeddings.name)
        except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
            console_module.Console(stderr=True, soft_wrap=True).print(
                f"cossim: {error}", markup=False, highlight=False
            )
            raise typer.Exit(BAD_INPUT) from error
        style = "green" if report.verdict == "healthy" else "red"
        first, _, rest = str(report).partition("\n")
        console.print(first, style=f"bold {style}", markup=False)
        console.print(rest, markup=False)
        if html is not None:
            console.print(f"\nwrote {html}", markup=False)
        raise typer.Exit(HEALTHY if report.verdict == "healthy" else FINDING)

    return app
