"""Docstrings as Markdown: their formulas as MathML, their examples as code."""

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

FORMULA = re.compile(r"^\.\. math:: (.+(?:\n +.+)*)$", flags=re.MULTILINE)
ROLE = re.compile(r":(?:func|class|meth|mod):(`[^`]+`)")
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", flags=re.MULTILINE)


class AsMarkdown(griffe.Extension):
    """Rewrites each docstring before it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object, where it has one."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring with its reStructuredText turned into Markdown."""
    text = FORMULA.sub(lambda found: convert(found[1], display="block"), text)
    text = ROLE.sub(r"\1", text).replace("``", "`")
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
