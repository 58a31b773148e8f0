"""No cause is confused with another, and no healthy set is flagged."""

import pytest

import diagnose_cases as known

PAGE = known.ROOT / "docs/diagnose-confusion.md"


@pytest.mark.parametrize("case", [*known.PAIRS, *known.SETS], ids=lambda case: case.name)
def test_cause_is_found(case):
    assert known.found(case) == case.expected


def test_cases_cover_every_cause():
    assert {case.expected for case in known.PAIRS} == set(known.PAIR_FINDINGS)
    assert {case.expected for case in known.SETS} == set(known.VERDICTS)
    assert len(known.PAIRS) + len(known.SETS) >= 60


@pytest.mark.parametrize(
    ("cases", "names"),
    [(known.PAIRS, known.PAIR_FINDINGS), (known.SETS, known.VERDICTS)],
    ids=["pairs", "sets"],
)
def test_committed_matrix_counts_these_cases(cases, names):
    text = PAGE.read_text(encoding="utf-8")
    for k, name in enumerate(names):
        cells = ["·"] * len(names)
        cells[k] = str(sum(case.expected == name for case in cases))
        assert f"| **{name}** | " + " | ".join(cells) + " |" in text
    for case in cases:
        assert f"- {case.name}: `{case.expected}`" in text
