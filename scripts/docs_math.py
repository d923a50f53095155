"""Formulas of the documentation as MathML, which browsers set themselves: no script, no font, no network."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

# A bar is a bracket here, and not the relation "such that" with its spaces.
BAR = re.compile(r"<mo[^>]*>&#x0007C;</mo>")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """MkDocs' event: replace what the extension `arithmatex` marked, inline or on lines of its own."""
    return FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    text: str = convert(unescape(found[3]), display="block" if found[2] == "[" else "inline")
    return BAR.sub('<mo stretchy="false" lspace="0" rspace="0">|</mo>', text)
