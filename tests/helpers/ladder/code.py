"""Read what the compiler made: registers, spills, shared memory, and the innermost product loop."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

# Mnemonics of matrix instructions, by architecture family.
TENSOR_CORE = re.compile(
    r"\b((?:HGMMA|IGMMA|QGMMA)\.[0-9x]+|(?:HMMA|IMMA)\.[0-9]+|UTC[HIQ]MMA|v_mfma_\w+)"
)
# Spilled registers go through these; a stack frame that is reserved and never used costs nothing.
LOCAL_ACCESS = re.compile(r"\b(STL|LDL)\b")
BULK_LOAD = re.compile(r"\bUTMALDG\b")
FFMA = re.compile(r"\b(FFMA2?|v_fma_f32|v_fmac_f32\w*|v_pk_fma_f32)\b")


@dataclass(frozen=True)
class CodeFacts:
    """Facts about one compiled kernel."""

    registers: int
    spills: int  # loads from and stores to local memory; on AMD, spilled vector registers
    shared: int  # bytes of shared memory a block
    warps: int
    tensor_core: str  # the matrix instruction of the innermost loop that holds one, "" if none
    bulk_loads: bool  # copies by tensor descriptor
    loop_instructions: int  # a warp, in that loop
    loop_tensor: int  # matrix instructions a warp, in that loop
    loop_ffma: int  # float32 multiply-adds a warp, in that loop


def _tool(name: str) -> str:
    return getattr(triton.knobs.nvidia, name).path


def _with_file(binary: bytes, *command: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary)
        return subprocess.run(
            [*command, file.name], check=True, capture_output=True, text=True
        ).stdout


def _nvidia_instructions(cubin: bytes) -> list[tuple[str, str]]:
    """(label or "", instruction) in order; a label stands alone before what it labels."""
    lines = []
    for line in _with_file(cubin, _tool("nvdisasm"), "-c").splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            lines.append((label[1], ""))
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.+?);?\s*$", line):
            lines.append(("", instruction[1].strip(" {}")))
    return lines


def _amd_instructions(text: str) -> list[tuple[str, str]]:
    lines = []
    for raw in text.splitlines():
        line = raw.split(";")[0].strip()
        if label := re.match(r"(\.LBB\d+_\d+):", line):
            lines.append((label[1], ""))
        elif line and not line.startswith((".", "//")) and not line.endswith(":"):
            lines.append(("", line))
    return lines


BRANCH = re.compile(r"\b(?:BRA\S*|s_cbranch\w*|s_branch)\b.*?(\.L\w+)")


def innermost_loop(lines: list[tuple[str, str]]) -> list[str]:
    """Instructions of the shortest loop that holds a matrix instruction; [] if none does.

    A loop runs from a label to a branch back to it. Of several versions of a loop (one on scaled
    rows, one not) the shortest is the common one. A wait that has to be repeated stands after the
    end, and its way back into the loop is none.
    """
    position = {label: i for i, (label, _) in enumerate(lines) if label}
    target = [found[1] if (found := BRANCH.search(text)) else "" for _, text in lines]
    best: list[str] = []
    for end, label in enumerate(target):
        after_wait = end > 0 and end - 3 <= position.get(target[end - 1], -3) < end
        if not label or after_wait or position.get(label, end) >= end:
            continue
        body = [text for name, text in lines[position[label] : end + 1] if not name]
        if any(TENSOR_CORE.search(text) for text in body) and (not best or len(body) < len(best)):
            best = body
    return best


def read_code(kernel: triton.compiler.CompiledKernel) -> CodeFacts:
    """Disassemble a compiled kernel and count."""
    if "cubin" in kernel.asm:
        lines = _nvidia_instructions(kernel.asm["cubin"])
        usage = _with_file(kernel.asm["cubin"], _tool("cuobjdump"), "--dump-resource-usage")
        registers = int(re.search(r"REG:(\d+)", usage)[1])
        spills = sum(bool(LOCAL_ACCESS.search(text)) for _, text in lines)
    else:
        text = kernel.asm["amdgcn"]
        lines = _amd_instructions(text)
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])
        spills = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text)[1])
    loop = innermost_loop(lines)
    matrix = [found[1] for text in loop if (found := TENSOR_CORE.search(text))]
    return CodeFacts(
        registers=registers,
        spills=spills,
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        tensor_core=matrix[0] if matrix else "",
        bulk_loads=any(BULK_LOAD.search(text) for _, text in lines),
        loop_instructions=len(loop),
        loop_tensor=len(matrix),
        loop_ffma=sum(bool(FFMA.search(text)) for text in loop),
    )
