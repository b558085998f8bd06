"""Text and tables on the terminal, or in a pipe: as wide as the terminal, whatever characters names contain."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console

from localize.text import broken, shown, table_width, text_table

PIPE_WIDTH = 80
"""Columns of a page without a terminal, if COLUMNS is not set."""
LEAST_WIDTH = 40
"""Columns of the narrowest page; a narrower terminal wraps lines by itself."""


class Page:
    """The output of a command: wrapped at the terminal's width, without control codes in a pipe."""

    def __init__(self) -> None:
        known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
        colours = None if os.environ.get("NO_COLOR") else "auto"
        self._console = Console(width=None if known else PIPE_WIDTH, color_system=colours, highlight=False)  # type: ignore[arg-type]
        self.width = max(LEAST_WIDTH, self._console.width)
        """Columns of the page."""

    def text(self, text: str = "", hang: int = 0, indent: int | None = None) -> None:
        """Print a paragraph.

        Args:
            text: The words; lines that are too long are broken.
            hang: Blanks before each line but the first.
            indent: Blanks before the first line; by default none.
        """
        for i, line in enumerate(broken(self.clean(text), self.width - max(hang, indent or 0))):
            self._line(" " * (hang if i else indent or 0) + line)

    def title(self, text: str) -> None:
        """Print a heading, after an empty line."""
        self._line("")
        for line in broken(self.clean(text), self.width):
            self._line(line, "bold")

    def verbatim(self, text: str) -> None:
        """Print text without wrapping it, such as code."""
        for line in text.splitlines():
            self._line(self.clean(line))

    def table(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[str]],
        left: Collection[int] = (0,),
        notes: Sequence[str] = (),
    ) -> None:
        """Print a table, as wide as it needs to be and no wider than the page.

        Args:
            header: Names of the columns.
            rows: Cells, as many in each row as the header has.
            left: Columns of words, set flush left and broken into lines where room is short; others hold numbers.
            notes: A text below each row, empty where there is none.
        """
        names, *cells = ([self.clean(cell) for cell in row] for row in (header, *rows))
        table = text_table(names, cells, left, width=self.width, notes=[*map(self.clean, notes)])
        for line in table.header:
            self._line(line, "bold")
        for line in table.body:
            self._line(line)

    def fits(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> bool:
        """Return whether a table fits the page with no cell broken."""
        return table_width([self.clean(cell) for cell in row] for row in (header, *rows)) <= self.width

    def clean(self, text: str) -> str:
        """Escape control characters, and characters that the output's encoding lacks."""
        lines = "\n".join(map(shown, text.split("\n")))
        return lines.encode(self._console.encoding, "backslashreplace").decode(self._console.encoding)

    def _line(self, text: str, style: str | None = None) -> None:
        self._console.print(text.rstrip(), style=style, markup=False, emoji=False, soft_wrap=True)
