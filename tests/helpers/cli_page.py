"""The page on the command line: run what it shows, and write what was seen.

python tests/helpers/cli_page.py --write
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from cli_run import run, run_on_terminal

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "command-line.md"
SESSION = re.compile(r"^```console\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
# What they print depends on the machine: only what stands first in each line is compared.
OF_THE_MACHINE = ("cossim info", "cossim bench")


def commands(session):
    """Each command of a session with what it printed."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        line, _, printed = part.partition("\n")
        yield line, printed


def see(line, status):
    """Run a line as a shell would on a terminal of 80 columns: exit status and what is seen."""
    if line == "echo $?":
        return 0, f"{status}\n"
    if line.startswith("cp "):
        shutil.copy(*line.split()[1:])
        return 0, ""
    line, _, lines = line.partition(" | head -")
    command, *arguments = line.split()
    assert command == "cossim", line
    status, out, err = (run if lines else run_on_terminal)(*arguments)
    if lines:
        out = "".join(out.splitlines(keepends=True)[: int(lines)])
    return status, re.sub(r" +$", "", out + err, flags=re.MULTILINE)


def seen_again(text):
    """The page as it would be if it was written now."""
    status = 0

    def session(match):
        nonlocal status
        seen = []
        for line, _ in commands(match[1]):
            status, printed = see(line, status)
            seen.append(f"$ {line}\n{printed}")
        return "```console\n" + "".join(seen) + "```"

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(ROOT / "examples", f"{folder}/examples")
        os.chdir(folder)
        try:
            return SESSION.sub(session, text)
        finally:
            os.chdir(before)


def comparable(line, printed):
    """What is the same on every machine."""
    if not line.startswith(OF_THE_MACHINE):
        return printed
    lines = [row for row in printed.splitlines() if not re.match(r"GPU|kernels|NOT QUIET", row)]
    return [re.split(r" {2,}|; ", row)[0] for row in lines if "; torch " not in row]


if __name__ == "__main__":
    new = seen_again(PAGE.read_text(encoding="utf-8"))
    if "--write" in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
    else:
        print(new)
