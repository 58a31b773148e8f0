"""README: its code runs, its names exist, its figures are those that were measured."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cossim_fast

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_every_public_name_is_in_the_table() -> None:
    for name in set(cossim_fast.__all__) - {"Explanation", "__version__"}:
        assert re.search(rf"^\| `{name}[(.]", README, flags=re.MULTILINE), name


def test_figures_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "report.py", "check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
