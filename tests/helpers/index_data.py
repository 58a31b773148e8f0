"""What the tests of an index's files share: rows, a changed index, headers taken apart."""

import json

import numpy as np
import torch

from cossim_fast import CosineIndex
from cossim_fast.retrieval.storage import tensor_file


def rows(n, d=16, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


QUERIES = rows(7, seed=1)


def assert_same(found, other):
    for mine, theirs in zip(found, other, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def search_in_child(index, queries, answer):
    """Search and add in another process, where the folders of tests cannot be imported."""
    found = index.search(queries, 5, exclude=[0])
    index.add(queries)
    answer.send((found.scores.numpy(), found.indices.numpy(), len(index)))


def changed_index(path=None, *, strings=True):
    """Of several parts, with rows that are gone and rows that are not finite."""
    x = rows(400)
    x[390] = torch.nan
    ids = [("ü€" * (n % 5)) + str(n) for n in range(400)] if strings else None
    index = CosineIndex(x[:300], ids=ids and ids[:300], path=path)
    index.add(x[300:395], ids=ids and ids[300:395])
    index.add(x[395:], ids=ids and ids[395:])
    index.remove(index.ids[[2, 3, 310, 399]])
    return index


def taken_apart(raw):
    """The metadata and entries of a header, and what stands behind it."""
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    return entries.pop("__metadata__"), entries, raw[8 + length :]


def put_together(said, entries, data):
    """A file with a header whose checksum fits."""
    if isinstance(said, dict) and all(isinstance(key, str) for key in said):
        said = {**said, "header_crc32": _sum_of(said, entries)}
    header = json.dumps({"__metadata__": said, **entries}).encode()
    return len(header).to_bytes(8, "little") + header + data


def _sum_of(said, entries):
    return tensor_file._sum_of(said, entries)
