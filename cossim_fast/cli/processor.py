"""The name and instruction sets of the processor, as the system reports them."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# Instruction sets that products use, by their names on Linux.
_INSTRUCTIONS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
# ARM processors report numbers of their maker and part (as in lscpu-arm.c of util-linux).
_MAKERS = {
    0x41: "Arm", 0x42: "Broadcom", 0x43: "Cavium", 0x46: "Fujitsu", 0x48: "HiSilicon",
    0x4E: "NVIDIA", 0x50: "Applied Micro", 0x51: "Qualcomm", 0x53: "Samsung", 0x61: "Apple",
    0x6D: "Microsoft", 0xC0: "Ampere",
}  # fmt: skip
_PARTS = {
    (0x41, 0xD03): "Cortex-A53", (0x41, 0xD05): "Cortex-A55", (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72", (0x41, 0xD09): "Cortex-A73", (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76", (0x41, 0xD0C): "Neoverse-N1", (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1", (0x41, 0xD41): "Cortex-A78", (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510", (0x41, 0xD47): "Cortex-A710", (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2", (0x41, 0xD4A): "Neoverse-E1", (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3", (0x41, 0xD4F): "Neoverse-V2", (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720", (0x41, 0xD82): "Cortex-X4", (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD85): "Cortex-X925", (0x41, 0xD87): "Cortex-A725", (0x41, 0xD8E): "Neoverse-N3",
    (0x43, 0x0AF): "ThunderX2", (0x46, 0x001): "A64FX", (0x48, 0xD01): "Kunpeng 920",
    (0x51, 0x001): "Oryon", (0x61, 0x022): "M1 (Icestorm)", (0x61, 0x023): "M1 (Firestorm)",
    (0xC0, 0xAC3): "Ampere-1", (0xC0, 0xAC4): "Ampere-1A",
}  # fmt: skip


def name() -> str:
    """The processor's name, or "unknown"."""
    return _of_cpuinfo() or _of_system() or platform.processor() or "unknown"


def instructions() -> list[str]:
    """The instruction sets that matter here; none where the system does not report them."""
    flags = next(_fields("flags", "Features"), "").split()
    return [name for name in _INSTRUCTIONS if name in flags]


def _of_cpuinfo() -> str:
    """The model name; of an ARM processor, the names of its kinds of cores."""
    told = next(_fields("model name"), "")
    if told:
        return told
    makers, parts = _fields("CPU implementer"), _fields("CPU part")
    cores = dict.fromkeys(zip(map(_number, makers), map(_number, parts), strict=False))
    return " and ".join(
        f"{_MAKERS.get(maker, f'maker {maker:#x}')} {_PARTS.get((maker, part), f'part {part:#x}')}"
        for maker, part in cores
    )


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0


def _fields(*names: str) -> Iterator[str]:
    """The values of all lines with one of these names."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() in names:
            yield value.strip()


def _of_system() -> str:
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""
    if sys.platform == "win32":
        import winreg  # noqa: PLC0415 - Windows alone has it

        place = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except OSError:
            return ""
    return ""
