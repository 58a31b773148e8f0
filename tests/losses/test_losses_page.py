"""The page on losses: its snippets run, and the functions that it names are those that exist."""

import re
from pathlib import Path

from cossim_fast import losses

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")


def test_snippets_run():
    names: dict[str, object] = {}
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) == 4
    for code in snippets:
        exec(compile(code, "docs/losses.md", "exec"), names)


def test_every_loss_has_a_row():
    rows = re.findall(r"^\| `(\w+)`, `([A-Z]\w+)` \|", PAGE, flags=re.MULTILINE)
    assert {name for row in rows for name in row} == set(losses.__all__)
