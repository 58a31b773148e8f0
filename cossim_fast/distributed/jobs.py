"""The public functions: files in, files out, by the tasks of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cossim_fast.distributed.arguments import (
    Paths,
    absolute,
    deduplication_of,
    join_of,
    search_of,
    threads_of,
)
from cossim_fast.distributed.driver import Engine, Job, work
from cossim_fast.distributed.links import Components
from cossim_fast.distributed.manifest import Manifest
from cossim_fast.distributed.places import joined, place_of
from cossim_fast.distributed.plan import RATE, Plan, plan_of
from cossim_fast.distributed.ray_engine import RayEngine


@dataclass(frozen=True)
class Finished:
    """What was written.

    Attributes:
        output: the folder, with ``part-*.parquet``, ``_SUCCESS`` and ``_manifest.json``.
        lines: of all parts.
        unfit: how many rows hold NaN or an infinity, by file: nothing is similar to them.
        blocks: how many the work was cut into.
        computed: how many of them were not there already.
    """

    output: str
    lines: int
    unfit: dict[str, int]
    blocks: int
    computed: int


def topk(
    queries: Paths,
    corpus: Paths,
    *,
    k: int = 10,
    output: str | Path,
    column: str | None = None,
    id_column: str | None = None,
    query_column: str | None = None,
    query_id_column: str | None = None,
    screen: str = "auto",
    queries_per_task: int | None = None,
    rows_per_task: int | None = None,
    address: str = "auto",
    cpus_per_task: int = 1,
    gpus_per_task: int = 0,
    resume: bool = True,
    progress: bool = False,
) -> Finished:
    """Find the k rows of files with the largest cosine to each query of files, exactly.

    The bits are those of `cossim_fast.topk` of the same rows, on processors of one kind.

    Args:
        queries: a file, a folder, a pattern (``"q/*.parquet"``), or a list of them; ``.parquet``,
            ``.npy`` or ``.safetensors``, on any file system that pyarrow or fsspec knows by its
            path. Workers read them too: they have to see the same files.
        corpus: likewise. Rows are numbered from the first row of the first file on; files of a
            folder are in the order of their names, part-2 before part-10.
        k: how many rows for each query, 1 to n.
        output: a folder, which workers see too. If a run of the same was interrupted there, its
            blocks are used.
        column: of ``.parquet`` files of the corpus, with the embeddings.
        id_column: with ids of the rows, which are written beside their numbers.
        query_column: of the queries; as of the corpus, if it is not given.
        query_id_column: likewise.
        screen: as for `cossim_fast.topk`.
        queries_per_task: most of a task, up to 65536, which is the default. For each so many
            queries the whole corpus is read once.
        rows_per_task: most of a task; by default so many that a task takes four minutes at
            400 G operations a second.
        address: of a Ray cluster: ``"auto"`` finds one that this machine belongs to, ``"local"``
            starts Ray on this machine and ends it afterwards, ``"host:port"``.
        cpus_per_task: processors of a task, and its threads.
        gpus_per_task: 0: see below.
        resume: go on where a run of the same was interrupted; False refuses a folder in which one
            began.
        progress: show a bar for each stage, by blocks (needs tqdm).

    Returns:
        `Finished`. The parts have one line for each row found, by query and rank: ``query``,
        ``query_id``, ``rank`` (from 1), ``row``, ``id``, ``score``; part i holds the i-th group of
        queries. Queries and rows that hold NaN or an infinity find and are found by nothing.

    Raises:
        ValueError: of an argument or a file, which it names with the row; or the output is of other
            inputs or parameters.
        ConnectionError: there is no cluster at the address.
        RuntimeError: no node has what a task needs, or workers died again and again.
        KeyboardInterrupt: what was computed stays; the same call goes on.

    A GPU is refused, since nothing tests yet that its workers return the bits of CPU workers.
    """
    threads = threads_of(cpus_per_task, gpus_per_task)
    job = search_of(
        queries,
        corpus,
        k=k,
        output=output,
        column=column,
        id_column=id_column,
        query_column=query_column,
        query_id_column=query_id_column,
        screen=screen,
        queries_per_task=queries_per_task,
        rows_per_task=rows_per_task,
        threads=threads,
    )
    return _done(job, output, address, threads, resume, progress)


def pairs_above(
    x: Paths,
    y: Paths | None = None,
    threshold: float = 0.8,
    *,
    output: str | Path,
    max_pairs: int | None = None,
    column: str | None = None,
    id_column: str | None = None,
    screen: str = "auto",
    rows_per_task: int | None = None,
    address: str = "auto",
    cpus_per_task: int = 1,
    gpus_per_task: int = 0,
    resume: bool = True,
    progress: bool = False,
) -> Finished:
    """Find every pair of rows of files whose cosine is at least a threshold, exactly.

    Pairs and bits are those of `cossim_fast.pairs_above` of the same rows, on processors of one
    kind.

    Args:
        x: files, as for `topk`.
        y: likewise, of the same columns. None joins x with itself: each pair once, i < j.
        threshold: -1 to 1.
        output: as for `topk`.
        max_pairs: stop with an error as soon as one block, or all together, have more.
        column: as for `topk`.
        id_column: as for `topk`.
        screen: as for `cossim_fast.pairs_above`.
        rows_per_task: of a panel. Every pair of panels is a task: by default of 2^27 numbers each,
            two minutes at 400 G operations a second.
        address: as for `topk`.
        cpus_per_task: as for `topk`.
        gpus_per_task: as for `topk`.
        resume: as for `topk`.
        progress: as for `topk`.

    Returns:
        `Finished`. Each part is of one block, (panel of x, panel of y), sorted by ``i``, then
        ``j``: ``i``, ``j``, ``id_i``, ``id_j``, ``score``. Parts of one panel of x follow each
        other by name, and no pair stands in two.

    Raises:
        TooManyPairsError: a ValueError, past ``max_pairs``.
        Exception: as for `topk`.
    """
    threads = threads_of(cpus_per_task, gpus_per_task)
    job = join_of(
        x,
        y,
        threshold,
        output=output,
        max_pairs=max_pairs,
        column=column,
        id_column=id_column,
        screen=screen,
        rows_per_task=rows_per_task,
        threads=threads,
    )
    return _done(job, output, address, threads, resume, progress)


def deduplicate(
    x: Paths,
    threshold: float,
    *,
    output: str | Path,
    keep: str = "first",
    max_pairs: int | None = None,
    column: str | None = None,
    id_column: str | None = None,
    screen: str = "auto",
    rows_per_task: int | None = None,
    address: str = "auto",
    cpus_per_task: int = 1,
    gpus_per_task: int = 0,
    resume: bool = True,
    progress: bool = False,
) -> Finished:
    """Drop every row of files that is similar to a row kept before it: greedy, exact.

    The answer is that of `cossim_fast.deduplicate` of the same rows. Rows that are equal byte by
    byte are joined once.

    Args:
        x: files, as for `topk`.
        threshold: -1 to 1.
        output: as for `topk`.
        keep: ``"first"``, ``"last"``, or ``"column:NAME"``: rows are visited from the largest value
            of that column of ``.parquet`` files to the smallest, equal ones as they stand.
        max_pairs: as for `pairs_above`; copies of rows make none.
        column: as for `topk`.
        id_column: as for `topk`.
        screen: as for `cossim_fast.pairs_above`.
        rows_per_task: as for `pairs_above`.
        address: as for `topk`.
        cpus_per_task: as for `topk`.
        gpus_per_task: as for `topk`.
        resume: as for `topk`.
        progress: as for `topk`.

    Returns:
        `Finished`. The parts have one line for each row: ``row``, ``kept_row`` (a kept row is its
        own), ``id``, ``kept_id``, ``score`` (NaN for a kept row).

    One worker replays all pairs: it needs 50 bytes a row, 40 more for its id, and 70 for each of up
    to 2^24 pairs at a time.

    Raises:
        Exception: as for `pairs_above`.
    """
    threads = threads_of(cpus_per_task, gpus_per_task)
    job = deduplication_of(
        x,
        threshold,
        output=output,
        keep=keep,
        max_pairs=max_pairs,
        column=column,
        id_column=id_column,
        screen=screen,
        rows_per_task=rows_per_task,
        threads=threads,
    )
    return _done(job, output, address, threads, resume, progress)


def connected_components(
    pairs: str | Path,
    *,
    output: str | Path,
    address: str = "auto",
    resume: bool = True,
    progress: bool = False,
) -> Finished:
    """Find the connected components of the pairs that `pairs_above` wrote.

    Another answer than `deduplicate`: the first and the last row of a chain of similar rows are in
    one component, and need not be similar.

    Args:
        pairs: the output of `pairs_above` of one set of rows; the files of the rows are there
            still, as they were.
        output: as for `topk`.
        address: as for `topk`.
        resume: as for `topk`.
        progress: as for `topk`.

    Returns:
        `Finished`. The parts have one line for each row: ``row``, ``id``, ``component``, which is
        the smallest number of a row in it.

    Raises:
        Exception: as for `topk`.
    """
    job = Components(absolute(output), absolute(pairs))
    return _done(job, output, address, 1, resume, progress)


def plan(operation: str, *data: Paths, rate: float = RATE, **options: Any) -> Plan:
    """Say what a call would take, reading nothing but what files say of themselves.

    Args:
        operation: ``"topk"``, ``"pairs_above"`` or ``"deduplicate"``.
        data: its files.
        rate: operations a second and core to count with.
        options: as for the function; where it runs and where it writes is not asked for.

    Returns:
        `Plan`: tasks, bytes that they read, memory, core-hours. ``print`` shows it as a table.

    Raises:
        ValueError: as of the function.

    >>> distributed.plan("topk", "q/*.parquet", "c/*.parquet", k=10)  # doctest: +SKIP
    """
    made: dict[str, Callable[..., Job]] = {
        "topk": search_of,
        "pairs_above": join_of,
        "deduplicate": deduplication_of,
    }
    if operation not in made:
        raise ValueError(f"expected operation to be one of {', '.join(made)}, got {operation!r}")
    threads = threads_of(options.pop("cpus_per_task", 1), options.pop("gpus_per_task", 0))
    for name in ("output", "address", "resume", "progress"):
        options.pop(name, None)
    return plan_of(made[operation](*data, threads=threads, **options), rate)


def _done(
    job: Job, output: str | Path, address: str, threads: int, resume: bool, progress: bool
) -> Finished:
    """Do what is missing of a job."""
    with RayEngine(address, cpus_per_task=threads) as engine:
        return run(job, absolute(output), engine, resume=resume, progress=progress)


def run(
    job: Job, output: str, engine: Engine, *, resume: bool = True, progress: bool = False
) -> Finished:
    """Do what is missing of a job, by any engine: one with ``run``, as `RayEngine` has.

    Args:
        job: a `Search`, a `Join`, a `Deduplication` or `Components`, of that output.
        output: the folder.
        engine: computes blocks.
        resume: as for `topk`.
        progress: likewise.
    """
    began = joined(output, "_manifest.json")
    resumed = place_of(began).exists(began)
    with Manifest.open(
        output,
        operation=job.operation,
        parameters=job.parameters(),
        inputs=job.inputs(),
        grid=job.grid(),
        resume=resume,
    ) as manifest:
        computed = work(job, manifest, engine, resumed=resumed, progress=progress)
    blocks = sum(stage.count for stage in job.stages())
    return Finished(output, job.lines, dict(job.unfit), blocks, computed)
