"""Compiled ahead of time, without a GPU: imports, choices, and what the machine code holds."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import triton
from cossim_fast.kernels.architecture import TileConfig
from cossim_fast.kernels.candidates import launch_block_candidates
from cossim_fast.kernels.configs import choose_config, choose_planes
from cossim_fast.kernels.gradient_panel import launch_gradient_panel
from cossim_fast.kernels.pairwise import launch_pairwise_fwd
from cossim_fast.kernels.pairwise_backward import launch_pairwise_bwd
from cossim_fast.kernels.recheck import launch_best_rows, launch_recheck
from cossim_fast.kernels.rowwise import launch_rowwise_fwd
from cossim_fast.kernels.softmax_sums import launch_softmax_sums
from cossim_fast.kernels.softmax_weights import launch_softmax_weights
from cossim_fast.kernels.thresholds import launch_block_thresholds
from cossim_fast.kernels.topk import launch_block_max

from ladder import interpreter, report
from ladder.code import CodeFacts, innermost_loop, read_code
from ladder.matrix import QUICK_ARCHS, cases
from ladder.roofline import issue_to_tensor, resident_warps
from ladder.runtime import INTERPRETING
from ladder.stub import compiled_for

pytestmark = [
    pytest.mark.kernel_compile,
    pytest.mark.skipif(INTERPRETING, reason="compiles: run without TRITON_INTERPRET"),
]
CORE = [(arch, case) for arch in QUICK_ARCHS for case in cases(arch) if case.core]


@pytest.fixture(autouse=True)
def _say_which_triton_compiles():
    if not interpreter.is_known(triton.__version__):
        # Shown beside what fails.
        known = ", ".join(interpreter.KNOWN_VERSIONS)
        print(f"compiled by Triton {triton.__version__}: registers, spills and instructions were")
        print(f"checked with Triton {known} alone, and another may well choose differently")


@pytest.mark.kernel_import
def test_kernels_import_and_choose_tiles_without_a_driver():
    code = """
import pkgutil, importlib, triton, torch
from cossim_fast import kernels
for module in pkgutil.iter_modules(kernels.__path__):
    importlib.import_module(f"cossim_fast.kernels.{module.name}")
from cossim_fast.kernels.configs import choose_config
for arch in ("sm_80", "sm_90", "sm_100", "gfx942"):
    for kernel in ("row_norm", "rowwise_bwd", "pairwise_fwd", "pairwise_bwd", "block_max"):
        choose_config(kernel, torch.bfloat16, 768, arch)
assert triton.runtime.driver._active is None and triton.runtime.driver._default is None
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="name of a kernel, got 'rowwise'"):
        choose_config("rowwise", torch.float32, 768, "sm_90")


def test_configurations_do_not_depend_on_the_number_of_rows():
    """The signature says it: nothing but dtype, d, architecture, precision and alignment."""
    few, many = torch.zeros(1, 16, 64), torch.zeros(1, 4096, 64)
    with compiled_for("sm_90") as launches:
        launch_pairwise_fwd(few, few, 1e-8)
        launch_pairwise_fwd(many, many, 1e-8)
    tiles = [x.constants for x in launches if x.name == "_pairwise_fwd_kernel"]
    assert tiles[0] == tiles[1]


@pytest.mark.parametrize(("arch", "case"), CORE, ids=[f"{a} {case.name}" for a, case in CORE])
def test_compiles_without_spills_and_with_matrix_instructions(case, arch):
    assert report.problems(case.name, report.inspect(case, arch), case, arch) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_pairwise_on_sm_90_has_descriptor_loads_and_eight_resident_warps(dtype):
    x = torch.zeros(2, 512, 768, dtype=dtype)
    with compiled_for("sm_90") as launches:
        launch_pairwise_fwd(x, x.clone(), 1e-8)
    facts = read_code(launches[1].kernel)
    assert facts.tensor_core.startswith("HGMMA")
    assert facts.bulk_loads
    assert resident_warps(facts, "sm_90") >= 8
    assert issue_to_tensor(facts, "sm_90", (128, 128), "16") < 1


@pytest.mark.parametrize(("arch", "instruction"), [("sm_80", "IMMA"), ("sm_90", "IGMMA")])
def test_screen_multiplies_integers_and_stores_maxima_alone(arch, instruction):
    codes = torch.zeros(512, 768, dtype=torch.int8)
    with compiled_for(arch) as launches:
        launch_block_max(codes, codes)
    facts = read_code(launches[-1].kernel)
    assert facts.tensor_core.startswith(instruction)
    # One store of maxima: the scores have no way out. The tile holds 64 times as many scores.
    ir = launches[-1].kernel.asm["ttgir"]
    stores = [line for line in ir.splitlines() if "tt.store" in line]
    tile = launches[-1].constants
    assert len(stores) == 1
    assert f"tensor<{tile['BLOCK_N']}x{tile['BLOCK_M'] // 64}x!tt.ptr<i32>" in stores[0]


def test_pairwise_forward_stores_its_result_once():
    x = torch.zeros(1, 512, 768, dtype=torch.bfloat16)
    with compiled_for("sm_90") as launches:
        launch_pairwise_fwd(x, x.clone(), 1e-8)
    stores = [x for x in launches[1].kernel.asm["ttgir"].splitlines() if "tt.store" in x]
    assert len(stores) == 1


@pytest.mark.parametrize("itself", [False, True])
def test_persistent_programs_store_by_descriptor_and_load_the_next_tile_first(itself):
    x = torch.zeros(1, 512, 768, dtype=torch.float16)
    tile = choose_config("pairwise_fwd_persistent", x.dtype, 768, "sm_90", True)
    with compiled_for("sm_90") as launches:
        launch_pairwise_fwd(x, x if itself else x.clone(), 1e-8, config=tile)
    (kernel,) = (x.kernel for x in launches if x.name == "_pairwise_fwd_persistent_kernel")
    lines = kernel.asm["ttgir"].splitlines()
    assert not any("tt.store" in line for line in lines)
    # In the one loop: a wait for the product, loads of the step after next, then the epilogue.
    inner = max(i for i, line in enumerate(lines) if "scf.for" in line)
    step = [i for i, line in enumerate(lines) if i > inner and "global_to_local" in line]
    stores = [i for i, line in enumerate(lines) if "local_to_global" in line]
    assert len(step) == 2
    assert len(stores) == (6 if itself else 2)
    assert max(step) < min(stores)


def test_rows_that_do_not_align_are_copied_and_load_in_wide_pieces():
    x = torch.zeros(1, 131, 67, dtype=torch.bfloat16)
    with compiled_for("sm_90") as launches:
        launch_pairwise_fwd(x, x.clone(), 1e-8)
    assert read_code(launches[1].kernel).bulk_loads


def test_copies_of_a_gradient_load_and_store_in_pieces_of_16_bytes():
    """Transposed, and with its mirror, too."""
    g, exponent = torch.zeros(1, 512, 512), torch.zeros(1, 512, dtype=torch.int32)
    with compiled_for("sm_90") as launches:
        for sides in ((g, None), (g.mT, None), (g, g.mT)):
            launch_gradient_panel(*sides, torch.float16, exponent)
    for launch in launches:
        lines = launch.kernel.asm["ptx"].splitlines()
        loads, stores = ([x for x in lines if f"{word}.global" in x] for word in ("ld", "st"))
        assert loads
        assert all(".v4.b32" in x for x in loads)
        # But for the exponents.
        assert [".v4.b32" in x for x in stores].count(False) == 1


def test_launchers_report_bytes_and_operations():
    n, m, d = 512, 256, 768
    x, y = torch.zeros(2, n, d).half(), torch.zeros(2, m, d).half()
    with compiled_for("sm_80") as launches:
        launch_rowwise_fwd(x[0], x[0], 1e-8)
        launch_pairwise_fwd(x, y, 1e-8)
        launch_pairwise_bwd(torch.zeros(2, n, m), x, y, 1e-8)
        launch_block_max(x[0].to(torch.int8), y[0].to(torch.int8))
    cost = {launch.name: launch.cost for launch in launches}
    assert cost["_rowwise_fwd_kernel"]["bytes"] == 2 * n * d * 2 + n * 2
    assert cost["_pairwise_fwd_kernel"]["bytes"] == 2 * ((n + m) * d * 2 + n * m * 2)
    assert cost["_pairwise_fwd_kernel"]["flops16"] == 2 * 2 * n * m * d
    assert cost["_pairwise_bwd_product_kernel"]["flops16"] == 2 * 2 * n * m * d
    assert cost["_block_max_kernel"]["bytes"] == (n + m) * d + 4 * n * m // 64
    assert cost["_block_max_kernel"]["flops8"] == 2 * n * m * d


@pytest.mark.parametrize(("parts", "products"), [(2, 3), (3, 6)])
def test_planes_are_two_launches_and_multiply_from_shared_memory(parts, products):
    n, m, d = 512, 256, 768
    x, y = torch.zeros(2, n, d), torch.zeros(2, m, d)
    with compiled_for("sm_90") as launches:
        launch_pairwise_fwd(x, y, 1e-8, config=choose_planes(parts, "sm_90"))
    split, product = launches
    assert split.name == "_planes_kernel"
    assert split.cost["bytes"] == 2 * (n + m) * (4 * d + 2 * parts * d + 4)
    assert product.name == "_pairwise_fwd_kernel"
    assert product.cost["bytes"] == 2 * ((n + m) * 2 * parts * d + 4 * n * m)
    assert product.cost["flops16"] == 2 * products * 2 * n * m * d
    facts = read_code(product.kernel)
    assert facts.bulk_loads
    # Split within the product it takes 0.59.
    assert issue_to_tensor(facts, "sm_90", (128, 128), "16") < 0.4
    # Tensor cores cut what they add: the steps' sums are added by others.
    ir = product.kernel.asm["ttgir"].splitlines()
    assert any("arith.addf" in line and "tensor<128x128xf32" in line for line in ir)


def test_sums_of_a_loss_report_them_and_store_nothing_of_the_matrix():
    n, m, d = 512, 256, 768
    x, y = torch.zeros(n, d).half(), torch.zeros(m, d).half()
    index = torch.zeros(n, dtype=torch.int64)
    with compiled_for("sm_80") as launches:
        sides = x, torch.zeros(n), y, torch.zeros(m)
        rows, columns = launch_softmax_sums(*sides, torch.ones(()), index, symmetric=True)
    (launch,) = launches
    partials = rows.numel() + columns.numel()
    assert launch.cost["bytes"] == (n + m) * (2 * d + 4) + 8 * n + 4 * partials
    assert launch.cost["flops16"] == 2 * n * m * d
    stores = [line for line in launch.kernel.asm["ttgir"].splitlines() if "tt.store" in line]
    assert len(stores) == 4
    assert all("tensor<128x!tt.ptr<f32>" in line for line in stores)


def test_weights_of_a_loss_report_bytes_and_operations():
    n, m, d = 512, 256, 768
    x, y = torch.zeros(n, d).half(), torch.zeros(m, d).half()
    index, terms = torch.zeros(n, dtype=torch.int64), (torch.zeros(3, n), torch.zeros(2, m))
    with compiled_for("sm_80") as launches:
        sides = x, torch.zeros(n), y, torch.zeros(m)
        launch_softmax_weights(*sides, torch.ones(()), index, *terms)
    vectors = 4 * (n + m) + 8 * n + 12 * n + 8 * m
    assert launches[-1].cost["bytes"] == (n + m) * 2 * d + vectors + 2 * n * m
    assert launches[-1].cost["flops16"] == 2 * n * m * d


def test_selection_reports_bytes_and_operations_too():
    n, blocks, pairs, d = 8, 5000, 40, 768
    with compiled_for("sm_80") as launches:
        maxima, reach = torch.zeros(n, blocks, dtype=torch.int32), torch.zeros(n)
        terms = torch.zeros(4, n), torch.zeros(3, blocks)
        launch_block_thresholds(maxima, *terms, 10, 1024)
        launch_block_candidates(maxima, *terms, reach, 256)
        codes, listed = torch.zeros(64, d, dtype=torch.int8), torch.zeros(pairs, dtype=torch.int32)
        launch_recheck(codes[:n], codes, terms[0], terms[1][:, :1], reach, listed, 64, None, 9)
        launch_best_rows(codes[:n], codes, listed, 64, None)
    cost = {launch.name: launch.cost for launch in launches}
    # Maxima in; what each query and each block is bounded by; groups out, a bound and a block each.
    read = 4 * n * blocks + 12 * blocks + 16 * n
    assert cost["_group_bounds_kernel"]["bytes"] == read + 8 * n * 1024
    assert cost["_block_candidates_kernel"]["bytes"] == read + 4 * n
    assert cost["_recheck_kernel"]["bytes"] == pairs * (64 * d + d + 4)
    assert cost["_best_rows_kernel"]["bytes"] == pairs * (64 * d + d + 4 + 8)
    assert cost["_recheck_kernel"]["flops8"] == 2 * pairs * 64 * d


def test_a_spill_is_seen():
    """A tile far too large for its warps: the reader must report what the gate looks for."""
    x = torch.zeros(1, 512, 768)
    config = TileConfig(256, 128, 32, 4, 2, precision="ieee")
    with compiled_for("sm_80") as launches:
        launch_pairwise_fwd(x, x, 1e-8, config=config)
    facts = read_code(launches[-1].kernel)
    assert facts.spills > 0
    assert facts.tensor_core == ""


def test_shared_memory_beyond_the_device_is_refused():
    x = torch.zeros(1, 512, 768, dtype=torch.float16)
    config = TileConfig(128, 256, 128, 8, 4)
    refused = pytest.raises(Exception, match="out of resource: shared memory")
    with compiled_for("sm_80"), refused:
        launch_pairwise_fwd(x, x, 1e-8, config=config)


def test_innermost_loop_is_the_shortest_with_a_matrix_instruction():
    lines = [
        (".L_x_0", ""),
        ("", "MOV R1, R2"),
        (".L_x_1", ""),
        ("", "HMMA.16816.F32 R4, R8, R10, R4"),
        ("", "@P0 BRA `(.L_x_1)"),
        (".L_x_2", ""),
        ("", "FFMA R1, R2, R3, R1"),
        ("", "@P1 BRA `(.L_x_2)"),
        ("", "@P2 BRA `(.L_x_0)"),
    ]
    assert len(innermost_loop(lines)) == 2
    assert innermost_loop(lines[5:8]) == []


def test_the_way_back_from_a_repeated_wait_is_no_loop():
    multiply = ("", "IGMMA.64x128x32.S8.S8 R24, gdesc[UR24], R24")
    lines = [
        (".L_x_0", ""),
        *(3 * [multiply]),
        ("", "@!P0 BRA `(.L_x_2)"),
        (".L_x_1", ""),
        multiply,
        ("", "@P1 BRA `(.L_x_0)"),
        ("", "EXIT"),
        (".L_x_2", ""),
        ("", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR17], R8"),
        ("", "@!P0 BRA `(.L_x_2)"),
        ("", "BRA `(.L_x_1)"),
    ]
    assert innermost_loop(lines).count(multiply[1]) == 4


FACTS = CodeFacts(128, 0, 64 * 1024, 8, "HMMA.16816", False, 128, 32, 0)


def test_issue_to_tensor_and_residence_by_hand():
    # 128 instructions x 8 warps / 4 schedulers; 32 x 16x8x16 x 8 warps / 1024 a clock.
    assert issue_to_tensor(FACTS, "sm_80", (128, 128), "16") == 256 / 512
    # Of tf32 half the depth at half the rate.
    scan = replace(FACTS, tensor_core="HMMA.1688")
    assert issue_to_tensor(scan, "sm_80", (128, 128), "32") == 256 / 512
    hopper = replace(FACTS, tensor_core="HGMMA.64x128x16", loop_tensor=4)
    assert issue_to_tensor(hopper, "sm_90", (128, 128), "16") == 256 / 512
    blackwell = replace(FACTS, tensor_core="UTCHMMA", loop_tensor=4)
    assert issue_to_tensor(blackwell, "sm_100", (128, 128), "16") == 256 / 256
    # 65536 registers hold two blocks of 8 warps at 128 each; 164 KiB hold two of 65 KiB.
    assert resident_warps(FACTS, "sm_80") == 16
    assert resident_warps(replace(FACTS, shared=100 * 1024), "sm_80") == 8


def test_the_report_names_what_got_worse():
    before = {"registers": 100, "shared": 8, "resident_warps": 16, "tensor_core": "HMMA.16816"}
    assert report.regressions(before, before) == []
    worse = before | {"registers": 110, "resident_warps": 8, "tensor_core": ""}
    assert len(report.regressions(worse, before)) == 3
    assert report.regressions(before, None) == ["not in the baseline"]
    case = next(case for case in cases() if case.tensor_core)
    row = before | {"spills": 8, "warps": 8, "tensor_core": "", "loop_ffma": 0}
    assert report.problems(case.name, row, case, "sm_80") == [
        "8 spilled",
        "no matrix instruction in any loop",
    ]


def test_the_committed_page_is_the_committed_figures():
    rows = report.load_baseline()
    assert set(rows) >= set(QUICK_ARCHS)
    assert report.TABLE.read_text(encoding="utf-8") == report.table(rows)
    for arch, found in rows.items():
        assert [name for name, row in found.items() if row["spills"]] == [], arch
        assert set(found) == {case.name for case in cases(arch)}, arch
