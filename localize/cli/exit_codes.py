"""How commands end: Ctrl-C, and errors in one line. Loads nothing but typer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns Ctrl-C into one line and an exit code; says where the run is saved, if it had begun."""
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(str(stop) or "interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def code_of(error: Exception) -> int:
    """Says what is wrong in one line, if it is a user's error.

    Returns:
        The exit code.

    Raises:
        Exception: The error itself, where it is a bug.
    """
    # An error of ours can only have been raised by what is loaded; to load it for asking would take seconds.
    ours = sys.modules.get("passes.errors")
    if isinstance(error, OSError) or (ours is not None and isinstance(error, ours.LocalizeError)):
        return _complain(str(error))
    if not hasattr(error, "format_message"):  # how typer's usage errors are told from bugs, in every version of it
        raise error
    if not error.format_message().strip():  # help was shown instead
        return 0
    return _complain(f"{error.format_message()} (see localize-cli --help)")


def _complain(message: str) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return EXIT_ERROR
