"""`cossim topk`: the nearest rows of every query."""

from typing import Annotated, Any

import numpy as np
import typer

from cossim_fast.cli import checkpoints, cluster, inputs, outputs
from cossim_fast.cli.terminal import at_most, bar_wanted, note, one_line_errors
from cossim_fast.retrieval.resumable import SearchCheckpoint, topk_with_checkpoint

EXAMPLE = "Example: cossim topk queries.npy corpus.npy -k 10 -o nearest.parquet"


def topk(
    queries: inputs.Queries,
    corpus: inputs.Embeddings,
    k: Annotated[int, typer.Option("-k", min=1, help="Rows for each query.")] = 10,
    output: outputs.Output = None,
    texts: inputs.Texts = None,
    query_texts: inputs.QueryTexts = None,
    ids: inputs.Ids = None,
    ids_key: inputs.IdsKey = None,
    query_key: inputs.QueryKey = None,
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
    query_id_column: cluster.QueryIdColumn = None,
    cpus_per_task: cluster.CpusPerTask = 1,
    rows_per_task: cluster.RowsPerTask = None,
) -> None:
    """Find the k rows of CORPUS with the largest cosine to each row of QUERIES, exactly.

    Writes one line for each row found: query, rank, row, score; with ids, id in place of row. With
    --ray, into a folder.
    """
    if cluster.took(
        "topk", queries, corpus, ray=ray, plan=plan, output=output, progress=progress,
        local={
            "texts": texts, "query_texts": query_texts, "checkpoint": checkpoint,
            "skip_nan": skip_nan, "ids": ids, "ids_key": ids_key, "format": format,
        },
        cluster={
            "id_column": id_column, "query_id_column": query_id_column,
            "rows_per_task": rows_per_task,
        },
        k=k, column=key, query_column=query_key, screen=screen, cpus_per_task=cpus_per_task,
    ):  # fmt: skip
        return
    with one_line_errors():
        outputs.check(output, (queries, corpus, texts, query_texts, ids))
    place = checkpoints.place(output, checkpoint)
    given = {"queries": (queries, query_key), "corpus": (corpus, key)}
    with (
        one_line_errors(place),
        checkpoints.alone(SearchCheckpoint(place, checkpoints.files(**given)), output) as kept,
    ):
        asked = inputs.embeddings(queries, key=query_key, skip_nan=skip_nan, format=format)
        rows = inputs.embeddings(corpus, key=key, skip_nan=skip_nan, format=format)
        names = inputs.row_ids(ids, len(rows), key=ids_key, rows=corpus)
        shown = inputs.texts(texts, len(rows))
        shown_queries = inputs.texts(query_texts, len(asked))
        found = topk_with_checkpoint(
            asked, rows, at_most(k, len(rows)), screen, progress=bar_wanted(progress), kept=kept
        )
        columns = columns_of(found.scores, found.indices, shown, shown_queries, names=names)
        outputs.write(output, columns, show)
        kept.remove()
    if output is not None:
        note(f"wrote {output}: {outputs.length(columns)} rows for {len(asked)} queries")


def columns_of(
    scores: Any,
    found: Any,
    texts: list[str] | None,
    query_texts: list[str] | None,
    *,
    ids: np.ndarray[Any, Any] | None = None,
    names: np.ndarray[Any, Any] | None = None,
) -> outputs.Columns:
    """One line for each row that was found; queries that hold NaN find none.

    Args:
        scores: (q, k).
        found: (q, k) numbers of rows, or ids.
        texts: of the rows, in their order.
        query_texts: of the queries.
        ids: of the rows, in their order, where these were found; None where numbers were.
        names: of the rows, in their order, to be written in place of the numbers.
    """
    scores, found = np.asarray(scores), np.asarray(found)
    query, rank = np.nonzero(~np.isnan(scores))
    columns: dict[str, Any] = {
        "query": query,
        "rank": rank + 1,
        "row" if ids is None and names is None else "id": (
            found[query, rank] if names is None else names[found[query, rank]]
        ),
        "score": scores[query, rank],
    }
    if query_texts is not None:
        columns["query_text"] = outputs.Texts(query_texts, query)
    if texts is not None:
        rows = found[query, rank]
        if ids is not None:
            place = {name: row for row, name in enumerate(ids.tolist())}
            rows = np.array([place[name] for name in rows.tolist()], dtype=np.int64)
        columns["text"] = outputs.Texts(texts, rows)
    return columns
