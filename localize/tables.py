"""Tables of text and of HTML, from cells. Pure functions of strings."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from itertools import chain


def shown(name: str) -> str:
    """A name without what XML, a terminal or a line cannot hold: control characters and lone surrogates are escaped.

    Directions of writing are part of it: a name that turns text around would turn what stands beside it too.
    """
    return "".join(char if _printable(char) else char.encode("unicode_escape").decode("ascii") for char in name)


def _printable(char: str) -> bool:
    return char == " " or (char.isprintable() and not "\u202a" <= char <= "\u202e")


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Rows in columns, the first of them a header with a line below it.

    Args:
        rows: Cells, as many in each row.
        left: Columns whose cells stand at the left.
    """
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def as_html(before: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int], after: Sequence[str]) -> str:
    """The same for a notebook: lines, the table, lines. Looks are the notebook's own, but for what a table needs."""
    sides = ["left" if i in left else "right" for i in range(len(rows[0]))]
    header, *body = rows
    head = "".join(_cell("th", text, side) for text, side in zip(header, sides, strict=True))
    lines = chain(
        ['<div style="overflow-x: auto">'],
        (f"<div>{html.escape(shown(line))}</div>" for line in before),
        ['<table style="border-collapse: collapse; font-variant-numeric: tabular-nums">'],
        [f"<thead><tr>{head}</tr></thead>", "<tbody>"],
        (f"<tr>{''.join(_cell('td', text, side) for text, side in zip(row, sides, strict=True))}</tr>" for row in body),
        ["</tbody></table>"],
        (f"<div>{html.escape(shown(line))}</div>" for line in after),
        ["</div>"],
    )
    return "\n".join(lines)


def _cell(tag: str, text: str, side: str) -> str:
    style = f"text-align: {side}; padding: 0.15em 0.6em; white-space: nowrap"
    return f'<{tag} style="{style}">{html.escape(shown(text))}</{tag}>'
