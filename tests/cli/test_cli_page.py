"""The page on the command line shows what is seen."""

import cli_page

TEXT = cli_page.PAGE.read_text(encoding="utf-8")


def shown(text):
    return [
        pair for session in cli_page.SESSION.findall(text) for pair in cli_page.commands(session)
    ]


def test_every_command_prints_what_the_page_shows():
    before, after = shown(TEXT), shown(cli_page.seen_again(TEXT))
    assert len(before) == len(after) >= 15
    for (line, old), (_, new) in zip(before, after, strict=True):
        assert cli_page.comparable(line, old) == cli_page.comparable(line, new), line


def test_it_fits_80_columns_and_shows_every_command():
    lines = [row for line, printed in shown(TEXT) for row in (f"$ {line}", *printed.splitlines())]
    assert max(map(len, lines)) <= 80
    for name in ("topk", "pairs", "dedup", "index build", "index search", "diagnose", "bench"):
        assert any(line.startswith(f"$ cossim {name} ") for line in lines), name
    assert "$ cossim info" in lines
