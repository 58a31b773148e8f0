"""What an architecture can hold and issue, and what a compiled loop asks of it."""

import re
from dataclasses import dataclass

from ladder.code import CodeFacts


@dataclass(frozen=True)
class Machine:
    """Published limits of one multiprocessor (compute unit)."""

    shared: int  # bytes
    macs: dict[str, int]  # multiply-adds a clock by operand: "16", "8", "32"


KIB = 1024
MACHINES = {
    "sm_80": Machine(164 * KIB, {"16": 1024, "8": 2048, "32": 512}),
    "sm_86": Machine(100 * KIB, {"16": 256, "8": 1024, "32": 128}),
    "sm_89": Machine(100 * KIB, {"16": 256, "8": 1024, "32": 128}),
    "sm_90": Machine(228 * KIB, {"16": 2048, "8": 4096, "32": 1024}),
    "sm_100": Machine(228 * KIB, {"16": 4096, "8": 8192, "32": 2048}),
    # What sm_103 multiplies of int8 is not published: the rate of sm_86 stands in.
    "sm_103": Machine(228 * KIB, {"16": 4096, "8": 1024, "32": 2048}),
    "sm_120": Machine(100 * KIB, {"16": 256, "8": 1024, "32": 128}),
    "sm_121": Machine(100 * KIB, {"16": 256, "8": 1024, "32": 128}),
    "gfx90a": Machine(64 * KIB, {"16": 512, "8": 512, "32": 128}),
    "gfx942": Machine(64 * KIB, {"16": 1024, "8": 2048, "32": 128}),
}
SCHEDULERS = 4


def resident_warps(facts: CodeFacts, arch: str) -> int:
    """Warps that fit on a multiprocessor at once, by registers and shared memory."""
    if arch.startswith("gfx"):
        # 512 vector registers a lane, handed out in eights; four SIMD units.
        by_registers = SCHEDULERS * (512 // (8 * -(-max(facts.registers, 1) // 8)))
        limit = 32
        shared = facts.shared
    else:
        by_registers = 65536 // (32 * 8 * -(-max(facts.registers, 1) // 8))
        limit = 48 if arch in ("sm_86", "sm_89", "sm_120", "sm_121") else 64
        shared = facts.shared + KIB  # the system's share of each block
    blocks = min(by_registers, limit) // facts.warps
    if shared:
        blocks = min(blocks, MACHINES[arch].shared // shared)
    return blocks * facts.warps


def issue_to_tensor(facts: CodeFacts, arch: str, tile: tuple[int, int], operand: str) -> float:
    """Clocks to issue the innermost product loop over clocks of its matrix instructions.

    Below 1 the tensor cores can be kept busy. ``operand`` is "16", "8", or "32" for tf32 and AMD's
    float32; ``tile`` serves instructions that one thread issues for the whole block, whose name has
    no shape.
    """
    if not facts.loop_tensor:
        return 0.0
    name = facts.tensor_core
    depth = {"16": 16, "8": 32, "32": 8}[operand]
    if shape := re.search(r"GMMA\.(\d+)x(\d+)x(\d+)", name):
        rows, columns, k = map(int, shape.groups())
        macs = rows * columns * k * facts.warps // 4
    elif name.startswith(("HMMA", "IMMA")):
        # HMMA.16816 multiplies 16 x 16 by 16 x 8: rows, columns, depth.
        rows, columns, k = re.search(r"\.(16)(8)(\d+)", name).groups()
        macs = int(rows) * int(columns) * int(k) * facts.warps
    elif shape := re.search(r"_(\d+)x(\d+)x(\d+)_?", name):
        rows, columns, k = map(int, shape.groups())
        macs = rows * columns * k * facts.warps
    else:
        macs = tile[0] * tile[1] * depth
    tensor = facts.loop_tensor * macs / MACHINES[arch].macs[operand]
    return facts.loop_instructions * facts.warps / SCHEDULERS / tensor
