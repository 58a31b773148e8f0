"""Seeded bugs that the checks on values and memory must catch: the proof that they can fail."""

import pytest
from triton.runtime.errors import InterpreterError

from ladder import checks, contrast, oracle, persistent, screening
from ladder.checks import BF16, F16, F32
from ladder.mutants import Mutant, mutated
from ladder.runtime import needs_interpreter

pytestmark = [pytest.mark.kernel_mutants, needs_interpreter]

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
            "rows that float16 cannot hold",
            "half_rows",
            "LARGEST = tl.constexpr(14)",
            "LARGEST = tl.constexpr(16)",
        ),
        checks.check_half_rows,
    ),
    (
        Mutant(
            "norm of another row than the one that was written",
            "half_rows",
            "tl.sum(squares, axis=1), exponent, eps)",
            "tl.sum(squares, axis=1), 0, eps)",
        ),
        checks.check_half_rows,
    ),
    (
        Mutant(
            "padding not written",
            "half_rows",
            "mask = inside[:, None] & (d < WIDTH)",
            "mask = inside[:, None] & (d < D)",
        ),
        checks.check_half_rows,
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
            "grad_x = factor_x[:, None] * (y * inverse_y[:, None] - x * along_x[:, None])",
            "grad_x = factor_x[:, None] * (y * inverse_y[:, None])",
        ),
        checks.check_rowwise_bwd,
    ),
    (
        Mutant(
            "gradient rounded before it is scaled",
            "pairwise_backward",
            "grad *= power_of_two(-exponent_g)[:, None]\n",
            "exponent_g = exponent_g * 0\n",
        ),
        checks.check_small_gradients,
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
            "in_list = pair < P",
            "in_list = pair <= P",
        ),
        screening.check_recheck,
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
