"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then move it to ``path``."""
    with atomic_path(path) as temporary:
        write(temporary)


def atomic_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file next to ``path``: it is moved there if the block ends without an error, else deleted."""
    target = Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            # Without this, a crash of the machine may leave an empty file under the new name.
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's file is private
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
