"""What is compiled: every kernel, dtype and configuration that a launcher can choose."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from cossim_fast.kernels.architecture import TileConfig, current_arch
from cossim_fast.kernels.search_configs import persistent_tiles

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
        # What `gpu_session` tries: the whole row in one step.
        x, g = _rows(64, 768, dtype), torch.zeros(64, dtype=dtype)
        whole = kernels("architecture").TileConfig(1, block_k=1024)
        yield Case(
            "rowwise_bwd",
            dtype,
            "d=768 in one step",
            lambda x=x, g=g, c=whole: rowwise.launch_rowwise_bwd(g, x, x, EPS, c),
        )


def pairwise_cases() -> Iterator[Case]:
    """Both directions; ragged rows, which no descriptor describes and no wide load can take."""
    forward = kernels("pairwise").launch_pairwise_fwd
    backward = kernels("pairwise_backward").launch_pairwise_bwd
    with_itself = kernels("pairwise_backward").launch_pairwise_self_bwd
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
                if dtype != F32:
                    yield Case(
                        "pairwise_bwd_product",
                        dtype,
                        f"{variant} with itself",
                        lambda x=x, g=g: with_itself(g, x, EPS),
                        core and dtype == BF16,
                        True,
                    )
    yield from panel_cases()
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
            yield Case("planes", dtype, "one", lambda x=x, y=y: forward(x, y, EPS, "high"), True)
            yield from planes_cases(x, y)
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
                "pairwise_fwd",
                dtype,
                "float32 result",
                lambda x=x, y=y: forward(x, y, EPS, out_dtype=F32),
                tensor_core=True,
            )


def panel_cases() -> Iterator[Case]:
    """Copies of a gradient: scaled for float16, transposed, plus its mirror."""
    launch = kernels("gradient_panel").launch_gradient_panel
    for m in (512, 16384, 131):
        g, exponent = torch.zeros(1, 64, m), torch.zeros(1, 64, dtype=torch.int32)
        yield Case(
            "gradient_panel",
            F32,
            f"m={m}",
            lambda g=g, e=exponent: launch(g, None, F16, e),
            core=m == 16384,
        )
    for n in (512, 131):
        g, exponent = torch.zeros(1, n, n), torch.zeros(1, n, dtype=torch.int32)
        ragged = " ragged" if n == 131 else ""
        for words, sides, dtype, e in (
            ("transposed", (g.mT, None), F16, exponent),
            ("mirrored", (g, g.mT), F16, exponent),
            ("mirrored, in float32", (g, g.mT), F32, None),
            ("in bfloat16", (g, None), BF16, None),
        ):
            yield Case(
                "gradient_panel",
                F32,
                words + ragged,
                lambda s=sides, t=dtype, e=e: launch(*s, t, e),
                core=words.startswith("mirrored") and not ragged,
            )

    for dtype in (F16, BF16):
        g, exponent = torch.zeros(1, 131, 131, dtype=dtype), torch.zeros(1, 131, dtype=torch.int32)
        yield Case("gradient_panel", dtype, "ragged", lambda g=g, t=dtype: launch(g, None, t))
        yield Case(
            "gradient_panel",
            dtype,
            "mirrored ragged",
            lambda g=g, t=dtype, e=exponent: launch(g, g.mT, t, e if t == F16 else None),
        )


def planes_cases(x: torch.Tensor, y: torch.Tensor) -> Iterator[Case]:
    """Float32 rows split into planes beforehand, which a tile asks for."""
    forward, configs = kernels("pairwise").launch_pairwise_fwd, kernels("configs")
    for parts in (2, 3):

        def run(second: torch.Tensor, parts: int = parts) -> torch.Tensor:
            config = configs.choose_planes(parts, current_arch())
            return forward(x, second, EPS, config=config)

        word = {2: "two", 3: "three"}[parts]
        variant = f"{word} planes"
        yield Case("planes", F32, word, lambda run=run: run(y), parts == 2)
        yield Case("pairwise_fwd", F32, variant, lambda run=run: run(y), True, True)
        with_itself = f"{variant} with itself"
        yield Case("pairwise_fwd", F32, with_itself, lambda run=run: run(x), tensor_core=True)


def _persistent_tile(d: int, best: bool) -> TileConfig:
    """The best tile by arithmetic or the last one, on the architecture that is compiled for."""
    return persistent_tiles(d, current_arch(), True)[0 if best else -1]


def persistent_cases() -> Iterator[Case]:
    """Programs that go from tile to tile, where copies by descriptor let a store overlap."""
    forward = kernels("pairwise").launch_pairwise_fwd
    configs = kernels("configs")

    def launch(x: torch.Tensor, y: torch.Tensor, **changes: bool) -> object:
        arch = current_arch()
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
    for d in (384, 256, 128):
        codes, eligible = _rows(512, d, torch.int8), torch.ones(512, dtype=torch.bool)
        for words, block, mask, best in (
            ("block=64", 64, eligible, True),
            ("block=64 all eligible", 64, None, True),
            ("block=32", 32, eligible, True),
            ("block=64 second", 64, eligible, False),
        ):
            yield Case(
                "block_max_persistent",
                torch.int8,
                f"d={d} {words}",
                lambda c=codes, b=block, e=mask, best=best: launch(
                    c, c, b, e, _persistent_tile(c.shape[1], best)
                ),
                core=d == 384 and words == "block=64",
                tensor_core=True,
            )
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
            for q in (64, 16):
                z = _rows(q, d, F32)
                yield Case(
                    "scan_rows",
                    dtype,
                    f"d={d}" + (" few" if q == 16 else ""),
                    lambda x=x, z=z: kernels("scan_rows").launch_scan_rows(z, x),
                    core=d == 768 and dtype == F32,
                    tensor_core=True,
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
    for dtype, stored in ((F32, F16), (F32, BF16), (F32, F64), (F64, F32)):
        q, x = _rows(64, 768, dtype), _rows(64, 768, stored)
        yield Case(
            "rescore",
            dtype,
            f"of {str(stored).removeprefix('torch.')} rows",
            lambda q=q, x=x: kernels("rescore").launch_rescore(q, x, index, index),
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
    pairs, eligible = torch.zeros(64, dtype=torch.int32), torch.ones(m, dtype=torch.bool)
    recheck, best = kernels("recheck").launch_recheck, kernels("recheck").launch_best_rows
    for block in (32, 64):
        block_terms = torch.zeros(3, m // block)
        arguments = queries, corpus, terms[0], block_terms, reach, pairs, block
        for mask in (eligible, None) if block == 64 else (eligible,):
            yield Case(
                "recheck",
                dtype,
                f"block={block}" + (" all eligible" if mask is None else ""),
                lambda a=arguments, e=mask: recheck(*a, e, 128),
                core=dtype == torch.int8 and block == 64 and mask is not None,
                tensor_core=True,
            )
        yield Case(
            "best_rows",
            dtype,
            f"block={block}",
            lambda b=block: best(queries, corpus, pairs, b, eligible),
            core=dtype == torch.int8 and block == 64,
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
