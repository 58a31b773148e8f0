"""Ids and excluded ids of every kind: taken as they are meant, or refused in one clear error."""

import warnings

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex
from hostile_values import dense

ROWS = dense()
N = len(ROWS)
WORDS = ["a", "", "a\0b", "a\0", "ü" * 100_000, "\ud800"]
NUMBERS = [5, -7, 0, 2**63 - 1, -(2**63), 1]


def masked(values):
    return np.ma.masked_array(values, [True] + [False] * (len(values) - 1))


# What gives the ids that are written beside it.
TAKEN = {
    "numbers": (NUMBERS, NUMBERS),
    "generator": ((number for number in NUMBERS), NUMBERS),
    "int64": (np.array(NUMBERS), NUMBERS),
    "other byte order": (np.array(NUMBERS, np.dtype(np.int64).newbyteorder()), NUMBERS),
    "numpy's numbers": ([np.int8(1), np.uint64(2), 3, np.int64(4), 5, 6], [1, 2, 3, 4, 5, 6]),
    "uint64": (np.arange(N, dtype=np.uint64), list(range(N))),
    "tensor": (torch.tensor(NUMBERS), NUMBERS),
    "int8 tensor": (torch.arange(N, dtype=torch.int8), list(range(N))),
    "numbers as objects": (np.array(NUMBERS, dtype=object), NUMBERS),
    "range": (range(N), list(range(N))),
    "nothing masked": (np.ma.masked_array(NUMBERS), NUMBERS),
    "words": (WORDS, WORDS),
    "words as objects": (np.array(WORDS, dtype=object), WORDS),
    "words of numpy": (np.array(list("abcdef")), list("abcdef")),
}
NOT_A_SEQUENCE = {
    "a word": "abcdef",
    "bytes": b"abcdef",
    "a number": 5,
    "nothing to count": object(),
    "a mapping": dict.fromkeys(range(N)),
    "True": True,
}
# What is refused, and a word of the error.
REFUSED = {
    **{name: (value, "sequence") for name, value in NOT_A_SEQUENCE.items()},
    "a set": (set(NUMBERS), "sequence"),
    "NaN": ([1.0, float("nan"), 2.0, 3.0, 4.0, 5.0], "float"),
    "floats": (np.arange(6.0), "float"),
    "a float tensor": (torch.arange(6.0), "float"),
    "bfloat16": (torch.arange(6).bfloat16(), "float"),
    "bools": ([True, False, True, False, True, False], "bool"),
    "bool array": (np.arange(6) > 2, "bool"),
    "bool tensor": (torch.arange(6) > 2, "bool"),
    "bytes of each": ([b"a", b"b", b"c", b"d", b"e", b"f"], "bytes"),
    "bytes array": (np.array(list("abcdef"), "S"), "bytes"),
    "mixed": ([1, "a", 2, "b", 3, "c"], "int, str"),
    "None": ([1, None, 2, 3, 4, 5], "NoneType"),
    "lists": ([[1], [2], [3], [4], [5], [6]], "list"),
    "lists of two lengths": ([[1], [2, 3], [3], [4], [5], [6]], "list"),
    "too large": ([2**64, 1, 2, 3, 4, 5], "2**63"),
    "too small": ([-(2**64), 1, 2, 3, 4, 5], "2**63"),
    "too large, uint64": (np.arange(6, dtype=np.uint64) + 2**63, "2**63"),
    "huge": ([10**5000, 1, 2, 3, 4, 5], "2**63"),
    "times": (np.zeros(6, "M8[s]"), "whole numbers or str"),
    "records": (np.zeros(6, [("a", "i8")]), "whole numbers or str"),
    "complex": (np.zeros(6, complex), "complex"),
    "masked": (masked(NUMBERS), "mask"),
    "meta": (torch.arange(6, device="meta"), "meta"),
    "sparse": (torch.arange(6).to_sparse(), ".to_dense()"),
    "two axes": (np.zeros((3, 2), int), "shape"),
    "no axis": (np.array(5), "shape"),
    "too few": ([1, 2, 3], "shape"),
}
ONLY_FOR_NEW = {"too few", "two axes", "a set"}
DUPLICATES = {
    "-1": [-1, 1, 2, 3, 4, 5],
    "twice": [1, 1, 2, 3, 4, 5],
    "twice, a word": ["a" * 100_000] * 2 + list("bcde"),
}


def refused(call, word):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    said = str(caught.value)
    assert "expected" in said
    assert word in said
    assert len(said) < 400
    return said


@pytest.mark.parametrize("kind", TAKEN)
def test_ids_that_are_taken_are_found_kept_and_removed(kind, tmp_path):
    given, expected = TAKEN[kind]
    index = CosineIndex(ROWS, given)
    assert index.ids.tolist() == expected
    index.save(tmp_path / "index")
    assert CosineIndex.load(tmp_path / "index").ids.tolist() == expected
    index.remove(index.ids[:2])
    assert index.ids.tolist() == expected[2:]
    found = index.search(ROWS, 3, exclude=index.ids[:1]).indices
    assert expected[2] not in np.asarray(found).ravel().tolist()


@pytest.mark.parametrize("kind", REFUSED)
def test_ids_that_are_refused(kind):
    given, word = REFUSED[kind]
    said = refused(lambda: CosineIndex(ROWS, given), word)
    assert "ids" in said
    index = CosineIndex(ROWS, NUMBERS)
    refused(lambda: index.add(ROWS, given), word)
    assert len(index) == N
    if kind not in ONLY_FOR_NEW - {"a set", "two axes"}:
        refused(lambda: index.remove(given), word)
    assert len(index) == N


@pytest.mark.parametrize("kind", DUPLICATES)
def test_ids_that_stand_for_no_row_or_two(kind):
    refused(lambda: CosineIndex(ROWS, DUPLICATES[kind]), "ids")


@pytest.mark.parametrize("kind", [*REFUSED, "both kinds", "a word beside a list", "None for one"])
def test_excluded_ids_that_are_refused(kind):
    more = {
        "both kinds": ([["a"], [1], [], [], [], []], "both"),
        "a word beside a list": ([["a"], "b", [], [], [], []], "str"),
        "None for one": ([None, [1], [], [], [], []], "NoneType"),
    }
    given, word = (REFUSED | more)[kind]
    index = CosineIndex(ROWS, NUMBERS)
    if kind in {"a set", "None", "too few", "lists", "lists of two lengths"}:
        index.search(ROWS, 1, exclude=given)  # all of these are meant as they stand
        return
    if kind == "two axes":
        word = "queries"
    for search in (lambda: index.search(ROWS, 1, exclude=given),
                   lambda: index.range_search(ROWS, 0.5, exclude=given)):  # fmt: skip
        assert "exclude" in refused(search, word)


@pytest.mark.parametrize(
    "each", [list, tuple, set, np.array, torch.tensor, iter], ids=lambda kind: kind.__name__
)
def test_lists_of_each_query(each):
    index = CosineIndex(ROWS, NUMBERS)
    nearest = np.asarray(index.search(ROWS, 1).indices)[:, 0]
    found = index.search(ROWS, N, exclude=[each([int(name)]) for name in nearest])
    for name, names in zip(nearest, np.asarray(found.indices), strict=True):
        assert name not in names
        assert sorted([name, *names[names != -1]]) == sorted(NUMBERS)


def test_an_unknown_id_of_any_length_is_named_in_one_short_line():
    index = CosineIndex(ROWS, WORDS)
    with pytest.raises(KeyError, match="expected ids that are in the index") as caught:
        index.remove(["b" * 100_000])
    assert len(str(caught.value)) < 400


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CosineIndex(ROWS, np.array(NUMBERS, dtype=object)).search(ROWS, 1, exclude=[5])
