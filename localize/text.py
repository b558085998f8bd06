"""Text for people: sizes and counts, ranges of indices, names that fit a line, and tables. Loads no torch."""

from __future__ import annotations

import html
import math
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple

# Sizes and counts

_PREFIXES = ("", "k", "M", "G", "T")
_UNITS = {f"{prefix}b".lower(): 1000**i for i, prefix in enumerate(_PREFIXES)} | {
    f"{prefix}ib".lower(): 1024**i for i, prefix in enumerate(_PREFIXES) if prefix
}


def parse_bytes(size: str | int) -> int:
    """Return the number of bytes that a size in words stands for.

    >>> parse_bytes("8GB"), parse_bytes("8 GiB"), parse_bytes(512)
    (8000000000, 8589934592, 512)

    Args:
        size: A number of bytes, or a number with a unit: ``B``, ``kB``, ``MB``, ``GB``, ``TB`` (powers of 1000),
            ``KiB``, ``MiB``, ``GiB``, ``TiB`` (powers of 1024). Upper and lower case mean the same.

    Raises:
        LocalizeError: ``size`` is not a number with one of these units, is below one byte, or is infinite.
    """
    number = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e\+?[0-9]+)?)\s*([a-z]*)\s*", str(size), re.IGNORECASE)
    if number is None or isinstance(size, bool) or (number[2] and number[2].lower() not in _UNITS):
        raise _size_error("a size of memory must be a number with or without a unit", size)
    value = float(number[1]) * _UNITS[number[2].lower() or "b"]
    if not math.isfinite(value) or value < 1:
        raise _size_error("a size of memory must be at least one byte and finite", size)
    # A whole number of bytes may be larger than what a float holds exactly.
    return int(number[1]) if number[1].isdecimal() and not number[2] else round(value)


def _size_error(rule: str, size: object) -> Exception:
    from passes.errors import LocalizeError  # loads torch, which the rest of this file does without

    remedy = "Give a number of bytes, or a size such as 8GB (8e9 bytes), 8GiB (8 * 2**30) or 512MB"
    return LocalizeError(f"{rule}, got {size!r}", remedy=remedy)


def format_bytes(size: int) -> str:
    """Write a number of bytes with three digits and a decimal unit.

    >>> format_bytes(1_210_000_000), format_bytes(999), format_bytes(64_000)
    ('1.21 GB', '999 B', '64.0 kB')
    """
    if size < 1000:
        return f"{size} B"
    power = 1
    while power < len(_PREFIXES) - 1 and float(f"{size / 1000**power:.3g}") >= 1000:
        power += 1
    value = size / 1000**power
    digits = max(0, 2 - math.floor(math.log10(value))) if value < 1000 else 0
    # 9.996 rounds to 10.0: one digit more before the point leaves one less after it.
    digits -= digits > 0 and round(value, digits) >= 10 ** (3 - digits)
    return f"{value:.{digits}f} {_PREFIXES[power]}B"


def format_count(value: float) -> str:
    """Write a number of parameters or operations with three digits and a unit.

    >>> format_count(464), format_count(74_000), format_count(1_814_000_000)
    ('464', '74k', '1.81G')
    """
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000 or unit == "T":
            return f"{value:.0f}" if not unit else f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


# Indices


def format_indices(
    indices: Iterable[int], *, shortest_range: int = 2, most: int | None = None, dots: str = "..."
) -> str:
    """Write ascending indices in a few words, consecutive ones as a range.

    >>> format_indices([0, 1, 2, 3, 7])
    '0-3, 7'
    >>> format_indices([0, 2, 4, 6, 8], most=4)
    '0, 2, ..., 8'

    Args:
        indices: Whole numbers in ascending order.
        shortest_range: Length from which on consecutive indices are written as a range.
        most: Number of parts above which only the first two and the last one are written; None for no limit.
        dots: Text that stands for the parts that are left out.
    """
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    parts: list[str] = []
    for first, last in ranges:
        if first != last and last - first + 1 >= shortest_range:
            parts.append(f"{first}-{last}")
        else:
            parts += map(str, range(first, last + 1))
    if most is not None and len(parts) > most:
        parts = [*parts[:2], dots, parts[-1]]
    return ", ".join(parts)


def format_numbered(noun: str, indices: Sequence[int]) -> str:
    """Write a noun with the indices of the things meant.

    >>> format_numbered("module", [3]), format_numbered("module", [0, 1, 2, 3, 7])
    ('module 3', 'modules 0-3, 7')
    """
    return f"{noun}{'s' if len(indices) > 1 else ''} {format_indices(indices)}"


# Names and lines


def shown(name: str) -> str:
    r"""Escape what a terminal, XML or a line of text cannot hold: control characters and lone surrogates.

    Marks of the direction of writing are escaped too: they would turn around the text that follows the name.

    >>> print(shown("a\nb"))
    a\nb
    """
    return "".join(char if _printable(char) else char.encode("unicode_escape").decode("ascii") for char in name)


def _printable(char: str) -> bool:
    return char == " " or (char.isprintable() and not "\u202a" <= char <= "\u202e")


def broken(text: str, width: int) -> list[str]:
    """Break text into lines of at most ``width`` columns: between words, else after the dots of a name, else anywhere.

    >>> broken("layer1.0.conv1 reads layer1.0.bn1", 12)
    ['layer1.0.', 'conv1 reads', 'layer1.0.bn1']
    """
    from rich.cells import cell_len, chop_cells  # on first use: importing this package loads no rich

    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines.append("")
        for piece in re.findall(r" *[^ ]+", paragraph):
            if cell_len(lines[-1]) + cell_len(piece) <= width:
                lines[-1] += piece
                continue
            lines += [""] if lines[-1] else []
            for part in re.findall(r"[^.]*\.+|[^.]+", piece.lstrip()):
                if cell_len(lines[-1]) + cell_len(part) > width and lines[-1]:
                    lines.append("")
                lines[-1:] = chop_cells(lines[-1] + part, width)
    return lines


def shortened(text: str, width: int) -> str:
    """Cut text to ``width`` characters, the last three of them dots if something was cut off."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


# Tables

GAP = 2
"""Blanks between two columns."""
LEAST_COLUMN = 10
"""Columns that a column of words keeps, however narrow the page."""


class TextTable(NamedTuple):
    """The lines of a table, for a fixed-width font."""

    header: list[str]
    """Lines of the names of the columns; more than one where a name was broken."""
    body: list[str]
    """A line of dashes, then the rows."""

    def __str__(self) -> str:
        return "\n".join([*self.header, *self.body])


def text_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Collection[int] = (0,),
    *,
    width: int | None = None,
    notes: Sequence[str] = (),
) -> TextTable:
    """Set rows of cells in columns, with a line of dashes below the header.

    >>> print(text_table(("layer", "params"), [("conv1", "464"), ("fc", "74k")]))
    layer  params
    -----  ------
    conv1     464
    fc        74k

    Args:
        header: Names of the columns.
        rows: Cells, as many in each row as the header has. A line break begins a new line within a cell.
        left: Columns of words, set flush left; the others hold numbers.
        width: Columns of the page. Where the table is wider, columns of words become narrower and their cells are
            broken into lines; columns of numbers are left as they are. None for no limit.
        notes: A text below each row, empty where there is none.
    """
    cells = [[_escaped(cell) for cell in row] for row in (header, *rows)]
    widths = column_widths(cells)
    if width is not None:
        _narrow(widths, left, width)
    names, *body = [_row_lines(row, widths, left) for row in cells]
    lines = [(" " * GAP).join("-" * each for each in widths)]
    indent = widths[0] + 2 * GAP
    room = sys.maxsize if width is None else max(width - indent, LEAST_COLUMN)
    for i, row in enumerate(body):
        lines += row
        if notes and notes[i]:
            lines += [" " * indent + line for line in broken(_escaped(notes[i]), room)]
    return TextTable(names, lines)


def column_widths(rows: Iterable[Sequence[str]]) -> list[int]:
    """Return the columns of a fixed-width font that the cells of each column need."""
    from rich.cells import cell_len

    return [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]


def table_width(rows: Iterable[Sequence[str]]) -> int:
    """Return the columns of a fixed-width font that a table needs if no cell is broken."""
    widths = column_widths(rows)
    return sum(widths) + GAP * (len(widths) - 1)


def _escaped(cell: str) -> str:
    return "\n".join(map(shown, cell.split("\n")))


def _narrow(widths: list[int], words: Collection[int], page: int) -> None:
    """Take columns from the widest columns of words until the table fits the page."""
    while words and sum(widths) + GAP * (len(widths) - 1) > page:
        widest = max(words, key=widths.__getitem__)
        if widths[widest] <= LEAST_COLUMN:
            return
        widths[widest] -= 1


def _row_lines(row: Sequence[str], widths: Sequence[int], left: Collection[int]) -> list[str]:
    """Set one row; it takes as many lines as its tallest cell."""
    from rich.cells import cell_len, set_cell_size

    parts = (broken(cell, width) for cell, width in zip(row, widths, strict=True))
    lines = []
    for line in zip_longest(*parts, fillvalue=""):
        placed = [
            set_cell_size(part, width) if i in left else " " * (width - cell_len(part)) + part
            for i, (part, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append((" " * GAP).join(placed).rstrip())
    return lines


def html_table(
    before: Sequence[str],
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Collection[int],
    after: Sequence[str],
) -> str:
    """Write lines, a table and further lines as HTML for a notebook, with its own colours and fonts.

    Args:
        before: Lines above the table.
        header: Names of the columns.
        rows: Cells, as many in each row as the header has.
        left: Columns of words, set flush left; the others hold numbers.
        after: Lines below the table.
    """
    sides = ["left" if i in left else "right" for i in range(len(header))]
    head = "".join(_html_cell("th", text, side) for text, side in zip(header, sides, strict=True))
    body = ("".join(_html_cell("td", text, side) for text, side in zip(row, sides, strict=True)) for row in rows)
    lines = [
        '<div style="overflow-x: auto">',
        *(f"<div>{html.escape(shown(line))}</div>" for line in before),
        '<table style="border-collapse: collapse; font-variant-numeric: tabular-nums">',
        f"<thead><tr>{head}</tr></thead>",
        "<tbody>",
        *(f"<tr>{row}</tr>" for row in body),
        "</tbody></table>",
        *(f"<div>{html.escape(shown(line))}</div>" for line in after),
        "</div>",
    ]
    return "\n".join(lines)


def _html_cell(tag: str, text: str, side: str) -> str:
    style = f"text-align: {side}; padding: 0.15em 0.6em; white-space: nowrap"
    return f'<{tag} style="{style}">{html.escape(shown(text))}</{tag}>'


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Write a table as markdown; the columns that are not ``left`` hold figures, and are set flush right."""
    ruler = ["---" if i in left else "---:" for i in range(len(header))]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ruler, *escaped))
