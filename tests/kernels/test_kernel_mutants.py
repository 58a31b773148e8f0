"""Seeded bugs that the checks on values and memory must catch: the proof that they can fail."""

import pytest
from cossim_fast.kernels.architecture import TileConfig
from triton.runtime.errors import InterpreterError

from ladder import checks, contrast, oracle, persistent, screening
from ladder.checks import BF16, F16, F32
from ladder.mutants import Mutant, mutated
from ladder.runtime import needs_interpreter

pytestmark = [pytest.mark.kernel_mutants, needs_interpreter]


def check_persistent(load, *, some_eligible=True, dots=1):
    """Block maxima by two or three programs, so that each has many runs."""
    with checks.few_programs(load, 1):
        tile = TileConfig(16, 64, 32, 4, 2, 2, dots=dots, persistent=True)
        checks.check_block_max(
            load, shape=(37, 450, 67), block=32, some_eligible=some_eligible, config=tile
        )


MUTANTS = [
    (
        Mutant(
            "scaled rows that nobody is told of",
            "row_norm",
            "tl.store(scaled_ptr, 1)",
            "tl.store(scaled_ptr, 0)",
        ),
        lambda load: checks.check_pairwise_with_itself(load, F32, 33, 67, scale=1e30),
    ),
    (
        Mutant(
            "norms of the first input for the second",
            "row_norm",
            "y_ptr, inverse_ptr + ROWS_X",
            "x_ptr, inverse_ptr + ROWS_X",
        ),
        checks.check_pairwise_fwd,
    ),
    (
        Mutant(
            "residual of the codes' own rounding alone",
            "code_rows",
            "missed = y - code * scale",
            "missed = (y * inverse_scale - code) * scale * 0.9",
        ),
        screening.check_code_rows,
    ),
    (
        Mutant(
            "rows beyond the last one coded",
            "code_rows",
            "return tl.where(mask, unit - centre, 0.0)",
            "return unit - centre",
        ),
        screening.check_code_rows,
    ),
    (
        Mutant(
            "large rows left as they are",
            "code_rows",
            "unit = times_power_of_two(x, -exponent[:, None]) * inverse[:, None]",
            "unit = x * inverse[:, None]",
        ),
        screening.check_code_rows,
    ),
    (
        Mutant(
            "rows out of range multiplied as they are",
            "scan_rows",
            "            x = times_power_of_two(x, -exponent[:, None])\n",
            "            x = x * 1.0\n",
        ),
        screening.check_scan_rows,
    ),
    (
        Mutant(
            "scanned beyond the last row",
            "scan_rows",
            "mask=inside[:, None] & (d < D), other=0.0)",
            "mask=d < D, other=0.0)",
        ),
        screening.check_scan_rows,
    ),
    (
        Mutant(
            "scanned beyond the row's end",
            "scan_rows",
            "mask=inside[:, None] & (d < D), other=0.0)",
            "mask=inside[:, None] & (d <= D), other=0.0)",
        ),
        screening.check_scan_rows,
    ),
    (
        Mutant(
            "padding beats rows of negative cosines",
            "scan_rows",
            'finite = inside & (square < float("inf"))',
            'finite = square < float("inf")',
        ),
        screening.check_scan_rows,
    ),
    (
        Mutant(
            "the first queries for all",
            "scan_rows",
            "number = (tile % tiles_q).to(tl.int64) * BLOCK_M",
            "number = (tile % tiles_q).to(tl.int64) * 0",
        ),
        lambda load: screening.check_scan_rows(load, q=67),
    ),
    (
        Mutant(
            "32-bit offsets of scanned rows",
            "scan_rows",
            "first = (tile // tiles_q).to(tl.int64) * BLOCK_N",
            "first = (tile // tiles_q) * BLOCK_N",
        ),
        lambda load: checks.check_offsets(load, "scan_rows"),
    ),
    (
        Mutant(
            "rows that float16 cannot hold",
            "tiles",
            "LARGEST = tl.constexpr(14)",
            "LARGEST = tl.constexpr(16)",
        ),
        lambda load: checks.check_planes(load, 1),
    ),
    (
        Mutant(
            "norm of another row than the one that was written",
            "planes",
            "tl.sum(squares, axis=1), exponent, eps)",
            "tl.sum(squares, axis=1), 0, eps)",
        ),
        lambda load: checks.check_planes(load, 1),
    ),
    (
        Mutant(
            "parts that do not go on from one another",
            "planes",
            "rest -= rounded.to(tl.float32)",
            "rest -= 0.0",
        ),
        checks.check_planes,
    ),
    (
        Mutant(
            "parts of the rows as they were, norms of scaled ones",
            "planes",
            "rest = times_power_of_two(x, -exponent[:, None])",
            "rest = x",
        ),
        checks.check_planes,
    ),
    (
        Mutant(
            "padding of planes not written",
            "planes",
            "mask = inside[:, None] & (d < WIDTH)",
            "mask = inside[:, None] & (d < D)",
        ),
        checks.check_planes,
    ),
    (
        Mutant(
            "one row past the last split",
            "planes",
            "inside = row < ROWS",
            "inside = row <= ROWS",
        ),
        checks.check_planes,
    ),
    (
        Mutant(
            "inverse norms of the first input written over",
            "planes",
            "y_ptr, y_out_ptr, inverse_ptr + ROWS_X",
            "y_ptr, y_out_ptr, inverse_ptr",
        ),
        checks.check_planes,
    ),
    (
        Mutant(
            "second parts of one side left out",
            "planes",
            "product = tl.dot(x, y_second.T, product)",
            "product += 0.0",
        ),
        lambda load: checks.check_pairwise_fwd(load, parts=2),
    ),
    (
        Mutant(
            "third parts of one side left out",
            "planes",
            "product = tl.dot(x, y_third.T, product)",
            "product += 0.0",
        ),
        lambda load: checks.check_pairwise_fwd(load, parts=3),
    ),
    (
        Mutant(
            "planes of another batch",
            "planes",
            "plane = batch * PARTS",
            "plane = batch",
        ),
        lambda load: checks.check_pairwise_fwd(load, parts=2),
    ),
    (
        Mutant(
            "tail of d forgotten in planes",
            "planes",
            "for k in range(0, D, BLOCK_K):",
            "for k in range(0, D - D % BLOCK_K, BLOCK_K):",
        ),
        lambda load: checks.check_pairwise_fwd(load, parts=2),
    ),
    (
        Mutant(
            "row mask off by one",
            "row_norm",
            "row_mask = row < ROWS",
            "row_mask = row <= ROWS",
        ),
        checks.check_pairwise_fwd,
    ),
    (
        Mutant(
            "mask of the last columns off by one",
            "rowwise",
            "mask = mask_n[:, None] & (start + column < D)[None, :]\n"
            "        x = tl.load(x_row[:, None] + (start + column)[None, :] * stride_xd, mask=mask,"
            " other=0.0)\n        y",
            "mask = mask_n[:, None] & (start + column <= D)[None, :]\n"
            "        x = tl.load(x_row[:, None] + (start + column)[None, :] * stride_xd, mask=mask,"
            " other=0.0)\n        y",
        ),
        checks.check_rowwise_fwd,
    ),
    (
        Mutant(
            "last columns not masked",
            "tiles",
            "mask=(row < N)[:, None] & (column < D)[None, :], other=0.0",
            "mask=(row < N)[:, None] & (column < D + BLOCK_D)[None, :], other=0.0",
        ),
        checks.check_pairwise_fwd,
    ),
    (
        Mutant(
            "tail of d forgotten",
            "pairwise",
            "for k in range(0, D, BLOCK_K):",
            "for k in range(0, D - D % BLOCK_K, BLOCK_K):",
        ),
        checks.check_pairwise_fwd,
    ),
    (
        Mutant(
            "offset unlike its mask's",
            "pairwise",
            "out = batch_ptr + row[:, None] * stride_on + column[None, :] * stride_om",
            "out = batch_ptr + row[:, None] * stride_on + (column[None, :] + 1) * stride_om",
        ),
        checks.check_pairwise_fwd,
    ),
    (
        Mutant(
            "last tile of columns never started",
            "tiles",
            "return first_n + within % rows, within // rows",
            "return first_n + within % rows, min(within // rows, TILES_M - 2)",
        ),
        lambda load: checks.check_pairwise_fwd(load, F16, (1, 40, 300, 67)),
    ),
    (
        Mutant(
            "mirror without the first diagonal",
            "pairwise",
            "below = column[:, None] < row[None, :]",
            "below = column[:, None] < row[None, :] - 1",
        ),
        lambda load: checks.check_pairwise_with_itself(load, BF16),
    ),
    (
        Mutant(
            "rows with exponents multiplied as they are",
            "pairwise",
            "wanted = largest > 0",
            "wanted = largest > 1000",
        ),
        lambda load: checks.check_pairwise_with_itself(load, F32, scale=1e30),
    ),
    (
        Mutant(
            "norms of the first batch for all",
            "pairwise",
            "flat_column = tl.cast(batch, tl.int64) * M + column",
            "flat_column = column",
        ),
        checks.check_pairwise_fwd,
    ),
    (
        Mutant(
            "32-bit offsets",
            "tiles",
            "row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)",
            "row = first_n + tl.arange(0, BLOCK_N)",
        ),
        checks.check_offsets,
    ),
    (
        Mutant(
            "gradient not projected",
            "rowwise",
            "(y * inverse_y[:, None] - x * along_x[:, None])",
            "(y * inverse_y[:, None])",
        ),
        checks.check_rowwise_bwd,
    ),
    (
        Mutant(
            "whole rows scaled and their sums not",
            "rowwise",
            "        y = times_power_of_two(y, -exponent_y[:, None])\n        xy, xx, yy = tl.sum(",
            "        y = times_power_of_two(y, -exponent_y[:, None])\n        xy, xy, xy = tl.sum(",
        ),
        checks.check_rowwise_bwd_range,
    ),
    (
        Mutant(
            "one column past the last of whole rows",
            "rowwise",
            "whole = mask_n[:, None] & (column < D)",
            "whole = mask_n[:, None] & (column <= D)",
        ),
        checks.check_rowwise_bwd,
    ),
    (
        Mutant(
            "gradient rounded before it is scaled",
            "tiles",
            "return tl.where(scaled, binary_exponent(largest) - LARGEST, 0)",
            "return tl.where(scaled, 0, 0)",
        ),
        checks.check_small_gradients,
    ),
    (
        Mutant(
            "scaled by the largest of the first step",
            "gradient_panel",
            "most = tl.maximum(most, tl.abs(grad))",
            "most = tl.where(start == 0, tl.abs(grad), most)",
        ),
        lambda load: checks.check_gradient_panel(load, block=64),
    ),
    (
        Mutant(
            "gradient without its mirror",
            "gradient_panel",
            "grad += mirror.to(tl.float32)",
            "grad += mirror.to(tl.float32) * 0",
        ),
        checks.check_pairwise_self_bwd,
    ),
    (
        Mutant(
            "one column of the gradient past the last",
            "gradient_panel",
            "mask = (row < N) & (column < M)",
            "mask = (row < N) & (column <= M)",
        ),
        checks.check_gradient_panel,
    ),
    (
        Mutant(
            "padding of a gradient not written",
            "gradient_panel",
            "mask = (rows < OUT_N) & (m < OUT_M)",
            "mask = (rows < OUT_N) & (m < M)",
        ),
        lambda load: checks.check_gradient_panel(load, block=64),
    ),
    (
        Mutant(
            "powers of two of the sums forgotten",
            "pairwise_backward",
            "power += tl.load(exponent_sum_ptr + flat, mask=mask_n, other=0)",
            "power += tl.load(exponent_sum_ptr + flat, mask=mask_n, other=0) * 0",
        ),
        lambda load: checks.check_pairwise_bwd(load, precision="high"),
    ),
    (
        Mutant(
            "the same half of the gradient twice",
            "pairwise_backward",
            "PRECISION, not TRANSPOSED, DESCRIPTORS",
            "PRECISION, TRANSPOSED, DESCRIPTORS",
        ),
        lambda load: checks.check_pairwise_self_bwd(load, BF16, (2, 48, 40), BF16),
    ),
    (
        Mutant(
            "unit rows not padded",
            "row_norm",
            "mask=inside[:, None] & (d < WIDTH)",
            "mask=inside[:, None] & (d < D)",
        ),
        checks.check_pairwise_bwd,
    ),
    (
        Mutant(
            "sums of the last rows not written",
            "pairwise_backward",
            "tl.store(tile, acc, mask=(row < N)[:, None]",
            "tl.store(tile, acc, mask=(row < N - 1)[:, None]",
        ),
        lambda load: checks.check_pairwise_bwd(load, BF16),
    ),
    (
        Mutant(
            "padding takes part in the maximum",
            "topk",
            "keep = column < M\n",
            "keep = column < M + BLOCK_M\n",
        ),
        lambda load: checks.check_block_max(load, BF16, (3, 65, 40), some_eligible=False),
    ),
    (
        Mutant(
            "maxima of a block past the last",
            "topk",
            "(block < tl.cdiv(M, BLOCK))[None, :]",
            "(block <= tl.cdiv(M, BLOCK))[None, :]",
        ),
        lambda load: checks.check_block_max(load, shape=(131, 190, 67)),
    ),
    (
        Mutant(
            "last tile of a run never started",
            "topk_persistent",
            "last_tile = min(first_tile + RUN, tiles_m)",
            "last_tile = min(first_tile + RUN, tiles_m - 1)",
        ),
        check_persistent,
    ),
    (
        Mutant(
            "last run never started",
            "topk_persistent",
            "range(tl.program_id(0), tiles_n * strips, tl.num_programs(0))",
            "range(tl.program_id(0), tiles_n * strips - 1, tl.num_programs(0))",
        ),
        check_persistent,
    ),
    (
        Mutant(
            "queries of a program's first run in all",
            "topk_persistent",
            "stride_qn, stride_qd, 0, first_n, i * BLOCK_K, N, D",
            "stride_qn, stride_qd, 0, first_n // N * BLOCK_N, i * BLOCK_K, N, D",
        ),
        check_persistent,
    ),
    (
        Mutant(
            "first part of the queries in every step",
            "topk_persistent",
            "tl.dot(queries[i], part.T",
            "tl.dot(queries[0], part.T",
        ),
        check_persistent,
    ),
    (
        Mutant(
            "last part of the queries never multiplied",
            "topk_persistent",
            "if step == STEPS:",
            "if step == STEPS - 1:",
        ),
        check_persistent,
    ),
    (
        Mutant(
            "sums of a tile go on in the next",
            "topk_persistent",
            "acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=sums)\n"
            "                    first_m += BLOCK_M",
            "first_m += BLOCK_M",
        ),
        check_persistent,
    ),
    (
        Mutant(
            "part of the corpus of another step",
            "topk_persistent",
            "for i in tl.static_range(STEPS):\n                    corpus",
            "for i in tl.static_range(STEPS - 1):\n                    corpus",
        ),
        lambda load: check_persistent(load, dots=8),
    ),
    (
        Mutant(
            "padding of the last tile not masked",
            "topk_persistent",
            "whole = last_tile * BLOCK_M <= M\n",
            "whole = last_tile * BLOCK_M < M + BLOCK_M\n",
        ),
        lambda load: check_persistent(load, some_eligible=False),
    ),
    (
        Mutant(
            "eligible rows after the first piece of a run not looked at",
            "topk_persistent",
            "for start in range(first, stop, CHECKED):",
            "for start in range(first, first + 1, CHECKED):",
        ),
        lambda load: checks.check_one_row_left_out(load, 8000),
    ),
    (
        Mutant(
            "maxima of a block past the last in a run",
            "topk_persistent",
            "(block < tl.cdiv(M, BLOCK))[None, :]",
            "(block <= tl.cdiv(M, BLOCK))[None, :]",
        ),
        check_persistent,
    ),
    (
        Mutant(
            "maxima of one query past the last",
            "topk_persistent",
            "mask = (row < N)[:, None] & (block",
            "mask = (row <= N)[:, None] & (block",
        ),
        check_persistent,
    ),
    (
        Mutant(
            "residual of a block forgotten",
            "tiles",
            "query_residual * block_radius + query_norm * block_residual",
            "query_residual * block_radius",
        ),
        screening.check_block_thresholds,
    ),
    (
        Mutant(
            "last blocks forgotten",
            "thresholds",
            "for first in range(0, BLOCKS, GROUPS):",
            "for first in range(0, BLOCKS - BLOCKS % GROUPS, GROUPS):",
        ),
        screening.check_block_thresholds,
    ),
    (
        Mutant(
            "upper bounds for lower ones",
            "thresholds",
            "lower, _ = cosine_bounds(",
            "_, lower = cosine_bounds(",
        ),
        screening.check_block_thresholds,
    ),
    (
        Mutant(
            "an atomic one past the end",
            "candidates",
            "row_mask = row < N\n",
            "row_mask = row <= N\n",
        ),
        screening.check_block_candidates,
    ),
    (
        Mutant(
            "one entry past the capacity",
            "candidates",
            "place < CAPACITY",
            "place <= CAPACITY",
        ),
        lambda load: screening.check_block_candidates(load, 7),
    ),
    (
        Mutant(
            "queries of a tile share places",
            "candidates",
            "first + before[:, None] + tl.cumsum",
            "first + tl.cumsum",
        ),
        lambda load: screening.check_block_candidates(load, 300),
    ),
    (
        Mutant(
            "the block of another stride",
            "thresholds",
            "best = tl.where(larger, first, best)",
            "best = tl.where(larger, first + GROUPS, best)",
        ),
        screening.check_block_thresholds,
    ),
    (
        Mutant(
            "a bound that meets the threshold is dropped",
            "candidates",
            "upper >= threshold",
            "upper > threshold",
        ),
        screening.check_block_candidates,
    ),
    (
        Mutant(
            "rows past the last rechecked",
            "recheck",
            "keep = row < M\n",
            "keep = row < M + BLOCK\n",
        ),
        screening.check_recheck,
    ),
    (
        Mutant(
            "products of another pair's block",
            "recheck",
            "tl.where(asked[None, :] & keep[:, None], acc, product)",
            "tl.where(keep[:, None], acc, product)",
        ),
        screening.check_recheck,
    ),
    (
        Mutant(
            "one pair past the last rechecked",
            "recheck",
            "mask=place < P, other=NO_PAIR",
            "mask=place <= P, other=NO_PAIR",
        ),
        screening.check_recheck,
    ),
    (
        Mutant(
            "one row past the capacity",
            "recheck",
            "slot < CAPACITY",
            "slot <= CAPACITY",
        ),
        lambda load: screening.check_recheck(load, capacity=7),
    ),
    (
        Mutant(
            "rows in the list of another query",
            "recheck",
            "out_ptr + query[None, :] * stride_on",
            "out_ptr + (query[None, :] ^ 1) * stride_on",
        ),
        screening.check_recheck,
    ),
    (
        Mutant(
            "the row after the best",
            "recheck",
            "tl.where(product == largest[None, :], lane, BLOCK)",
            "tl.where(product == largest[None, :], lane + 1, BLOCK)",
        ),
        screening.check_best_rows,
    ),
    (
        Mutant(
            "a row where there is none",
            "recheck",
            "found = present & (largest != lowest)",
            "found = present",
        ),
        screening.check_best_rows,
    ),
    (
        Mutant(
            "float32 sums in the rescoring",
            "rescore",
            "c = tl.load(corpus_row[:, None] + d * stride_cd, mask=mask, other=0.0).to(tl.float64)",
            "c = tl.load(corpus_row[:, None] + d * stride_cd, mask=mask, other=0.0)"
            ".to(tl.float16).to(tl.float64)",
        ),
        checks.check_rescore,
    ),
    (
        Mutant(
            "rows scaled as if they had the dtype of the queries",
            "rescore",
            "wide_c: tl.constexpr = corpus_ptr.",
            "wide_c: tl.constexpr = query_ptr.",
        ),
        checks.check_rescore_of_wide_rows,
    ),
    (
        Mutant(
            "one pair past the last",
            "rescore",
            "in_list = pair < P",
            "in_list = pair <= P",
        ),
        checks.check_rescore,
    ),
    (
        Mutant(
            "a positive that is not left out",
            "softmax_sums",
            "return tl.where((within >= 0) & (within < BLOCK_M), within, -1)",
            "return tl.where((within > 0) & (within < BLOCK_M), within, -1)",
        ),
        contrast.check_softmax_sums,
    ),
    (
        Mutant(
            "a positive of another tile left out",
            "softmax_sums",
            "mask=row < N, other=-1) - first_m\n",
            "mask=row < N, other=-1) % BLOCK_M\n",
        ),
        contrast.check_softmax_sums,
    ),
    (
        Mutant(
            "one column past the last among the negatives",
            "softmax_sums",
            "keep = (row < N)[:, None] & (column < M)[None, :]",
            "keep = (row < N)[:, None] & (column <= M)[None, :]",
        ),
        contrast.check_softmax_sums,
    ),
    (
        Mutant(
            "one row past the last among the negatives of columns",
            "softmax_sums",
            "keep = (row < N)[:, None] & (column < M)[None, :]",
            "keep = (row <= N)[:, None] & (column < M)[None, :]",
        ),
        contrast.check_softmax_sums,
    ),
    (
        Mutant(
            "ids of 32 bits",
            "softmax_sums",
            "keep &= id_x[:, None] != id_y[None, :]",
            "keep &= id_x.to(tl.int32)[:, None] != id_y.to(tl.int32)[None, :]",
        ),
        contrast.check_softmax_sums,
    ),
    (
        Mutant(
            "rows without negatives are not a number",
            "softmax_sums",
            'shift = tl.where(largest > float("-inf"), largest, 0.0)',
            "shift = largest",
        ),
        lambda load: contrast.check_softmax_sums(load, shape=(3, 1, 16)),
    ),
    (
        Mutant(
            "sums of the last row not written",
            "softmax_sums",
            "tl.store(part + stride_rp, sums, mask=row < N)",
            "tl.store(part + stride_rp, sums, mask=row < N - 1)",
        ),
        contrast.check_softmax_sums,
    ),
    (
        Mutant(
            "large rows summed as they are",
            "softmax_sums",
            "return launch_unit_rows(x[None], ones, exponent, x.dtype)[0], inverse",
            "return aligned_rows(x), inverse",
        ),
        lambda load: contrast.check_softmax_sums(
            load, shape=(9, 11, 16), x=oracle.inputs(9, 16, dtype=F32) * 1e30
        ),
    ),
    (
        Mutant(
            "sums of tiles added without their maxima",
            "softmax_sums",
            "return (powers * sums).sum(dim).log2()",
            "return sums.sum(dim).log2()",
        ),
        contrast.check_softmax_sums,
    ),
    (
        Mutant(
            "positives without a gradient",
            "softmax_weights",
            "tl.where(is_own, own[:, None], weight)",
            "tl.where(is_own, 0.0, weight)",
        ),
        contrast.check_softmax_weights,
    ),
    (
        Mutant(
            "weights of pairs that are no negatives",
            "softmax_weights",
            "weight = tl.where(keep, weight, 0.0)",
            "weight = weight + 0.0",
        ),
        contrast.check_softmax_weights,
    ),
    (
        Mutant(
            "factors of columns as far on as there are rows",
            "softmax_weights",
            "column_terms_ptr + M + column",
            "column_terms_ptr + N + column",
        ),
        contrast.check_softmax_weights,
    ),
    (
        Mutant(
            "weights of one row past the last",
            "softmax_weights",
            "mask=row_mask[:, None] & column_mask[None, :]",
            "mask=(row <= N)[:, None] & column_mask[None, :]",
        ),
        contrast.check_softmax_weights,
    ),
    (
        Mutant(
            "weights of the last column not written",
            "softmax_weights",
            "mask=row_mask[:, None] & column_mask[None, :]",
            "mask=row_mask[:, None] & (column < M - 1)[None, :]",
        ),
        contrast.check_softmax_weights,
    ),
    (
        Mutant(
            "order of a triangle off by one",
            "pairwise_persistent",
            "within = tl.where(last, tile - whole, within)",
            "within = tl.where(last, tile - whole + 1, within)",
        ),
        persistent.check_persistent_with_itself,
    ),
    (
        Mutant(
            "groups of a triangle that take each other's tiles",
            "pairwise_persistent",
            "within = tl.where(lower, within - size, within)",
            "within = tl.where(lower, within - size + 1, within)",
        ),
        persistent.check_persistent_with_itself,
    ),
    (
        Mutant(
            "a last group of row tiles taken for a whole one",
            "pairwise_persistent",
            "rows = tl.minimum(TILES_N - first, GROUP)",
            "rows = first * 0 + GROUP",
        ),
        persistent.check_persistent_with_itself,
    ),
    (
        Mutant(
            "second half stored at the first's columns",
            "pairwise_persistent",
            "first = first_m + half * HALF",
            "first = first_m + half * 0",
        ),
        persistent.check_persistent,
    ),
    (
        Mutant(
            "mirrored halves stored below the other half's",
            "pairwise_persistent",
            "tl.trans(c), batch, first, first_n)",
            "tl.trans(c), batch, first_m, first_n)",
        ),
        persistent.check_persistent_with_itself,
    ),
    (
        Mutant(
            "mirrored halves not transposed",
            "pairwise_persistent",
            "tl.trans(c), batch, first, first_n)",
            "c, batch, first, first_n)",
        ),
        persistent.check_persistent_with_itself,
    ),
    (
        Mutant(
            "squares on the diagonal mirrored as a whole",
            "pairwise_persistent",
            "if first < first_n:",
            "if first <= first_n:",
        ),
        persistent.check_persistent_with_itself,
    ),
    (
        Mutant(
            "squares on the diagonal mirrored from above",
            "pairwise_persistent",
            "tl.arange(0, HALF)[None, :] <= tl.arange(0, BLOCK_N)[:, None]",
            "tl.arange(0, HALF)[None, :] >= tl.arange(0, BLOCK_N)[:, None]",
        ),
        persistent.check_persistent_with_itself,
    ),
    (
        Mutant(
            "programs that pass over tiles",
            "pairwise_persistent",
            "tl.range(program, B * tiles, programs,",
            "tl.range(program, B * tiles, programs + 1,",
        ),
        persistent.check_persistent,
    ),
    (
        Mutant(
            "last tile of the last batch left out",
            "pairwise_persistent",
            "tl.range(program, B * tiles, programs,",
            "tl.range(program, B * tiles - 1, programs,",
        ),
        persistent.check_persistent,
    ),
    (
        Mutant(
            "norms of another batch",
            "pairwise_persistent",
            "flat_row = tl.cast(batch, tl.int64) * N + row",
            "flat_row = row",
        ),
        persistent.check_persistent,
    ),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS, ids=[mutant.name for mutant, _ in MUTANTS])
def test_mutant_is_caught(mutant, check, tmp_path):
    failures = (AssertionError, InterpreterError)
    with mutated(mutant, tmp_path) as load, pytest.raises(failures) as caught:
        check(load)
    # Caught by a check on values or memory, not because the mutant does not even run.
    if isinstance(caught.value, InterpreterError):
        assert "OutOfBoundsError" in str(caught.value)


def test_a_mutant_whose_line_has_changed_says_so(tmp_path):
    stale = Mutant("stale", "tiles", "no such line", "")
    with pytest.raises(ValueError, match="expected its line once"), mutated(stale, tmp_path):
        pass
