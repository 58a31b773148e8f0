"""The name of the processor, from what each system tells."""

import platform
import subprocess
import sys
from unittest import mock

import pytest

from cossim_fast.cli import processor

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: INTEL(R) XEON(R) PLATINUM 8581C CPU @ 2.10GHz
flags\t\t: fpu avx2 avx512f avx512_vnni amx_bf16 amx_int8 sse

processor\t: 1
model name\t: another
flags\t\t: none
"""
ARM = """processor\t: {number}
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes asimddp sve i8mm bf16
CPU implementer\t: {maker}
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {part}
CPU revision\t: 1

"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """Return a function that makes the system tell a text, or nothing."""

    def told(text):
        place = tmp_path / "cpuinfo"
        if text is not None:
            place.write_text(text)
        monkeypatch.setattr(processor, "CPUINFO", place)

    return told


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (X86, "INTEL(R) XEON(R) PLATINUM 8581C CPU @ 2.10GHz"),
        ("".join(ARM.format(number=n, maker="0x41", part="0xd40") for n in range(4)),
         "Arm Neoverse-V1"),
        (ARM.format(number=0, maker="0x41", part="0xd4f"), "Arm Neoverse-V2"),
        (ARM.format(number=0, maker="0xc0", part="0xac3"), "Ampere Ampere-1"),
        (ARM.format(number=0, maker="0x41", part="0xfff"), "Arm part 0xfff"),
        (ARM.format(number=0, maker="0x99", part="0x1"), "maker 0x99 part 0x1"),
        ("".join(ARM.format(number=n, maker="0x41", part=part)
                 for n, part in enumerate(["0xd05", "0xd05", "0xd41", "0xd44"])),
         "Arm Cortex-A55 and Arm Cortex-A78 and Arm Cortex-X1"),
    ],
)  # fmt: skip
def test_linux(text, name, cpuinfo):
    cpuinfo(text)
    assert processor.name() == name


def test_instructions(cpuinfo):
    cpuinfo(X86)
    assert processor.instructions() == ["avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"]
    cpuinfo(ARM.format(number=0, maker="0x41", part="0xd40"))
    assert processor.instructions() == ["asimd", "asimddp", "i8mm", "bf16", "sve"]
    cpuinfo("nonsense")
    assert processor.instructions() == []


def test_macos(cpuinfo, monkeypatch):
    cpuinfo(None)
    asked = mock.Mock(return_value=mock.Mock(stdout="Apple M2\n"))
    monkeypatch.setattr(subprocess, "run", asked)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processor.name() == "Apple M2"
    asked.side_effect = FileNotFoundError
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert processor.name() == "arm"


def test_windows(cpuinfo, monkeypatch):
    cpuinfo(None)
    registry = mock.MagicMock()
    registry.QueryValueEx.return_value = ("AMD Ryzen 9 7950X 16-Core Processor            ", 1)
    monkeypatch.setitem(sys.modules, "winreg", registry)
    monkeypatch.setattr(sys, "platform", "win32")
    assert processor.name() == "AMD Ryzen 9 7950X 16-Core Processor"


def test_a_system_that_tells_nothing(cpuinfo, monkeypatch):
    cpuinfo(None)
    monkeypatch.setattr(sys, "platform", "plan9")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert processor.name() == "unknown"
