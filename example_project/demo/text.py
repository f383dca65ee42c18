"""Styled text for terminals: lines are made of pieces, so that they can be cut without cutting an escape sequence."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from enum import Enum


class Style(Enum):
    """How a piece looks; the value is its ANSI code. Only the 16 colours that each terminal's theme makes readable."""

    PLAIN = ""
    BOLD = "1"
    DIM = "2"
    RED = "31"
    GREEN = "32"
    YELLOW = "33"
    MAGENTA = "35"
    CYAN = "36"


Piece = tuple[str, Style]
Line = list[Piece]


def cell(text: str, width: int, style: Style = Style.PLAIN, *, right: bool = False) -> Piece:
    """Return a text that is exactly so wide, with a space after it unless it is flush right."""
    if right:
        return f"{text:>{width}}"[-width:], style
    return f"{text[: width - 1]:<{width}}", style


def wrapped(text: str, width: int) -> list[str]:
    """Break a text into lines."""
    return textwrap.wrap(text, max(width, 20)) or [""]


def rendered(line: Iterable[Piece], width: int, *, colour: bool) -> str:
    """Return a line for the terminal, cut where the terminal ends."""
    parts, left = [], width
    for text, style in line:
        shown = text[:left]
        left -= len(shown)
        parts.append(f"\x1b[{style.value}m{shown}\x1b[0m" if colour and style.value and shown.strip() else shown)
    return "".join(parts).rstrip()
