"""Exit codes of commands: Ctrl-C, and errors in one line. Loads typer alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C into an exit code and one line, which says where a run is saved."""
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(str(stop) or "interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def code_of(error: Exception) -> int:
    """Print an error that the user can mend in one line.

    Returns:
        The exit code.

    Raises:
        Exception: ``error`` is a bug: it is raised again.
    """
    # Only code that is loaded can have raised such an error; to load its class for this check would take seconds.
    ours = sys.modules.get("passes.errors")
    if isinstance(error, OSError) or (ours is not None and isinstance(error, ours.LocalizeError)):
        return _complain(str(error))
    if not hasattr(error, "format_message"):  # every version of typer has this method on its usage errors
        raise error
    if not error.format_message().strip():  # help was printed already
        return 0
    return _complain(f"{error.format_message()} (see localize-cli --help)")


def _complain(message: str) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return EXIT_ERROR
