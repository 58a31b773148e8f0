"""`cossim index`: rows that are coded once, kept in a file, and searched many times."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cossim_fast import CosineIndex
from cossim_fast.cli import inputs, outputs
from cossim_fast.cli.search import columns_of
from cossim_fast.cli.terminal import at_most, bar_wanted, note, one_line_errors

app = typer.Typer(
    name="index", help="Keep an index in a file, and search it.", no_args_is_help=True
)


@app.command(epilog="Example: cossim index build corpus.npy -o corpus.index")
def build(
    embeddings: inputs.Embeddings,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file of the index.")],
    ids: inputs.Ids = None,
    ids_key: inputs.IdsKey = None,
    key: inputs.Key = None,
    format: inputs.Format = None,
    skip_nan: inputs.SkipNan = False,
) -> None:
    """Write an index of EMBEDDINGS, vectors and codes, to a safetensors file.

    With ids, a search shows them in place of row numbers: strings, as the lines of a text file
    are, or whole numbers.
    """
    with one_line_errors():
        outputs.check_place(output, (embeddings, ids))
        rows = inputs.embeddings(embeddings, key=key, skip_nan=skip_nan, format=format)
        index = CosineIndex(rows, inputs.ids(ids, key=ids_key, rows=embeddings))
        index.save(output)
    note(f"wrote {output}: {len(index)} rows of {index.d}")


@app.command(epilog="Example: cossim index add corpus.index more.npy")
def add(
    index: Annotated[Path, typer.Argument(help="What `cossim index build` wrote.")],
    embeddings: inputs.Embeddings,
    ids: inputs.Ids = None,
    ids_key: inputs.IdsKey = None,
    key: inputs.Key = None,
    format: inputs.Format = None,
    skip_nan: inputs.SkipNan = False,
) -> None:
    """Add EMBEDDINGS to the rows of an INDEX, with ids if it has some.

    The file is replaced once the new one is on the disk: others may search the old one meanwhile.
    """
    with one_line_errors():
        outputs.check_place(index, (embeddings, ids))
        held = CosineIndex.load(index, mmap=False)
        rows = inputs.embeddings(embeddings, key=key, skip_nan=skip_nan, format=format)
        before = len(held)
        held.add(rows, inputs.ids(ids, key=ids_key, rows=embeddings))
        held.save(index)
    note(f"wrote {index}: {len(held)} rows of {held.d}, {len(held) - before} of them new")


@app.command(epilog="Example: cossim index search queries.npy corpus.index -k 10")
def search(
    queries: inputs.Queries,
    index: Annotated[Path, typer.Argument(help="What `cossim index build` wrote.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Rows for each query.")] = 10,
    output: outputs.Output = None,
    texts: inputs.Texts = None,
    query_texts: inputs.QueryTexts = None,
    key: inputs.Key = None,
    format: inputs.Format = None,
    skip_nan: inputs.SkipNan = False,
    show: outputs.Show = 20,
    progress: inputs.Progress = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Search on a GPU: cuda, or cuda:1.")
    ] = None,
) -> None:
    """Find the k rows of an INDEX with the largest cosine to each row of QUERIES, exactly.

    Writes the same lines as `cossim topk`, with the ids of the index if it has any.
    """
    with one_line_errors():
        outputs.check(output, (queries, index, texts, query_texts))
        held = CosineIndex.load(index, device=device)
        asked = inputs.embeddings(queries, key=key, skip_nan=skip_nan, format=format)
        shown, shown_queries = inputs.texts(texts, len(held)), inputs.texts(query_texts, len(asked))
        found = held.search(asked, at_most(k, len(held)), progress=bar_wanted(progress))
        columns = columns_of(
            found.scores, found.indices, shown, shown_queries, ids=_named(held.ids)
        )
        outputs.write(output, columns, show)
    if output is not None:
        note(f"wrote {output}: {outputs.length(columns)} rows for {len(asked)} queries")


def _named(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Ids that are more than the numbers of the rows."""
    return None if np.array_equal(ids, np.arange(len(ids))) else ids
