"""Calls every search under another default dtype or device, and looks at each tensor it makes.

    python tests/helpers/other_defaults.py float16|bfloat16|float64|meta [--watched]

In a process of its own: what a first call finds out about the machine is kept for later ones.
Watched, an operation fails that makes a tensor of that dtype or on that device; it sees one thread.
"""

import contextlib
import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cossim_fast import (
    CosineIndex,
    communities,
    cosine_similarity,
    deduplicate,
    pairs_above,
    pairwise_cosine,
    topk,
)  # fmt: skip
from cossim_fast.integrations import sentence_transformers
from hostile import truth


class Watched(TorchDispatchMode):
    """Fails where an operation makes a tensor of a dtype, or one without values."""

    def __init__(self, dtype):
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor) and (each.is_meta or each.dtype == self._dtype):
                raise AssertionError(f"{func} made a tensor of {each.dtype} on {each.device}")
        return found


def check() -> None:
    """Compare what every search returns with float64."""
    rng = np.random.default_rng(0)
    x, q = truth.rows(rng, 3000, 96), truth.rows(rng, 70, 96)
    true, tensors = truth.cosines(q, x), (torch.from_numpy(q), torch.from_numpy(x))
    for screen in ("auto", "int8", "bfloat16", "float32"):
        for count in (70, 1):
            found = topk(q[:count], x, 3, screen=screen)
            truth.check_ranked(*found, true[:count], 3)
    found = topk(q, x, 3, certify=True)
    assert found.certificate.verify(sample=50) > 0
    truth.check_reached(*pairs_above(q, x, 0.3), true, 0.3)
    truth.check_reached(*pairs_above(q, x, -0.5), true, -0.5)  # most pass: by full products
    index = CosineIndex(q, ids=[f"q{row}" for row in range(len(q))])
    index.add(x, [f"x{row}" for row in range(len(x))])
    index.remove([f"q{row}" for row in range(len(q))])
    found = index.search(q, 3)
    ids = np.array([[int(each[1:]) for each in line] for line in found.indices.tolist()])
    truth.check_ranked(found.scores, ids, true, 3)
    reached = index.range_search(q, 0.3)
    assert int(reached.lims[-1]) == int((true >= 0.3).sum())
    for dtype in (torch.float64, torch.bfloat16):
        wide, other = (torch.from_numpy(each).to(dtype) for each in (x, q))
        near = truth.cosines(other.double().numpy(), wide.double().numpy())
        truth.check_ranked(*topk(other, wide, 3), near, 3)
        truth.check_ranked(*CosineIndex(wide).search(other[:1], 3), near[:1], 3)
    with tempfile.TemporaryDirectory() as folder:
        own = CosineIndex(x, path=Path(folder) / "rows.safetensors")
        own.save(Path(folder) / "index")
        loaded = CosineIndex.load(Path(folder) / "index", mmap=True)
        truth.check_ranked(*loaded.search(q, 3), true, 3)
        copied = pickle.loads(pickle.dumps(own))
        truth.check_ranked(*copied.search(q[:1], 3), true[:1], 3)
        del own, loaded, copied
    hits = sentence_transformers.semantic_search(*tensors, top_k=3)
    ranked = [[[hit[key] for hit in line] for line in hits] for key in ("score", "corpus_id")]
    truth.check_ranked(*ranked, true, 3)
    assert len(deduplicate(np.concatenate([x[:50], 2 * x[:50]]), 0.99).kept) == 50
    assert communities(np.concatenate([x[:50], 2 * x[:50]]), 0.99, min_size=2)
    for precision in ("highest", "medium"):
        near = pairwise_cosine(*tensors, precision=precision)
        truth.check_close(near, true, 1e-5 if precision == "highest" else 2e-2)
    rows = cosine_similarity(tensors[0], tensors[1][:70])
    truth.check_close(rows, true[:, :70].diagonal(), 1e-5)


def main(default: str, *more: str) -> None:
    """Set the default, and check."""
    torch.set_num_threads(1 if more else 2)
    with contextlib.ExitStack() as stack:
        dtype = None
        if default == "meta":
            stack.enter_context(torch.device("meta"))
        else:
            dtype = getattr(torch, default)
            torch.set_default_dtype(dtype)
        if more:
            stack.enter_context(Watched(dtype))
        check()
    print("right")


if __name__ == "__main__":
    main(*sys.argv[1:])
