"""What is compiled: every kernel, dtype and configuration that a launcher can choose."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from cossim_fast._checks import PRECISIONS
from ladder.runtime import kernels

QUICK_ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
# The others share their tiles with one of these.
FULL_ARCHS = (*QUICK_ARCHS, "sm_86", "sm_89", "sm_103", "sm_120", "sm_121", "gfx90a")
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
FLOATS = (F16, BF16, F32)
EPS = 1e-8


@dataclass(frozen=True)
class Case:
    """One launch to compile. ``core`` cases are compiled by every test run."""

    kernel: str  # the kernel that this case is about; a launcher may launch others too
    dtype: torch.dtype
    variant: str
    launch: Callable[[], object]
    core: bool = False
    tensor_core: bool = False  # whether the innermost loop must hold matrix instructions
    archs: tuple[str, ...] = FULL_ARCHS  # where it can be launched

    @property
    def name(self) -> str:
        words = (self.kernel, str(self.dtype).removeprefix("torch."), self.variant)
        return " ".join(word for word in words if word)


def _rows(n: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(n, d, dtype=dtype)


def row_cases() -> Iterator[Case]:
    """Row norm and paired rows: one configuration for each width of a step."""
    row_norm, rowwise = kernels("row_norm"), kernels("rowwise")
    for dtype in FLOATS:
        # 67 is loaded element by element; the others are the widths of a step.
        for d in (64, 128, 256, 768, 67) if dtype == F32 else (768, 67):
            x, g = _rows(64, d, dtype), torch.zeros(64, dtype=dtype)
            core = d == 768 and dtype == F32
            yield Case(
                "row_norm",
                dtype,
                f"d={d}",
                lambda x=x: row_norm.launch_row_norm(x[None], EPS),
                core,
            )
            if d == 768:
                yield Case(
                    "row_norm",
                    dtype,
                    "two inputs",
                    lambda x=x: row_norm.launch_row_norms(x[None], x[None], EPS),
                    core,
                )
            yield Case(
                "rowwise_fwd",
                dtype,
                f"d={d}",
                lambda x=x: rowwise.launch_rowwise_fwd(x, x, EPS),
                core,
            )
            yield Case(
                "rowwise_bwd",
                dtype,
                f"d={d}",
                lambda x=x, g=g: rowwise.launch_rowwise_bwd(g, x, x, EPS),
                core,
            )


def pairwise_cases() -> Iterator[Case]:
    """Both directions; ragged rows, which no descriptor describes and no wide load can take."""
    forward = kernels("pairwise").launch_pairwise_fwd
    backward = kernels("pairwise_backward").launch_pairwise_bwd
    for dtype in FLOATS:
        for precision in PRECISIONS[:2] if dtype == F32 else ("",):  # the third is the second's
            for n, d in ((512, 768), (131, 67)):
                x, y = (torch.zeros(2, n, d, dtype=dtype) for _ in range(2))
                variant = f"{precision} {'aligned' if d == 768 else 'ragged'}".strip()
                p = precision or "highest"
                core = d == 768
                yield Case(
                    "pairwise_fwd",
                    dtype,
                    variant,
                    lambda x=x, y=y, p=p: forward(x, y, EPS, p),
                    core,
                    True,
                )
                for side in ("", " transposed"):
                    g = torch.zeros(2, n, n, dtype=dtype)
                    g = g.mT if side else g
                    yield Case(
                        "pairwise_bwd_product",
                        dtype,
                        variant + side,
                        lambda x=x, p=p, g=g: backward(g, x, x, EPS, p),
                        core and not side and p == "highest" and dtype != F16,
                        True,
                    )
    for dtype in FLOATS:
        g = torch.zeros(1, 512, 512)
        x, y = (torch.zeros(1, 512, 768, dtype=dtype) for _ in range(2))
        yield Case(
            "pairwise_fwd",
            dtype,
            "highest with itself" if dtype == F32 else "with itself",
            lambda x=x: forward(x, x, EPS),
            dtype == BF16,
            True,
        )
        yield Case(
            "pairwise_fwd",
            dtype,
            "high with itself" if dtype == F32 else "float32 result with itself",
            lambda x=x: forward(x, x, EPS, "high", F32),
            dtype == F32,
            True,
        )
        if dtype != F16:
            for other, itself in ((y, ""), (x, " with itself")):
                yield Case(
                    "pairwise_fwd_scaled",
                    dtype,
                    (("highest" if dtype == F32 else "") + itself).strip(),
                    lambda x=x, y=other: forward(x, y, EPS),
                    dtype == BF16,
                    True,
                )
        if dtype == F32:
            yield Case("half_rows", dtype, "", lambda x=x, y=y: forward(x, y, EPS, "high"), True)
        yield Case("unit_rows", dtype, "", lambda x=x, g=g: backward(g, x, x, EPS), dtype == F32)
        yield Case(
            "pairwise_bwd_project",
            dtype,
            "",
            lambda x=x, g=g: backward(g, x, x, EPS),
            dtype == F32,
        )
        if dtype != F32:
            yield Case(
                "pairwise_bwd_product",
                dtype,
                "float32 gradient",
                lambda x=x, g=g: backward(g, x, x, EPS),
                tensor_core=True,
            )
            yield Case(
                "pairwise_fwd",
                dtype,
                "float32 result",
                lambda x=x, y=y: forward(x, y, EPS, out_dtype=F32),
                tensor_core=True,
            )


def persistent_cases() -> Iterator[Case]:
    """Programs that go from tile to tile, where copies by descriptor let a store overlap."""
    forward = kernels("pairwise").launch_pairwise_fwd
    configs = kernels("configs")

    def launch(x: torch.Tensor, y: torch.Tensor, **changes: bool) -> object:
        arch = configs.current_arch()
        tile = configs.choose_config("pairwise_fwd_persistent", F16, x.shape[-1], arch, True)
        return forward(x, y, EPS, "high", config=replace(tile, **changes))

    for dtype in FLOATS:  # float32 rows are multiplied as float16 ones
        x, y = (torch.zeros(2, 512, 768, dtype=dtype) for _ in range(2))
        for other, itself in ((y, ""), (x, " with itself")):
            for flatten in (True, False) if dtype == F16 else (True,):
                yield Case(
                    "pairwise_fwd_persistent",
                    dtype,
                    (itself + ("" if flatten else " loop in a loop")).strip(),
                    lambda x=x, y=other, f=flatten: launch(x, y, flatten=f),
                    flatten,
                    True,
                    ("sm_90", "sm_100", "sm_103", "sm_120", "sm_121"),
                )


def topk_cases() -> Iterator[Case]:
    """Coding; the screen, with blocks of each size and few or many queries; rescoring."""
    launch = kernels("topk").launch_block_max
    for dtype in (torch.int8, BF16):
        corpus, eligible = _rows(512, 768, dtype), torch.ones(512, dtype=torch.bool)
        for block in (32, 64):
            for n in (512, 16):
                yield Case(
                    "block_max",
                    dtype,
                    f"block={block}" + (" few" if n == 16 else ""),
                    lambda c=corpus, n=n, b=block, e=eligible: launch(c[:n], c, b, e),
                    core=block == 64 and (n == 512 or dtype == torch.int8),
                    tensor_core=True,
                )
        yield Case(
            "block_max",
            dtype,
            "block=64 all eligible",
            lambda c=corpus: launch(c, c, 64),
            tensor_core=True,
        )
        yield Case(
            "block_max",
            dtype,
            "block=1",
            lambda c=corpus, e=eligible: launch(c, c, 1, e),
            tensor_core=True,
        )
        yield from selection_cases(dtype)
    for dtype in FLOATS:
        for d in (768, 67):
            x, centre = _rows(131, d, dtype), torch.zeros(d)
            yield Case(
                "code_rows",
                dtype,
                f"d={d}",
                lambda x=x, c=centre: kernels("code_rows").launch_code_rows(x, c),
                core=d == 768 and dtype == F32,
            )
    index = torch.zeros(64, dtype=torch.int64)
    for dtype in (*FLOATS, F64):
        x = _rows(64, 768, dtype)
        yield Case(
            "rescore",
            dtype,
            "",
            lambda x=x: kernels("rescore").launch_rescore(x, x, index, index),
            core=dtype == F32,
        )


def selection_cases(dtype: torch.dtype) -> Iterator[Case]:
    """From block maxima to the rows to rescore."""
    n, m, d = 64, 4096, 768
    maxima = torch.zeros(n, m, dtype=torch.int32 if dtype == torch.int8 else F32)
    terms, reach = (torch.zeros(4, n), torch.zeros(3, m)), torch.zeros(n)
    yield Case(
        "group_bounds",
        dtype,
        "",
        lambda: kernels("thresholds").launch_block_thresholds(maxima, *terms, 10, 1024),
        core=dtype == torch.int8,
    )
    yield Case(
        "block_candidates",
        dtype,
        "",
        lambda: kernels("candidates").launch_block_candidates(maxima, *terms, reach, 256),
        core=dtype == torch.int8,
    )
    queries, corpus = _rows(n, d, dtype), _rows(m, d, dtype)
    index, eligible = torch.zeros(64, dtype=torch.int64), torch.ones(m, dtype=torch.bool)
    launch = kernels("recheck").launch_recheck
    for block in (32, 64):
        block_terms = torch.zeros(3, m // block)
        arguments = queries, corpus, terms[0], block_terms, reach, index, index, block
        for mask in (eligible, None) if block == 64 else (eligible,):
            yield Case(
                "recheck",
                dtype,
                f"block={block}" + (" all eligible" if mask is None else ""),
                lambda a=arguments, e=mask: launch(*a, e),
                core=dtype == torch.int8 and block == 64 and mask is not None,
                tensor_core=True,
            )


def softmax_cases() -> Iterator[Case]:
    """Both passes of a contrastive loss: one direction or both, with ids or without."""
    n, d = 512, 768
    inverse, index, scale = torch.zeros(n), torch.zeros(n, dtype=torch.int64), torch.ones(())
    of_rows, of_columns = torch.zeros(3, n), torch.zeros(2, n)
    sums = kernels("softmax_sums").launch_softmax_sums
    weights = kernels("softmax_weights").launch_softmax_weights
    for dtype in FLOATS:
        x = _rows(n, d, dtype)
        sides = x, inverse, x, inverse, scale, index
        narrow = BF16 if dtype == F32 else dtype
        for symmetric in (True, False):
            for ids in ((index, index), None):
                words = (
                    "highest" if dtype == F32 else "",
                    "symmetric" if symmetric else "one direction",
                    "ids" if ids else "",
                )
                variant = " ".join(word for word in words if word)
                both = symmetric and ids is not None
                core = both and dtype != F16
                yield Case(
                    "softmax_sums",
                    dtype,
                    variant,
                    lambda a=sides, i=ids, s=symmetric: sums(*a, i, s),
                    core,
                    True,
                )
                terms = of_rows, of_columns if symmetric else None, ids
                for panel in (narrow, F32) if both else (narrow,):
                    yield Case(
                        "softmax_weights",
                        dtype,
                        variant + (" float32 panel" if panel == F32 else ""),
                        lambda a=sides, t=terms, p=panel: weights(*a, *t, p),
                        core and panel == narrow,
                        True,
                    )


def cases(arch: str | None = None) -> list[Case]:
    """Every case, or those of one architecture: one that shares its tiles gets the core alone."""
    every = [
        *row_cases(), *pairwise_cases(), *persistent_cases(), *topk_cases(), *softmax_cases(),
    ]  # fmt: skip
    if arch is None:
        return every
    return [c for c in every if arch in c.archs and (c.core or arch in QUICK_ARCHS)]
