"""One numerical check an op, run by the interpreted rungs, on a GPU, and against each mutant.

Each takes ``load``, which imports a module of the kernels (or of a mutant of them), and ragged
shapes that no tile divides.
"""

from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from cossim_fast.kernels.architecture import TileConfig, current_arch
from torch import Tensor

import rounding
from ladder import oracle
from ladder.memory import checked_memory, guarded_outputs, huge_row_strides, margined
from ladder.runtime import DEVICE, INTERPRETING

Load = Callable[[str], object]
EPS = 1e-8
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def on_device(*tensors: Tensor) -> list[Tensor]:
    """Move to the device under test, each surrounded by NaN that a stray read would pick up."""
    return [margined(x.to(DEVICE)) for x in tensors]


def guards() -> tuple:
    """Checked addresses where the interpreter runs, sentinels around outputs everywhere."""
    return (checked_memory() if INTERPRETING else nullcontext()), guarded_outputs()


def check_rowwise_fwd(load: Load, dtype: torch.dtype = F32, n: int = 131, d: int = 67) -> None:
    x, y = oracle.inputs(n, d, dtype=dtype), oracle.inputs(n, d, dtype=dtype, seed=1)
    memory, outputs = guards()
    with memory, outputs:
        got = load("rowwise").launch_rowwise_fwd(*on_device(x, y), EPS)
    plain = F.cosine_similarity(x, y, dim=-1, eps=EPS)
    oracle.assert_no_worse(got.cpu(), plain, oracle.cosine(x, y, EPS))


def check_rowwise_bwd(load: Load, dtype: torch.dtype = F32, n: int = 131, d: int = 67) -> None:
    x, y = oracle.inputs(n, d, dtype=dtype), oracle.inputs(n, d, dtype=dtype, seed=1)
    grad = oracle.inputs(n, dtype=dtype, seed=2)
    memory, outputs = guards()
    with memory, outputs:
        got = load("rowwise").launch_rowwise_bwd(*on_device(grad, x, y), EPS)
    plain = oracle.torch_gradients(x, y, grad, EPS, paired=True)
    expected = oracle.gradients(x, y, grad, EPS, paired=True)
    for side in range(2):
        oracle.assert_no_worse(got[side].cpu(), plain[side], expected[side])


def check_pairwise_fwd(
    load: Load,
    dtype: torch.dtype = F32,
    shape: tuple[int, int, int, int] = (2, 131, 77, 67),
    precision: str = "highest",
    parts: int = 0,
) -> None:
    b, n, m, d = shape
    x, y = oracle.inputs(b, n, d, dtype=dtype), oracle.inputs(b, m, d, dtype=dtype, seed=1)
    config = planes_tile(load, parts) if parts else None
    memory, outputs = guards()
    with memory, outputs:
        got = load("pairwise").launch_pairwise_fwd(*on_device(x, y), EPS, precision, config=config)
    plain = plain_pairwise(x, y, precision)
    oracle.assert_no_worse(got.cpu(), plain, oracle.pairwise(x, y, EPS), lost_by_split(parts))


def planes_tile(load: Load, parts: int) -> object:
    """The tile that multiplies float32 rows as so many planes here."""
    configs = load("configs")
    return configs.choose_planes(parts, current_arch())


def lost_by_split(parts: int) -> float:
    """How much of a cosine so many parts lose at most, where it counts.

    Two float16 parts miss 2^-23 of either factor, and 2^-22 is the product of the second parts.
    """
    return 2.0**-21 if parts == 2 else 0.0


def check_pairwise_with_itself(
    load: Load,
    dtype: torch.dtype = F32,
    n: int = 301,
    d: int = 67,
    scale: float = 1.0,
    parts: int = 0,
) -> None:
    """Half of the matrix is computed, the other half is its mirror."""
    x = oracle.inputs(2, n, d, dtype=dtype) * scale
    config = planes_tile(load, parts) if parts else None
    memory, outputs = guards()
    with memory, outputs:
        (rows,) = on_device(x)
        got = load("pairwise").launch_pairwise_fwd(rows, rows, EPS, config=config).cpu()
    assert torch.equal(got, got.mT)
    exact = oracle.pairwise(x, x, EPS)
    allowed = 2 * max(torch.finfo(dtype).eps / 2, 2**-22) + lost_by_split(parts)
    assert oracle.error(got, exact) <= allowed


def plain_pairwise(x: Tensor, y: Tensor, precision: str) -> Tensor:
    """What torch gives: its function, or for a lower precision the product of rounded factors."""
    if x.dtype != F32 or precision == "highest":
        return F.cosine_similarity(x[:, :, None, :], y[:, None, :, :], dim=-1, eps=EPS)
    return oracle.rounded_product(x, y, EPS, precision)


def check_pairwise_bwd(
    load: Load,
    dtype: torch.dtype = F32,
    shape: tuple[int, int, int, int] = (2, 131, 77, 67),
    grad_dtype: torch.dtype = F32,
    precision: str = "highest",
) -> None:
    b, n, m, d = shape
    x, y = oracle.inputs(b, n, d, dtype=dtype), oracle.inputs(b, m, d, dtype=dtype, seed=1)
    grad = oracle.inputs(b, n, m, dtype=grad_dtype, seed=2)
    launch = load("pairwise_backward").launch_pairwise_bwd
    memory, outputs = guards()
    with memory, outputs:
        g, xs, ys = on_device(grad, x, y)
        got = launch(g, xs, ys, EPS, precision), launch(g.mT, ys, xs, EPS, precision)
    if precision == "highest":
        plain = oracle.torch_gradients(x, y, grad, EPS, paired=False)
    else:  # of tf32 values, as torch multiplies gradients too
        rounded = [rounding.to_tf32(t) for t in (x, y, grad)]
        plain = oracle.torch_gradients(*rounded, EPS, paired=False)
    expected = oracle.gradients(x, y, grad, EPS, paired=False)
    for side in range(2):
        oracle.assert_no_worse(got[side].cpu(), plain[side], expected[side])


def check_pairwise_self_bwd(
    load: Load,
    dtype: torch.dtype = F32,
    shape: tuple[int, int, int] = (2, 33, 35),
    grad_dtype: torch.dtype = F32,
    precision: str = "highest",
) -> None:
    """No worse than the two gradients that torch adds, whichever way the gradient lies."""
    b, n, d = shape
    x, grad = oracle.inputs(b, n, d, dtype=dtype), oracle.inputs(b, n, n, dtype=grad_dtype, seed=2)
    launch = load("pairwise_backward").launch_pairwise_self_bwd
    memory, outputs = guards()
    with memory, outputs:
        g, rows = on_device(grad, x)
        got = launch(g, rows, EPS, precision), launch(g.mT, rows, EPS, precision)
    factors = [t if precision == "highest" else rounding.to_tf32(t) for t in (x, grad)]
    plain = sum(oracle.torch_gradients(factors[0], *factors, EPS, paired=False))
    expected = sum(oracle.gradients(x, x, grad, EPS, paired=False))
    for found in got:
        oracle.assert_no_worse(found.cpu(), plain, expected)


def check_gradient_panel(
    load: Load,
    shape: tuple[int, int, int] = (2, 37, 131),
    dtype: torch.dtype = F16,
    grad_dtype: torch.dtype = F32,
    *,
    mirrored: bool = False,
    block: int = 0,
) -> None:
    """Scaled exactly and rounded once; bad rows stay alone. ``block`` is the length of a step."""
    b, n, m = shape
    grad = oracle.inputs(b, n, m, dtype=grad_dtype)
    mirror = oracle.inputs(b, m, n, dtype=grad_dtype, seed=1).mT if mirrored else None
    if grad_dtype != F16 and n > 5:
        magnitudes = torch.tensor([2.0**100, 2.0**-100, 2.0**-140, 0.0])[:, None]
        for t in (grad, mirror) if mirrored else (grad,):
            t[0, :4] *= magnitudes.to(grad_dtype)
        grad[0, 4, 1], grad[0, 5, 2] = torch.nan, torch.inf
    config = load("architecture").TileConfig(4, block_k=block) if block else None
    for view in (lambda t: t, lambda t: t.mT.contiguous().mT):
        sides = [None if t is None else view(t) for t in (grad, mirror)]
        memory, outputs = guards()
        with memory, outputs:
            sides = [None if t is None else on_device(t)[0] for t in sides]
            exponent = sides[0].new_empty((b * n,), dtype=torch.int32) if dtype == F16 else None
            rows = None if exponent is None else exponent.view(b, n)
            launch = load("gradient_panel").launch_gradient_panel
            got = launch(*sides, dtype, rows, config).cpu().double()
        wide = (grad.float() if mirror is None else grad.float() + mirror.float()).double()
        if exponent is not None:
            largest = wide.abs().amax(-1)
            fine = wide.isfinite().all(-1)
            scale = (largest.clamp_min(2.0**-127).log2().floor() - 14).where(fine, 0.0)
            assert torch.equal(exponent.cpu().view(b, n)[fine].double(),
                               scale.where(largest > 0, 0.0)[fine])  # fmt: skip
            assert not got[~fine].isfinite().all(-1).any()
            got, wide = got[fine], torch.ldexp(wide, -scale[..., None].int())[fine]
        wanted = wide.to(dtype).double()
        assert torch.equal(got.nan_to_num(nan=777.0), wanted.nan_to_num(nan=777.0))


def codes(n: int, d: int, dtype: torch.dtype, seed: int) -> Tensor:
    if dtype == torch.int8:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-127, 128, (n, d), generator=generator, dtype=torch.int8)
    return F.normalize(oracle.inputs(n, d, dtype=F32, seed=seed)).to(dtype)


def check_block_max(
    load: Load,
    dtype: torch.dtype = torch.int8,
    shape: tuple[int, int, int] = (131, 203, 67),
    block: int = 64,
    *,
    some_eligible: bool = True,
    config: TileConfig | None = None,
) -> None:
    n, m, d = shape
    queries, corpus = codes(n, d, dtype, 0), codes(m, d, dtype, 1)
    eligible = torch.ones(m, dtype=torch.bool)
    if some_eligible:
        # One whole block without a row that may be returned, and every third row elsewhere.
        eligible[1::3] = False
        eligible[block : 2 * block] = False
    memory, outputs = guards()
    with memory, outputs:
        on_gpu = on_device(queries, corpus)
        mask = eligible.to(DEVICE) if some_eligible else None
        got = load("topk").launch_block_max(*on_gpu, block, mask, config).cpu()
    scores = queries.double() @ corpus.double().T
    scores[:, ~eligible] = -torch.inf
    padded = F.pad(scores, (0, -m % block), value=-torch.inf)
    expected = padded.view(n, -1, block).amax(-1)
    empty = expected == -torch.inf
    assert got.shape == expected.shape
    if dtype == torch.int8:
        assert bool((got[empty] == torch.iinfo(torch.int32).min).all())
        assert bool((got[~empty].double() == expected[~empty]).all())
    else:
        assert bool((got[empty] == -torch.inf).all())
        plain = (queries.float() @ corpus.float().T).double()
        allowed = 2 * oracle.error(plain, queries.double() @ corpus.double().T)
        assert oracle.error(got[~empty], expected[~empty]) <= max(allowed, 2**-24)


def check_one_row_left_out(load: Load, hidden: int, m: int = 9216) -> None:
    """The one row that is not eligible would win, wherever it lies in a long run."""
    queries, corpus = torch.ones(3, 32, dtype=torch.int8), -torch.ones(m, 32, dtype=torch.int8)
    eligible = torch.ones(m, dtype=torch.bool)
    corpus[hidden], eligible[hidden] = 1, False
    tile = TileConfig(16, 256, 32, 8, 2, 2, persistent=True)
    launch = load("topk").launch_block_max
    arguments = queries.to(DEVICE), corpus.to(DEVICE), 64
    with few_programs(load, 1):
        assert launch(*arguments, eligible.to(DEVICE), tile).unique().tolist() == [-32]
        assert launch(*arguments, None, tile).amax(1).tolist() == [32] * 3


def few_programs(load: Load, programs: int):
    """Within, block maxima take so many programs of eight warps, however many would fit."""
    module = load("topk_persistent")
    return mock.patch.object(module, "multiprocessors", return_value=programs)


def check_rescore(load: Load, dtype: torch.dtype = F32, d: int = 67, pairs: int = 77) -> None:
    queries, corpus = oracle.inputs(13, d, dtype=dtype), oracle.inputs(29, d, dtype=dtype, seed=1)
    _check_scores(load, queries, corpus, pairs)


def check_rescore_of_two_dtypes(load: Load, dtype: torch.dtype, stored: torch.dtype) -> None:
    _check_scores(
        load, oracle.inputs(13, 67, dtype=dtype), oracle.inputs(29, 67, dtype=stored, seed=1)
    )


def check_rescore_of_wide_rows(load: Load) -> None:
    """Float64 rows whose squares are out of range, for queries that are narrower."""
    corpus = oracle.inputs(29, 67, dtype=torch.float64, seed=1) * 2.0**700
    _check_scores(load, oracle.inputs(13, 67, dtype=F32), corpus, scale=2.0**700)


def _check_scores(
    load: Load, queries: torch.Tensor, corpus: torch.Tensor, pairs: int = 77, scale: float = 1.0
) -> None:
    generator = torch.Generator().manual_seed(3)
    query_index = torch.randint(0, 13, (pairs,), generator=generator)
    corpus_index = torch.randint(0, 29, (pairs,), generator=generator)
    memory, outputs = guards()
    with memory, outputs:
        indices = query_index.to(DEVICE), corpus_index.to(DEVICE)
        got = load("rescore").launch_rescore(*on_device(queries, corpus), *indices)
    wide = queries.double()[query_index], corpus.double()[corpus_index] / scale
    expected = oracle.cosine(*wide, 0.0)
    # Two float64 sums in different orders: numerics promises 2^-48 between processors.
    assert oracle.error(got.cpu(), expected) <= 2**-48


def check_offsets(load: Load, name: str = "pairwise") -> None:
    """Rows 2^30 elements apart: every element is asked for where 64-bit arithmetic puts it.

    The stride fits 32 bits and the offset of the third row does not.
    """
    stride, n, d = 2**30, 3, 16
    codes = name in ("topk", "topk_persistent", "recheck")
    x = torch.zeros(1, n, d, dtype=torch.int8 if codes else F32)
    terms, rows = torch.zeros(3, d), torch.arange(n)
    module = load("row_norm" if name == "unit_rows" else name)
    kernel, launch = {
        "row_norm": ("_row_norm_kernel", lambda: module.launch_row_norm(x, EPS)),
        "unit_rows": (
            "_unit_rows_kernel",
            lambda: module.launch_unit_rows(
                x, torch.ones(n), torch.zeros(n, dtype=torch.int32), x.dtype
            ),
        ),
        "gradient_panel": (
            "_gradient_panel_kernel",
            lambda: module.launch_gradient_panel(x, None, F16, rows.int()[None]),
        ),
        "planes": ("_planes_kernel", lambda: module.launch_planes(x, None, EPS, 2)),
        "rowwise": ("_rowwise_fwd_kernel", lambda: module.launch_rowwise_fwd(x[0], x[0], EPS)),
        "pairwise": ("_pairwise_fwd_kernel", lambda: module.launch_pairwise_fwd(x, x, EPS)),
        "pairwise_backward": (
            "_pairwise_bwd_product_kernel",
            lambda: module.launch_pairwise_bwd(x, x, torch.zeros(1, d, d), EPS),
        ),
        "code_rows": (
            "_code_rows_kernel",
            lambda: module.launch_code_rows(x[0], torch.zeros(d)),
        ),
        "scan_rows": (
            "_scan_rows_kernel",
            lambda: module.launch_scan_rows(torch.zeros(1, d), x[0]),
        ),
        "softmax_sums": (
            "_softmax_sums_kernel",
            lambda: module.launch_softmax_sums(
                x[0], torch.ones(n), x[0], torch.ones(n), torch.ones(()), rows
            ),
        ),
        "softmax_weights": (
            "_softmax_weights_kernel",
            lambda: module.launch_softmax_weights(
                x[0], torch.ones(n), x[0], torch.ones(n), torch.ones(()), rows, torch.ones(3, n)
            ),
        ),
        "topk": ("_block_max_kernel", lambda: module.launch_block_max(x[0], x[0])),
        "topk_persistent": (
            "_block_max_persistent_kernel",
            lambda: load("topk").launch_block_max(
                x[0], x[0], config=TileConfig(16, 64, 32, 4, 2, 2, persistent=True)
            ),
        ),
        "thresholds": (
            "_group_bounds_kernel",
            lambda: module.launch_block_thresholds(x[0], torch.zeros(4, n), terms, 1, d),
        ),
        "candidates": (
            "_block_candidates_kernel",
            lambda: module.launch_block_candidates(
                x[0], torch.zeros(4, n), terms, torch.zeros(n), 1
            ),
        ),
        "recheck": (
            "_recheck_kernel",
            lambda: module.launch_recheck(
                x[0], x[0], torch.zeros(4, n), terms[:, :1], torch.zeros(n), rows.int(), 64, None, 1
            ),
        ),
    }[name]
    with huge_row_strides(module, kernel, stride) as seen:
        launch()
    elements = {
        x.data_ptr() + x.element_size() * (row * stride + column)
        for row in range(n)
        for column in range(d)
    }
    missing = len(elements - seen)
    assert missing == 0, f"{missing} of {len(elements)} elements were looked for elsewhere"


def check_planes(load: Load, parts: int = 2, n: int = 131, m: int = 9, d: int = 67) -> None:
    """Scaled exactly, each part what the ones before it left, rounded; norms of the rows as is."""
    dtype, inputs = load("planes").DTYPES[parts], []
    for seed, rows in enumerate((n, m)):
        x = oracle.inputs(2, rows, d, dtype=F32, seed=seed)
        x[0, :4] *= torch.tensor([1e30, 1e-30, 1e-44, 0.0])[: min(rows, 4), None]
        inputs.append(x)
    memory, outputs = guards()
    with memory, outputs:
        found = [t.cpu() for t in load("planes").launch_planes(*on_device(*inputs), EPS, parts)]
    for x, split, inverse in zip(inputs, found[::2], found[1::2], strict=True):
        wide = x.double()
        largest = wide.abs().amax(-1, keepdim=True)
        exponent = 14 - largest.clamp_min(2.0**-127).log2().floor()
        scale = torch.where(largest > 0, 2.0**exponent, 1.0)
        rest = (wide * scale).float()
        planes = split.view(2, parts, x.shape[1], d + -d % 16)
        assert planes.dtype == dtype
        assert not planes[..., d:].any()
        for part in planes[..., :d].unbind(1):
            assert torch.equal(part, rest.to(dtype))
            rest -= part.float()
        norms = torch.linalg.vector_norm(wide * scale, dim=-1).maximum(EPS * scale[..., 0])
        assert oracle.error(inverse.view(2, -1).double() * norms, torch.ones(2, 1)) <= 2**-21


def check_small_gradients(load: Load, dtype: torch.dtype = F16) -> None:
    """The mean over a large matrix hands in gradients of 1e-9, which float16 rounds to 0."""
    x, y = oracle.inputs(1, 33, 67, dtype=dtype), oracle.inputs(1, 29, 67, dtype=dtype, seed=1)
    grad = oracle.inputs(1, 33, 29, dtype=F32, seed=2)
    launch = load("pairwise_backward").launch_pairwise_bwd
    precision = "highest" if dtype == F16 else "high"
    g, x, y = on_device(grad, x / 2**9, y)
    large, small = (launch(t, x, y, EPS, precision) for t in (g, g * 2.0**-16))
    # A power of two changes nothing but the exponent, until the result itself is subnormal.
    normal = small.abs() >= 2.0**-14
    assert int(normal.sum()) > 0
    assert bool((small[normal].double() * 2.0**16 == large[normal].double()).all())


def check_rowwise_bwd_range(load: Load) -> None:
    """Rows whose squares leave float32's range, in one step and in several."""
    for d in (70, 600):
        x, y = oracle.inputs(5, d, dtype=F32) * 1e30, oracle.inputs(5, d, dtype=F32, seed=1) * 1e-25
        grad = torch.ones(5)
        got = load("rowwise").launch_rowwise_bwd(*on_device(grad, x, y), 0.0)
        for mine, true in zip(got, oracle.gradients(x, y, grad, 0.0, paired=True), strict=True):
            assert oracle.error(mine.cpu(), true) <= 4 * 2**-24 * float(true.abs().max())
