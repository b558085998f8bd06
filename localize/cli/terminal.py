"""Tables and text on the terminal, or in a pipe: as wide as there is room, whatever a module is called."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console

from localize.tables import shown

PIPE_WIDTH = 80
"""Columns where there is no terminal, and COLUMNS does not say."""
LEAST_WIDTH, LEAST_COLUMN = 40, 10
GAP = 2
"""Blanks between two columns."""


class Page:
    """Where a command prints: wraps at the terminal's width, and gives no control codes in a pipe."""

    def __init__(self) -> None:
        known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
        colours = None if os.environ.get("NO_COLOR") else "auto"
        self._console = Console(width=None if known else PIPE_WIDTH, color_system=colours, highlight=False)  # type: ignore[arg-type]
        self.width = max(LEAST_WIDTH, self._console.width)
        """Columns."""

    def text(self, text: str = "", hang: int = 0, indent: int | None = None) -> None:
        """A paragraph.

        Args:
            text: Its words; lines that are too long are broken.
            hang: Blanks before each line but the first.
            indent: Blanks before the first; by default none.
        """
        for i, line in enumerate(broken(self.clean(text), self.width - max(hang, indent or 0))):
            self._line(" " * (hang if i else indent or 0) + line)

    def title(self, text: str) -> None:
        """A heading, after an empty line."""
        self._line("")
        for line in broken(self.clean(text), self.width):
            self._line(line, "bold")

    def verbatim(self, text: str) -> None:
        """Text that is not wrapped: code."""
        for line in text.splitlines():
            self._line(self.clean(line))

    def table(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[str]],
        left: Iterable[int] = (0,),
        under: Sequence[str] = (),
    ) -> None:
        """A table, as wide as it need be and no wider than the page.

        Args:
            header: Of the columns.
            rows: Cells.
            left: Columns whose cells stand on the left, and are broken where room is short; others hold numbers.
            under: A text below each row, if there is more to say of it.
        """
        words = {*left}
        cleaned = [[self.clean(cell) for cell in row] for row in (header, *rows)]
        widths = [max(_width(row[i]) for row in cleaned) for i in range(len(header))]
        self._narrow(widths, words)
        for i, row in enumerate(cleaned):
            for line in zip_longest(
                *(broken(cell, width) for cell, width in zip(row, widths, strict=True)), fillvalue=""
            ):
                placed = [
                    set_cell_size(cell, width) if j in words else " " * (width - cell_len(cell)) + cell
                    for j, (cell, width) in enumerate(zip(line, widths, strict=True))
                ]
                self._line((" " * GAP).join(placed), None if i else "bold")
            if not i:
                self._line((" " * GAP).join("-" * width for width in widths))
            elif under and under[i - 1]:
                self.text(under[i - 1], hang=widths[0] + 2 * GAP, indent=widths[0] + 2 * GAP)

    def fits(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> bool:
        """Whether a table needs no broken cells."""
        columns = zip(header, *rows, strict=True)
        widths = [max(_width(self.clean(cell)) for cell in column) for column in columns]
        return sum(widths) + GAP * (len(widths) - 1) <= self.width

    def _narrow(self, widths: list[int], words: set[int]) -> None:
        """Makes columns of words narrower, the widest first, until the table fits."""
        while sum(widths) + GAP * (len(widths) - 1) > self.width:
            widest = max(words, key=widths.__getitem__)
            if widths[widest] <= LEAST_COLUMN:
                return
            widths[widest] -= 1

    def clean(self, text: str) -> str:
        """Text as it may be shown: control characters written out, and what the output's encoding has not."""
        lines = "\n".join(map(shown, text.split("\n")))
        return lines.encode(self._console.encoding, "backslashreplace").decode(self._console.encoding)

    def _line(self, text: str, style: str | None = None) -> None:
        self._console.print(text.rstrip(), style=style, markup=False, emoji=False, soft_wrap=True)


def broken(text: str, width: int) -> list[str]:
    """Text in lines of at most a width: parted between words, or else behind the dots of a name, or else anywhere."""
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


def _width(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))
