"""Block maxima by programs that keep their queries: every run and tile once, whatever the grid."""

from dataclasses import replace

import pytest
import torch
from cossim_fast.kernels import search_configs, topk_persistent
from cossim_fast.kernels.architecture import TileConfig
from cossim_fast.kernels.configs import choose_config
from cossim_fast.kernels.search_configs import persistent_tiles
from cossim_fast.kernels.topk import launch_block_max

from ladder import checks
from ladder.checks import BF16
from ladder.code import read_code
from ladder.matrix import FULL_ARCHS
from ladder.roofline import resident_warps
from ladder.runtime import INTERPRETING, kernels, needs_kernels
from ladder.stub import compiled_for

DESCRIBED = ("sm_90", "sm_100", "sm_103")
SMALL = TileConfig(16, 64, 32, 8, 2, 2, persistent=True)


@pytest.mark.kernel_logic
@needs_kernels
@pytest.mark.parametrize(("descriptors", "dots"), [(False, 8), (True, 1), (False, 1)])
@pytest.mark.parametrize("dtype", [torch.int8, BF16], ids=str)
@pytest.mark.parametrize("some_eligible", [False, True])
@pytest.mark.parametrize("block", [1, 32, 64])
@pytest.mark.parametrize("shape", [(131, 203, 67), (5, 203, 67), (1, 1, 1), (17, 128, 200)])
def test_block_maxima_match_float64(dtype, some_eligible, block, shape, descriptors, dots):
    if descriptors and not (INTERPRETING or torch.cuda.get_device_capability()[0] >= 9):
        pytest.skip("descriptors need sm_90")
    tile = replace(SMALL, descriptors=descriptors, dots=dots)
    with checks.few_programs(kernels, 2):
        checks.check_block_max(
            kernels, dtype, shape, block, some_eligible=some_eligible, config=tile
        )


@pytest.mark.kernel_logic
@needs_kernels
@pytest.mark.parametrize("programs", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("shape", [(70, 500, 20), (16, 900, 40), (100, 60, 40)])
def test_every_tile_has_its_turn_on_a_grid_of_any_size(programs, shape):
    with checks.few_programs(kernels, programs):
        for some_eligible in (False, True):
            checks.check_block_max(
                kernels, shape=shape, block=32, some_eligible=some_eligible, config=SMALL
            )


@pytest.mark.kernel_logic
@needs_kernels
@pytest.mark.parametrize("hidden", [0, 4095, 4096, 8191, 8192, 9215])
def test_one_row_that_is_not_eligible_is_seen_wherever_it_lies_in_a_run(hidden):
    checks.check_one_row_left_out(kernels, hidden)


@pytest.mark.parametrize(("n", "m"), [(4096, 1 << 20), (1024, 1 << 20), (64, 10**7), (9000, 10**6)])
@pytest.mark.parametrize("programs", [132, 264])
def test_runs_keep_all_programs_busy(n, m, programs):
    tiles_n, tiles_m = -(-n // 128), -(-m // 128)
    run = topk_persistent.run_length(tiles_n, tiles_m, programs)
    assert run >= 16
    rounds = -(-tiles_n * -(-tiles_m // run) // programs)
    assert rounds * run <= 1.06 * tiles_n * tiles_m / programs


def test_short_corpora_have_short_runs():
    assert topk_persistent.run_length(1, 1, 132) == 1
    assert topk_persistent.run_length(2, 66, 132) == 1
    assert topk_persistent.run_length(1, 264, 132) == 2


def test_tiles_are_there_for_rows_that_fit():
    for arch in FULL_ARCHS:
        for d in (1, 128, 129, 384):
            tiles = persistent_tiles(d, arch, True)
            assert len(tiles) > 0
            assert all(tile.persistent for tile in tiles)
            assert all(tile.descriptors == (arch in DESCRIBED) for tile in tiles)
        assert persistent_tiles(385, arch, True) == ()


def test_one_line_makes_them_the_default(monkeypatch, forgets_choices):
    plain = choose_config("block_max", torch.int8, 384, "sm_90", True)
    assert not plain.persistent
    monkeypatch.setattr(search_configs, "PERSISTENT_BLOCK_MAX", True)
    forgets_choices()
    first = persistent_tiles(384, "sm_90", True)[0]
    assert choose_config("block_max", torch.int8, 384, "sm_90", True) == first
    assert choose_config("block_max", torch.int8, 400, "sm_90", True) == plain
    assert not choose_config("block_max", BF16, 384, "sm_90", True).persistent
    assert choose_config("block_max_few", torch.int8, 384, "sm_90", True).swap
    assert not choose_config("block_max", torch.int8, 384, "sm_80").persistent


def test_programs_share_a_multiprocessor_as_far_as_shared_memory_goes():
    with compiled_for("sm_90"):
        for d, expected in ((128, 3), (256, 2), (384, 2)):
            tile = persistent_tiles(d, "sm_90", True)[0]
            assert topk_persistent.programs_beside(tile, d // tile.block_k, 1) == expected
            tile = persistent_tiles(d, "sm_90", True)[-1]
            assert topk_persistent.programs_beside(tile, d // tile.block_k, 1) == 1


@pytest.mark.kernel_compile
@pytest.mark.skipif(INTERPRETING, reason="compiles: run without TRITON_INTERPRET")
@pytest.mark.parametrize("d", [128, 256, 384])
def test_queries_are_loaded_outside_of_the_loop_over_the_corpus(d):
    codes = torch.zeros(512, d, dtype=torch.int8)
    tile = persistent_tiles(d, "sm_90", True)[0]
    with compiled_for("sm_90") as launches:
        launch_block_max(codes, codes, config=tile)
    code = launches[-1].kernel.asm["ttgir"]
    copy = "async_tma_copy_global_to_local"
    copies = [line for line in code.splitlines() if copy in line]
    # The last loop is the innermost one: its step loads a part of the corpus and none of queries.
    loop = code[code.rindex("scf.for") :]
    assert ["corpus_ptr" in line for line in loop.splitlines() if copy in line] == [True]
    assert sum("query_ptr" in line for line in copies) == d // 128
    # Parts to come are under way while the maxima of a tile are written.
    assert loop.index(copy) < loop.index("scf.if")
    # As many programs fit as the grid counts on.
    facts = read_code(launches[-1].kernel)
    with compiled_for("sm_90"):
        beside = topk_persistent.programs_beside(tile, d // tile.block_k, 1)
    assert facts.spills == 0
    assert resident_warps(facts, "sm_90") == tile.num_warps * beside


@pytest.mark.kernel_compile
@pytest.mark.skipif(INTERPRETING, reason="compiles: run without TRITON_INTERPRET")
def test_grid_has_no_more_programs_than_the_device_holds():
    codes = torch.zeros(4096, 128, dtype=torch.int8)
    few = torch.zeros(100, 128, dtype=torch.int8)
    tile = persistent_tiles(128, "sm_90", True)[0]
    with compiled_for("sm_90") as launches:
        launch_block_max(codes, codes.repeat(8, 1), config=tile)
        launch_block_max(few, few, config=tile)
    assert 0.95 * 3 * 132 <= launches[0].grid[0] <= 3 * 132
    assert launches[1].grid[0] == 1
    assert launches[0].cost["flops8"] == 2 * 4096 * 8 * 4096 * 128
