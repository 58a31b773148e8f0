"""`topk`: the exact k best rows of a corpus that is looked at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks, _ops
from cossim_fast._as_one import as_one
from cossim_fast._threads import one_thread_after_fork
from cossim_fast.retrieval.nearest import filtered
from cossim_fast.retrieval.nearest.allowed import oracle_among
from cossim_fast.retrieval.nearest.batches import Batches
from cossim_fast.retrieval.nearest.checkpoint import SearchCheckpoint
from cossim_fast.retrieval.nearest.filtered import is_coded, screen_for
from cossim_fast.retrieval.nearest.gpu import device_oracle, search_on_device
from cossim_fast.retrieval.nearest.streamed import search_stream, stream_oracle
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import CertifiedTopK, TopK, assemble, oracle_of
from cossim_fast.retrieval.screening.codes import centre_of, encode
from cossim_fast.retrieval.storage.corpus import ArrayCorpus, open_corpus


@as_one
def topk(
    queries: Any,
    corpus: Any,
    k: int,
    *,
    screen: str = "auto",
    certify: bool = False,
    where: Any = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> TopK | CertifiedTopK:
    """Find the k rows of a corpus with the largest cosine to each query, exactly.

    The score of a row is <q, x> / (|q| |x|) in float64, summed in one fixed order, and 0 where
    either is zero. Rows are ranked by score, equal scores by position. A cheap screen with a proven
    error bound only decides which rows need not be scored (Cauchy and Schwarz on int8 codes; see
    `cossim_fast.retrieval.screening.screens`). So the result is that of float64 brute force, with
    the same bits for any batch, threads, tiles and screen.

    Args:
        queries: (q, d) tensor or array of float16, bfloat16, float32, float64 or int8; on CPU, or
            on a GPU. A corpus that is not there too is copied to it block by block: it may be
            larger than the GPU's memory.
        corpus: (n, d) likewise, for instance ``np.load(path, mmap_mode="r")``; or an iterator
            (something with ``__next__``) of blocks (n_i, d), whose rows are numbered consecutively.
        k: how many rows for each query, 1 to n.
        screen: ``"auto"``, ``"int8"``, ``"bfloat16"`` or ``"float32"``. ``"auto"`` takes the
            narrowest that is fast on this processor, and changes to a wider one where too many rows
            pass. For fewer than 64 queries it is float32, since coding the rows would not pay: a
            `CosineIndex` codes them once.
        certify: return a `Certificate` too.
        where: which rows may be returned, for access rights, tenants or metadata: a boolean array,
            (n,) for all queries or (q, n) for each; or numbers of rows, a sequence or a set of
            them, or q of these. The time is that of the rows that are left: others are not read,
            unless several queries may find most rows, but not the same. The corpus is an array
            then, on CPU, and there is no checkpoint. ``certificate.skipped`` counts among the rows
            that a query may find.
        progress: show a progress bar (needs tqdm: ``pip install 'cossim_fast[retrieval]'``).
        checkpoint: a file for what was found so far, written after each block of about 16 million
            numbers and deleted at the end. If it exists when the search starts, the search resumes
            from it. An iterator must then give the same rows again from the first, in blocks of any
            size. Rows that were searched before are verified by a digest of all their bytes (which
            reads 1.4 GB/s a thread, in the first run too), and not searched again. No other search
            can use the file meanwhile.

    Returns:
        TopK(scores, indices), (q, k) both: float32 (float64 if an input is float64) and int64,
        best first; arrays for array queries, tensors for tensors. With ``certify=True``,
        CertifiedTopK(scores, indices, certificate).

    Rows that hold NaN or an infinity are never returned, nor are others than those of ``where``;
    where fewer than k rows remain, the rest is NaN and -1, as is all of a query that holds them.
    Zero rows score 0. No gradients.

    Memory beyond inputs and results: 33 bytes for each candidate, of which there are about 2 k a
    query, twice while they are sorted; 8 d bytes a query, and up to 5 kB of each of 1024 while its
    candidates are counted; and for the block of rows that is searched its codes (16 MB), four tiles
    of scores (8 MB each) and a copy of a tile's codes (4 MB, which a thread keeps), for each thread
    that has queries of its own. If k is so large that all rows are ranked at once: three times
    16 MB. On a GPU: codes, a byte a number (none for a few queries), half a GB of scratch while
    they are made, and block maxima (256 MB). Of a corpus on the host, two blocks of 256 MB are on
    the GPU at a time, and as many in pinned memory; codes and maxima are those of one block, which
    is also copied if the queries' dtype is wider.

    Raises:
        TypeError: for integer, complex or sparse input.
        ValueError: for shapes that do not match, k out of range, an unknown screen, or a
            checkpoint of another search, or of other rows.
        InUseError: a ValueError, where another search uses this checkpoint.
        NotImplementedError: on a GPU that the kernels do not know, or without Triton.

    >>> corpus = torch.eye(4)
    >>> topk(torch.tensor([[0.0, 3.0, 4.0, 0.0]]), corpus, 2)
    TopK(scores=tensor([[0.8000, 0.6000]]), indices=tensor([[2, 1]]))
    """
    if isinstance(queries, Tensor) and queries.is_cuda:
        _checks.no_filter(where, "on a GPU")
        return _topk_on_device(queries, corpus, k, screen, certify, checkpoint, progress)
    if where is not None:
        if checkpoint is not None:
            _checks.no_filter(where, "with a checkpoint")
        return _topk_among(queries, corpus, k, screen, certify, where, progress)
    with SearchCheckpoint(checkpoint) as kept:
        result = topk_with_checkpoint(
            queries, corpus, k, screen, certify=certify, progress=progress, kept=kept
        )
        kept.remove()
    return result


def topk_with_checkpoint(
    queries: Any,
    corpus: Any,
    k: int,
    screen: str = "auto",
    *,
    certify: bool = False,
    progress: bool = False,
    kept: SearchCheckpoint,
) -> TopK | CertifiedTopK:
    """Search as `topk` does on CPU, but leave the checkpoint for the caller to remove.

    For a caller who stores the result: if that fails, the same search can be repeated at once.
    """
    one_thread_after_fork()
    asked = _checks.embedding_rows("queries", queries)
    source = open_corpus(corpus, asked.shape[1])
    _checks.same_width(asked.shape[1], source.d)
    k = _checks.number_of_neighbours(k, source.n)
    _checks.screen_name(screen)
    screen = screen_for(screen, len(asked))
    exact = torch.float64 in (asked.dtype, source.dtype)
    found = Batches(asked, k, screen, certify=certify, exact=exact)
    kept.begin(found, asked, source, k, certify=certify)
    with Progress(progress, "topk", source.n, found.seen) as bar:
        for rows in source.blocks(found.seen, kept.pass_again):
            if found.centre is None:
                found.centre = centre_of(rows)
            last = found.seen + len(rows) == source.n
            found.through(
                [encode(rows, found.centre, first=found.seen, codes=is_coded(screen))], last=last
            )
            kept.save(found, rows)
            bar.update(len(rows))
            del rows  # so that an iterator's block is freed before it makes the next
    _checks.number_of_neighbours(k, found.seen)
    double = torch.float64 in (asked.dtype, source.dtype)  # of an iterator it is known by now
    oracle = oracle_of(asked, source.rows) if isinstance(source, ArrayCorpus) else None
    return assemble(queries, found.best(), double=double, oracle=oracle)


def _topk_among(
    queries: Any, corpus: Any, k: int, screen: str, certify: bool, where: Any, progress: bool
) -> TopK | CertifiedTopK:
    """`topk` among the rows that ``where`` leaves to each query."""
    one_thread_after_fork()
    asked = _checks.embedding_rows("queries", queries)
    source = open_corpus(corpus, asked.shape[1])
    if not isinstance(source, ArrayCorpus):
        _checks.no_filter(where, "for an iterator")
    assert isinstance(source, ArrayCorpus)
    _checks.same_width(asked.shape[1], source.d)
    k = _checks.number_of_neighbours(k, source.n)
    _checks.screen_name(screen)
    each = filtered.selections(where, len(asked), source.n)
    double = torch.float64 in (asked.dtype, source.dtype)
    with Progress(progress, "topk", len(asked), unit="queries") as bar:
        best = filtered.search(
            asked, source, k, each, screen, certify=certify, exact=double, bar=bar
        )
    oracle = oracle_among(each, oracle_of(asked, source.rows))
    return assemble(queries, best, double=double, oracle=oracle)


def _topk_on_device(
    queries: Tensor,
    corpus: Any,
    k: int,
    screen: str,
    certify: bool,
    checkpoint: str | Path | None,
    progress: bool,
) -> TopK | CertifiedTopK:
    """`topk` where the queries are on a GPU: with their corpus, or it comes from the host."""
    asked = _checks.embedding_rows("queries", queries, "cuda")
    _checks.device_search(screen, checkpoint, asked.shape[1], _ops.kernels_miss(asked))
    if not (isinstance(corpus, Tensor) and corpus.is_cuda):
        return _topk_of_stream(asked, corpus, k, screen, certify, progress)
    rows = _checks.embedding_rows("corpus", corpus, "cuda")
    _checks.same_device(asked, rows)
    _checks.same_width(asked.shape[1], rows.shape[1])
    k = _checks.number_of_neighbours(k, rows.shape[0])
    dtype = torch.promote_types(asked.dtype, rows.dtype)  # holds both exactly
    asked, rows = asked.to(dtype), rows.to(dtype)
    oracle = device_oracle(asked, rows)
    best = search_on_device(asked, rows, k, certify=certify, screen=screen)
    return assemble(queries, best, double=dtype == torch.float64, oracle=oracle)


def _topk_of_stream(
    asked: Tensor, corpus: Any, k: int, screen: str, certify: bool, progress: bool
) -> TopK | CertifiedTopK:
    """`topk` where the queries are on a GPU, and the corpus is an array or iterator on the host."""
    one_thread_after_fork()
    source = open_corpus(corpus, asked.shape[1])
    _checks.same_width(asked.shape[1], source.d)
    k = _checks.number_of_neighbours(k, source.n)
    with Progress(progress, "topk", source.n) as bar:
        best = search_stream(asked, source, k, certify=certify, screen=screen, bar=bar)
    _checks.number_of_neighbours(k, best.rows)
    double = torch.float64 in (asked.dtype, source.dtype)  # of an iterator it is known by now
    oracle = stream_oracle(asked, source.rows) if isinstance(source, ArrayCorpus) else None
    return assemble(asked, best, double=double, oracle=oracle)
