"""Programs that go from tile to tile: their order, their bits, what they write."""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from cossim_fast.kernels import configs, pairwise
from cossim_fast.kernels.launch import multiprocessors
from cossim_fast.kernels.pairwise_persistent import triangle_size, triangle_tile

from ladder import oracle, persistent
from ladder.checks import BF16, EPS, F16, F32
from ladder.runtime import DEVICE, INTERPRETING, kernels, needs_interpreter, needs_kernels
from ladder.stub import StubDriver

pytestmark = [pytest.mark.kernel_logic, needs_kernels]
DTYPES = pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)


@triton.jit
def _triangle_kernel(
    index_ptr, row_ptr, column_ptr, size_ptr, COUNT, TILES_N,
    RATIO: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK)
    index = tl.load(index_ptr + i, mask=i < COUNT, other=0)
    row, column = triangle_tile(index, TILES_N, RATIO, GROUP)
    tl.store(row_ptr + i, row, mask=i < COUNT)
    tl.store(column_ptr + i, column, mask=i < COUNT)
    tl.store(size_ptr, triangle_size(TILES_N, RATIO))


def tiles_at(index, tiles_n, ratio, group):
    """Tiles (row, column) of linear indices, and how many tiles there are."""
    index = torch.tensor(index, dtype=torch.int32, device=DEVICE)
    row, column, size = torch.empty_like(index), torch.empty_like(index), index.new_empty(1)
    block = triton.next_power_of_2(len(index))
    _triangle_kernel[(1,)](
        index, row, column, size, len(index), tiles_n, RATIO=ratio, GROUP=group, BLOCK=block
    )
    return list(zip(row.tolist(), column.tolist(), strict=True)), size.item()


def tiles_above(rows, ratio):
    """Tiles on and below the diagonal in the first rows of tiles."""
    squares, rest = divmod(rows, ratio)
    return ratio * squares * (squares + 1) // 2 + rest * (squares + 1)


def place(row, column, tiles_n, ratio, group):
    """Where a tile stands in the order, by counting the tiles before it."""
    groups, own = tiles_n // group, row // group
    whole, first = tiles_above(groups * group, ratio), own * group
    rows = min(tiles_n - first, group)
    if own >= groups:
        before = whole
    elif 2 * own < groups:  # after so many groups from the top, and as many from the bottom
        before = tiles_above(first, ratio) + whole - tiles_above((groups - own) * group, ratio)
    else:
        partner = (groups - own) * group
        before = tiles_above(partner, ratio) + whole - tiles_above(first + group, ratio)
    left = first // ratio
    if column < left:
        return before + column * rows + row - first
    columns, at = -(-rows // ratio), column - left
    pair = 2 * rows - (columns - 1) * ratio
    if 2 * at < columns:
        passed = at * pair
    else:  # after the column that it complements
        earlier = columns - 1 - at
        passed = earlier * pair + rows - earlier * ratio
    return before + left * rows + passed + row - first - at * ratio


@pytest.mark.parametrize(("ratio", "group"), [(1, 1), (1, 3), (2, 2), (2, 4), (2, 16), (4, 8)])
def test_a_triangle_has_each_tile_once(ratio, group):
    for tiles_n in (*range(1, 21), 33, 47, 48):
        wanted = {(i, j) for i in range(tiles_n) for j in range(i // ratio + 1)}
        found, size = tiles_at(range(len(wanted)), tiles_n, ratio, group)
        assert size == len(wanted)
        assert set(found) == wanted
        numbers = [place(*tile, tiles_n, ratio, group) for tile in found]
        assert numbers == list(range(len(wanted)))


def test_group_rows_share_a_column_of_tiles():
    """The point of groups: within one, the row moves fastest."""
    found, _ = tiles_at(range(200), 32, 2, 8)
    corner = tiles_above(8, 2)  # the first group is a triangle, the next the one at the bottom
    assert found[corner : corner + 8] == [(24 + i, 0) for i in range(8)]
    assert found[corner + 8 : corner + 16] == [(24 + i, 1) for i in range(8)]


@pytest.mark.parametrize(("ratio", "tiles_n"), [(1, 65535), (2, 92680), (2, 92671), (1, 65521)])
@pytest.mark.parametrize("group", [2, 8, 16])
def test_the_order_is_exact_to_the_last_of_2_to_the_31_tiles(ratio, tiles_n, group):
    total = tiles_above(tiles_n, ratio)
    assert 2**31 - 2**21 < total < 2**31
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, total, (2048,), generator=generator).tolist()
    index = [*range(64), *drawn, *range(total - 512, total)]
    found, size = tiles_at(index, tiles_n, ratio, group)
    assert size == total
    assert [place(*tile, tiles_n, ratio, group) for tile in found] == index
    assert all(0 <= j <= i // ratio and i < tiles_n for i, j in found)


@DTYPES
# Ragged everywhere, more tiles than programs and fewer, one tile, a row or a column of tiles.
@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((2, 67, 72, 67), 3),
        ((2, 37, 72, 40), 100),
        ((1, 1, 8, 1), 2),
        ((1, 16, 32, 32), 1),
        ((3, 17, 40, 33), 5),
        ((1, 8, 296, 32), 4),
    ],
)
def test_bits_are_those_of_a_tile_a_program(dtype, shape, count):
    persistent.check_persistent(kernels, dtype, shape, count)


def test_other_results_and_precisions():
    persistent.check_persistent(kernels, F32, precision="high")
    persistent.check_persistent(kernels, F16, (2, 40, 52, 67), out_dtype=F32)
    persistent.check_persistent(kernels, BF16, (1, 20, 36, 40), out_dtype=F32)


@DTYPES
@pytest.mark.parametrize(("n", "count"), [(72, 3), (56, 100), (8, 1), (16, 2), (24, 1)])
def test_a_matrix_with_itself(dtype, n, count):
    persistent.check_persistent_with_itself(kernels, dtype, n, 40, count)
    persistent.check_persistent_with_itself(kernels, dtype, n, 40, count, out_dtype=None)


def launched(x, y, count, tile, precision="highest", out_dtype=None):
    with persistent.programs(kernels, count) as asked:
        got = pairwise.launch_pairwise_fwd(x, y, EPS, precision, out_dtype, tile)
    return got.cpu(), len(asked)


def test_a_result_that_no_descriptor_describes_has_a_program_a_tile():
    """77 float16 columns are 154 bytes a row."""
    x, y = (oracle.inputs(2, n, 40, dtype=F16).to(DEVICE) for n in (33, 77))
    tile = persistent.small_tile(kernels)
    for tried, expected in ((y, 0), (y[:, :72], 1)):
        got, asked = launched(x, tried, 3, tile)
        assert asked == expected
        assert oracle.error(got, oracle.pairwise(x.cpu(), tried.cpu(), EPS)) <= 2**-11
    pointers = replace(tile, descriptors=False)
    assert launched(x, y[:, :72], 3, pointers)[1] == 0
    assert launched(x, y[:, :72], 3, replace(tile, persistent=False))[1] == 0


def test_bad_rows_stay_alone_and_zero_rows_give_zero():
    x, y = oracle.inputs(1, 37, 72, dtype=F16), oracle.inputs(1, 40, 72, dtype=F16, seed=1)
    x[0, 2, 5], x[0, 4], y[0, 30, 71] = torch.nan, 0, -torch.inf
    bad = torch.zeros(37, 40, dtype=torch.bool)
    bad[2], bad[:, 30] = True, True
    c, asked = launched(x.to(DEVICE), y.to(DEVICE), 2, persistent.small_tile(kernels))
    assert asked == 1
    assert torch.equal(torch.isnan(c[0]), bad)
    assert not c[0, 4][~bad[4]].any()
    y[0, 7, 3] = torch.nan
    rows = y.to(DEVICE)
    own, asked = launched(rows, rows, 2, persistent.small_tile(kernels))
    nan = torch.isnan(own[0])
    assert asked == 1
    assert int(nan.sum()) == 2 * 40 * 2 - 4
    assert bool(nan[7].all() and nan[:, 30].all())


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_rows_with_exponents_are_written_again(dtype):
    x = oracle.inputs(1, 40, 72, dtype=dtype)
    x[0, ::3] *= 1e30
    rows = x.to(DEVICE)
    for other in (rows, rows.flip(1)):
        c, asked = launched(rows, other, 2, persistent.small_tile(kernels), out_dtype=F32)
        assert asked == 1
        assert oracle.error(c, oracle.pairwise(x, other.cpu(), EPS)) <= 2**-21


def test_without_flattened_loops_the_bits_are_the_same():
    x, y = (oracle.inputs(2, n, 67, dtype=F16).to(DEVICE) for n in (37, 40))
    tile = persistent.small_tile(kernels)
    for other in (y, x[:, :32]):
        got, asked = launched(x[:, :32], other, 3, replace(tile, flatten=False))
        assert asked == 1
        assert torch.equal(got, launched(x[:, :32], other, 3, tile)[0])


@needs_interpreter
@pytest.mark.parametrize("arch", ["sm_90", "sm_100", "sm_120"])
def test_the_tiles_of_each_architecture_give_the_same_bits(arch, monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver(arch))
    tile = configs.choose_config("pairwise_fwd_persistent", F16, 64, arch, True)
    x, y = oracle.inputs(1, 264, 64, dtype=F16), oracle.inputs(1, 520, 64, dtype=F16, seed=1)
    for other in (y, x):
        got, asked = launched(x, other, 2, tile)
        assert asked == 1
        alone = replace(tile, persistent=False)
        assert torch.equal(got, launched(x, other, 2, alone)[0])


@needs_interpreter
def test_a_line_of_the_table_makes_them_the_default(monkeypatch, forgets_choices):
    monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver("sm_90"))
    x = oracle.inputs(1, 136, 64, dtype=F16)
    before, asked = launched(x, x, 2, None)
    assert asked == 0
    table = configs._PAIRWISE_FWD["wgmma"]
    monkeypatch.setitem(table, F16, replace(table[F16], persistent=True))
    forgets_choices()
    after, asked = launched(x, x, 2, None)
    assert asked == 1
    assert torch.equal(before, after)


def test_there_is_a_program_a_multiprocessor():
    expected = 132 if INTERPRETING else torch.cuda.get_device_properties(0).multi_processor_count
    assert multiprocessors() == expected


def test_an_architecture_without_descriptors_has_no_such_tile():
    with pytest.raises(ValueError, match="sm_90 or later, which copy by descriptor, got sm_80"):
        configs.choose_config("pairwise_fwd_persistent", F16, 64, "sm_80", True)
