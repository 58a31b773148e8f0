"""Tuning constants are documented alike: one a line, under a comment that begins with its unit."""

import ast
import re
from pathlib import Path

from cossim_fast.retrieval import tuning

UNIT = re.compile(r"# \[[a-z0-9^]+( [a-z0-9^]+)*\] [A-Z0-9]", re.IGNORECASE)


def undocumented(source):
    """Names whose comment does not begin with a unit, or that share a line with another."""
    lines, found = source.splitlines(), []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            first = node.lineno - 1
            while first and lines[first - 1].startswith("#"):
                first -= 1
            if not (isinstance(node.targets[0], ast.Name) and UNIT.match(lines[first])):
                found.append(ast.unparse(node.targets[0]))
    return found


def test_each_constant_has_its_unit():
    assert undocumented(Path(tuning.__file__).read_text(encoding="utf-8")) == []


def test_a_constant_without_a_unit_is_found():
    source = "# [rows] One.\nA = 1\n# Rows: of two.\nB = 2\n# [rows] Both.\nC, D = 3, 4\nE = 5\n"
    assert undocumented(source) == ["B", "(C, D)", "E"]
