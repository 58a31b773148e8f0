"""`--ray` and `--plan` of `cossim topk`, `pairs` and `dedup`: the same by many machines."""

import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from cossim_fast import distributed
from cossim_fast.cli.terminal import bar_wanted, console, note, one_line_errors

# A path of pathlib's has one slash where the command was given two.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)", re.IGNORECASE)

Ray = Annotated[
    str | None,
    typer.Option(
        help="Work on a Ray cluster: auto, host:port, or local (Ray on this machine alone).",
        show_default=False,
    ),
]
ShowPlan = Annotated[
    bool, typer.Option("--plan", help="Show what --ray would take, and do nothing.")
]
IdColumn = Annotated[
    str | None, typer.Option(help="With --ray: a column of .parquet with ids, to be written.")
]
QueryIdColumn = Annotated[str | None, typer.Option(help="The same for the queries.")]
CpusPerTask = Annotated[int, typer.Option(min=1, help="With --ray: processors of a task.")]
RowsPerTask = Annotated[
    int | None, typer.Option(min=1, help="With --ray: most rows of the corpus of a task.")
]


def wanted(ray: str | None, plan: bool, local: dict[str, Any], cluster: dict[str, Any]) -> bool:
    """Whether to work on a cluster, or to plan that.

    Args:
        ray: the address.
        plan: whether to plan.
        local: options that only work without, as they were given.
        cluster: those that only work with it.

    Raises:
        ValueError: an option does not go with the others.
    """
    if ray is None and not plan:
        for name, value in cluster.items():
            if value:
                option = _option(name)
                raise ValueError(f"expected --ray with {option}; without it, leave {option} out")
        return False
    for name, value in local.items():
        if value:
            raise ValueError(f"expected no {_option(name)} with --ray and --plan, which do without")
    return True


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def took(
    operation: str,
    *data: Path,
    ray: str | None,
    plan: bool,
    output: Path | None,
    progress: bool | None,
    local: dict[str, Any],
    cluster: dict[str, Any],
    **options: Any,
) -> bool:
    """Do the work on a cluster, or show the plan, if either is asked for; whether it was.

    Args:
        operation: a public function of `distributed`.
        data: its files.
        ray: the address.
        plan: whether to show the plan.
        output: a folder.
        progress: whether to show bars.
        local: options that only work without, as they were given.
        cluster: options of the function that only work with it.
        options: others of the function.
    """
    with one_line_errors():
        asked = wanted(ray, plan, local, cluster)
    if asked:
        _work(operation, *data, ray=ray, plan=plan, output=output, progress=progress,
              **cluster, **options)  # fmt: skip
    return asked


def _work(
    operation: str,
    *data: Path,
    ray: str | None,
    plan: bool,
    output: Path | None,
    progress: bool | None,
    **options: Any,
) -> None:
    paths = [_given(path) for path in data]
    with one_line_errors():
        if plan:
            console().print(str(distributed.plan(operation, *paths, **options)))
            return
        if output is None:
            raise ValueError("expected -o FOLDER with --ray: results are written in parts")
    assert output is not None
    # Ray prints what it has to say of nodes that die.
    with one_line_errors(output), redirect_stdout(sys.stderr):
        function: Callable[..., distributed.Finished] = getattr(distributed, operation)
        found = function(
            *paths, output=_given(output), address=ray, progress=bar_wanted(progress), **options
        )
    for path, count in found.unfit.items():
        note(f"{count} rows of {path} hold NaN or an infinity: nothing is similar to them")
    note(
        f"wrote {output}: {found.lines} rows; {found.computed} of {found.blocks} blocks were "
        "computed" + ("" if found.computed == found.blocks else ", the others had been before")
    )


def _given(path: Path) -> str:
    """A path as the command was given it."""
    return _SCHEME.sub(r"\1://", str(path), count=1)
