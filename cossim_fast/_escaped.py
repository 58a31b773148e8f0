"""Characters that a terminal obeys rather than shows, made visible."""

from __future__ import annotations

import re

# Controls (C0, DEL, C1), marks and overrides of the direction of writing and what is deprecated
# beside them, separators of lines and paragraphs, halves of surrogate pairs. None is beyond four
# hexadecimal digits.
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""Show each character that a terminal obeys by its code.

    >>> escaped("a\x1b[2Jb\u202ec\n")
    'a\\x1b[2Jb\\u202ec\\x0a'
    """
    return text if text.isprintable() else OBEYED.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def escaped_json(text: str) -> str:
    r"""The same for a JSON text of one line, whose value stays what it is.

    >>> escaped_json('"\x9b2J"')
    '"\\u009b2J"'
    """
    if text.isprintable():
        return text
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
