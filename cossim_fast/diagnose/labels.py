"""Names of classes as a picture can draw them: plain text, in fonts that have their characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cossim_fast._escaped import escaped
from cossim_fast._extras import require

# Characters of a name in a legend, which would else leave no room for the picture.
_LONGEST = 32
# A font that has every character, as a box that names its script.
_BOXES = "Last Resort"


def name_classes(legend: Any, names: Iterable[str]) -> None:
    """Write names into the texts of a matplotlib legend, letter for letter.

    What no font here can draw is shown by its code, as what a terminal would obey is.
    """
    manager = require("matplotlib.font_manager", extra="viz")
    texts = [_short(escaped(name)) for name in names]
    families = list(manager.FontProperties().get_family())
    missing = set("".join(texts))
    for family in families:
        path = manager.findfont(manager.FontProperties(family=[family]))
        missing -= _drawn_by(manager, path, missing)
    found = _families_with(manager, missing) if missing else {}
    families += sorted(found, key=lambda name: -len(found[name]))
    missing = missing.difference(*found.values())
    codes = {ord(each): each.encode("ascii", "backslashreplace").decode() for each in missing}
    for drawn, text in zip(legend.get_texts(), texts, strict=True):
        drawn.set_parse_math(False)
        drawn.set_usetex(False)
        drawn.set_fontfamily(families)
        drawn.set_text(_short(text.translate(codes)))


def _short(text: str) -> str:
    """Cut out the middle of a long name: names differ at their ends."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}...{text[3 - half :]}"


def _families_with(manager: Any, missing: set[str]) -> dict[str, set[str]]:
    """Installed families that have some of these characters. To look into every font takes long."""
    found = {}
    for font in manager.fontManager.ttflist:
        # The face of a family that is drawn where no other is asked for.
        if font.style == "normal" and font.weight == 400 and _BOXES not in font.name:
            characters = _drawn_by(manager, font.fname, missing)
            if characters:
                found[font.name] = characters
    return found


def _drawn_by(manager: Any, path: Any, characters: set[str]) -> set[str]:
    """Those characters that a font has, and matplotlib can draw with it."""
    try:
        font = manager.get_font(path)
        font.set_size(10, 72)  # fails for fonts of pictures, as those of emoji are
        return {each for each in characters if _has(font, ord(each))}
    except (RuntimeError, OSError):
        return set()


def _has(font: Any, code: int) -> bool:
    if not font.get_char_index(code):
        return False
    font.load_char(code)
    return True
