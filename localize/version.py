"""The version of this package, from its metadata."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """The version that is installed; ``0+unknown`` of a source tree on the path that is not."""
    try:
        return version("localize")
    except PackageNotFoundError:
        return "0+unknown"
