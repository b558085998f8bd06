"""Text for the boxes of a drawing: short lines, escaped so that no name ends a line, a string or a tag."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from localize.text import format_indices, shown

__all__ = ["short", "shown", "span", "steps", "wrapped"]

SHORT = 26
"""Most characters that a name in a box may have."""
LINE = 30
"""Most characters that a line in a box may have."""


def short(name: str, width: int = SHORT) -> str:
    """Escape a name and cut it to ``width`` characters, two thirds of them from its end, which tells more.

    >>> short("features.denseblock4.denselayer16.conv2")
    'features…enselayer16.conv2'
    """
    text = shown(name)
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[head + 1 - width :]}"


def wrapped(text: str, width: int = LINE) -> list[str]:
    """Break text into lines between words; a word longer than a line is shortened."""
    lines = textwrap.wrap(shown(text), width, break_long_words=False, break_on_hyphens=False)
    return [short(line, width) for line in lines]


def steps(text: str) -> list[str]:
    """Break a description of layers, such as ``pool > linear(64, 10)``, into one line for each layer."""
    return [line for part in text.split(" > ") for line in wrapped(part)]


def span(indices: Sequence[int]) -> str:
    """Write indices in the few words that a box has room for: ``3``, ``3-7``, ``3, 5, 7`` or ``0, 2, …, 8``."""
    return format_indices(indices, shortest_range=3, most=4, dots="\N{HORIZONTAL ELLIPSIS}")
