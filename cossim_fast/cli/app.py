"""All commands under one name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cossim_fast import __version__
from cossim_fast._escaped import escaped
from cossim_fast.cli import bench, diagnose, index, info, join, search
from cossim_fast.cli.terminal import UsageError, one_line_errors


@contextmanager
def _handled() -> Iterator[None]:
    """Handle what no command has: help that cannot be printed, for instance.

    The words of an error of usage that the user wrote are shown as in all other errors.
    """
    try:
        with one_line_errors():
            yield
    except UsageError as error:
        if type(error).show is UsageError.show:  # others show help, which has lines
            error.message = escaped(error.message)
        raise


class _Commands(TyperGroup):
    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _handled():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _handled():
            return super().invoke(ctx)


app = typer.Typer(
    name="cossim",
    cls=_Commands,
    help="Cosine similarity of embeddings: exact search, joins, and a diagnosis.",
    epilog="cossim COMMAND --help shows an example.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cossim_fast {__version__}")
        raise typer.Exit


@app.callback()
def _cossim(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command(short_help="Find the nearest rows of every query.", epilog=search.EXAMPLE)(search.topk)
app.command(
    short_help="Find every pair of rows that reaches a threshold.", epilog=join.PAIRS_EXAMPLE
)(join.pairs)
app.command(short_help="Drop rows that are similar to another.", epilog=join.DEDUP_EXAMPLE)(
    join.dedup
)
app.add_typer(index.app)
app.command(short_help="Check whether embeddings have collapsed.", epilog=diagnose.EXAMPLE)(
    diagnose.diagnose
)
app.command(short_help="Compare times with plain torch.", epilog=bench.EXAMPLE)(bench.bench)
app.command(short_help="Show versions and what this machine uses.", epilog=info.EXAMPLE)(info.info)
