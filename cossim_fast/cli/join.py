"""`cossim pairs` and `cossim dedup`: similar rows of one set."""

from typing import Annotated, Any

import numpy as np
import typer

import cossim_fast
from cossim_fast.cli import checkpoints, cluster, inputs, outputs
from cossim_fast.cli.spool import Spool
from cossim_fast.cli.terminal import bar_wanted, note, number, one_line_errors
from cossim_fast.retrieval import Pairs, TooManyPairsError
from cossim_fast.retrieval.resumable import JoinBlocks, JoinCheckpoint

PAIRS_EXAMPLE = "Example: cossim pairs embeddings.npy --threshold 0.9 -o pairs.parquet"
DEDUP_EXAMPLE = "Example: cossim dedup embeddings.npy --threshold 0.95 -o rows.parquet"

Threshold = Annotated[float, typer.Option(help="Least cosine of a pair, -1 to 1.")]


def pairs(
    embeddings: inputs.Embeddings,
    threshold: Threshold = 0.9,
    output: outputs.Output = None,
    texts: inputs.Texts = None,
    ids: inputs.Ids = None,
    ids_key: inputs.IdsKey = None,
    max_pairs: Annotated[
        int | None, typer.Option(min=0, help="Stop with an error if there are more.")
    ] = None,
    key: inputs.Key = None,
    format: inputs.Format = None,
    skip_nan: inputs.SkipNan = False,
    screen: inputs.Screen = "auto",
    show: outputs.Show = 20,
    checkpoint: inputs.Checkpoint = None,
    progress: inputs.Progress = None,
    ray: cluster.Ray = None,
    plan: cluster.ShowPlan = False,
    id_column: cluster.IdColumn = None,
    cpus_per_task: cluster.CpusPerTask = 1,
    rows_per_task: cluster.RowsPerTask = None,
) -> None:
    """Find every pair of rows whose cosine is at least the threshold, exactly.

    Writes one line for each pair, i < j: i, j, score; with ids, id_i and id_j in place of i and j.
    With --ray, into a folder.
    """
    if cluster.took(
        "pairs_above", embeddings, ray=ray, plan=plan, output=output, progress=progress,
        local={
            "texts": texts, "checkpoint": checkpoint, "skip_nan": skip_nan, "ids": ids,
            "ids_key": ids_key, "format": format,
        },
        cluster={"id_column": id_column, "rows_per_task": rows_per_task},
        threshold=threshold, max_pairs=max_pairs, column=key, screen=screen,
        cpus_per_task=cpus_per_task,
    ):  # fmt: skip
        return
    with one_line_errors():
        outputs.check(output, (embeddings, texts, ids))
    place = checkpoints.place(output, checkpoint)
    with (
        one_line_errors(place),
        checkpoints.alone(
            JoinCheckpoint(place, checkpoints.files(embeddings=(embeddings, key))), output
        ) as kept,
    ):
        rows = inputs.embeddings(embeddings, key=key, skip_nan=skip_nan, format=format)
        names = inputs.row_ids(ids, len(rows), key=ids_key, rows=embeddings)
        shown = inputs.texts(texts, len(rows))
        blocks = JoinBlocks(
            rows,
            threshold=threshold,
            screen=screen,
            max_pairs=max_pairs,
            progress=bar_wanted(progress),
            kept=kept,
        )
        try:
            if place is None:
                count = outputs.stream(
                    (_columns(some, names, shown) for some in blocks.blocks()), show
                )
            else:
                with Spool(place, kept.beside, double=blocks.double) as spool:
                    for some in blocks.blocks(spool.count):
                        spool.add(some)
                        kept.beside = spool.metadata()
                    outputs.write(output, _columns(spool.pairs(), names, shown), show)
                    kept.remove()
                count = spool.count
        except TooManyPairsError as error:
            fix = "" if error.suggested is None else f"; --threshold {error.suggested:.4f} may do"
            raise ValueError(
                f"more than {max_pairs} pairs reach {number(threshold)}{fix}"
            ) from error
    wrote = "" if output is None else f"wrote {output}: "
    note(f"{wrote}{count} pairs of {len(rows)} rows reach {number(threshold)}")


def _columns(
    pairs: Pairs, ids: np.ndarray[Any, Any] | None, texts: list[str] | None
) -> outputs.Columns:
    """One line for each pair."""
    i, j, scores = (np.asarray(column) for column in pairs)
    if ids is None:
        columns: dict[str, Any] = {"i": i, "j": j, "score": scores}
    else:
        columns = {
            "id_i": outputs.looked_up(ids, i),
            "id_j": outputs.looked_up(ids, j),
            "score": scores,
        }
    if texts is not None:
        columns |= {"text_i": outputs.Texts(texts, i), "text_j": outputs.Texts(texts, j)}
    return columns


def dedup(
    embeddings: inputs.Embeddings,
    threshold: Threshold = 0.95,
    output: outputs.Output = None,
    texts: inputs.Texts = None,
    ids: inputs.Ids = None,
    ids_key: inputs.IdsKey = None,
    keep: Annotated[
        str,
        typer.Option(help="Which of similar rows: first, last, or with --ray column:NAME."),
    ] = "first",
    key: inputs.Key = None,
    format: inputs.Format = None,
    skip_nan: inputs.SkipNan = False,
    screen: inputs.Screen = "auto",
    show: outputs.Show = 20,
    progress: inputs.Progress = None,
    ray: cluster.Ray = None,
    plan: cluster.ShowPlan = False,
    id_column: cluster.IdColumn = None,
    cpus_per_task: cluster.CpusPerTask = 1,
    rows_per_task: cluster.RowsPerTask = None,
) -> None:
    """Drop every row whose cosine to a row kept before it reaches the threshold.

    Shows the dropped rows: row, kept_row (the kept row it is similar to), score. An output file has
    all rows; a kept row is its own kept_row, and has no score. With ids: id and kept_id. With
    --ray, into a folder.
    """
    if cluster.took(
        "deduplicate", embeddings, ray=ray, plan=plan, output=output, progress=progress,
        local={
            "texts": texts, "skip_nan": skip_nan, "ids": ids, "ids_key": ids_key, "format": format,
        },
        cluster={"id_column": id_column, "rows_per_task": rows_per_task},
        threshold=threshold, keep=keep, column=key, screen=screen, cpus_per_task=cpus_per_task,
    ):  # fmt: skip
        return
    with one_line_errors():
        outputs.check(output, (embeddings, texts, ids))
        rows = inputs.embeddings(embeddings, key=key, skip_nan=skip_nan, format=format)
        names = inputs.row_ids(ids, len(rows), key=ids_key, rows=embeddings)
        shown = inputs.texts(texts, len(rows))
        found = cossim_fast.deduplicate(
            rows, threshold, keep=keep, screen=screen, progress=bar_wanted(progress)
        )
        dropped = np.asarray(found.dropped)
        stands = np.arange(len(rows), dtype=np.int64)
        scores = np.full(len(rows), np.nan, np.float32)
        scores = scores.astype(np.asarray(found.scores).dtype)
        stands[dropped] = np.asarray(found.representatives)
        scores[dropped] = np.asarray(found.scores)
        listed = dropped if output is None else np.arange(len(rows), dtype=np.int64)
        kept = stands[listed]
        columns: dict[str, Any] = (
            {"row": listed, "kept_row": kept}
            if names is None
            else {"id": names[listed], "kept_id": names[kept]}
        )
        columns["score"] = scores[listed]
        if shown is not None:
            columns["text"] = outputs.Texts(shown, listed)
            columns["kept_text"] = outputs.Texts(shown, kept)
        outputs.write(output, columns, show)
    wrote = "" if output is None else f"wrote {output}: "
    note(f"{wrote}{len(found.kept)} of {len(rows)} rows kept, {len(dropped)} dropped")
