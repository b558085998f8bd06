"""The version of this package, from its metadata."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """Return the version that is installed, or ``0+unknown`` for a source tree that is not installed."""
    try:
        return version("localize")
    except PackageNotFoundError:
        return "0+unknown"
