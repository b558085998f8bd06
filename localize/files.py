"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def atomic_write(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Lets ``write`` fill a temporary file, then puts it in the place of ``path``."""
    with atomic_path(path) as temporary:
        write(temporary)


def atomic_text(path: str | Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends well, and vanishes when it does not."""
    target = Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())  # else a crash of the machine may leave the new name with no content
        temporary.chmod(0o666 & ~_umask())  # mkstemp's file is private
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
