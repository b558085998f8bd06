"""Sizes of memory in words: ``8GB`` is 8,000,000,000 bytes, ``8GiB`` is 8 * 2**30."""

from __future__ import annotations

import math
import re

from passes.errors import LocalizeError

_PREFIXES = ("", "k", "M", "G", "T")
_UNITS = {f"{prefix}b".lower(): 1000**i for i, prefix in enumerate(_PREFIXES)} | {
    f"{prefix}ib".lower(): 1024**i for i, prefix in enumerate(_PREFIXES) if prefix
}


def parse_bytes(size: str | int) -> int:
    """Bytes of a size in words.

    Args:
        size: A number of bytes, or a number with a unit: ``B``, ``kB``, ``MB``, ``GB``, ``TB`` (powers of 1000),
            ``KiB``, ``MiB``, ``GiB``, ``TiB`` (powers of 1024). Case does not matter.

    Raises:
        LocalizeError: It is no size, or not above 0.
    """
    remedy = "Give a number of bytes, or a size such as 8GB (8e9 bytes), 8GiB (8 * 2**30) or 512MB"
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e\+?[0-9]+)?)\s*([a-z]*)\s*", str(size), re.IGNORECASE)
    if found is None or isinstance(size, bool) or (found[2] and found[2].lower() not in _UNITS):
        raise LocalizeError(f"{size!r} is no size of memory", remedy=remedy)
    value = float(found[1]) * _UNITS[found[2].lower() or "b"]
    if not math.isfinite(value) or value < 1:
        raise LocalizeError(f"a size of memory must be at least one byte, not {size!r}", remedy=remedy)
    # Whole numbers of bytes stay what they are, beyond what a float can hold.
    return int(found[1]) if found[1].isdecimal() and not found[2] else round(value)


def format_bytes(size: int) -> str:
    """A size in three digits and a decimal unit: ``1.21 GB``."""
    if size < 1000:
        return f"{size} B"
    power = 1
    while power < len(_PREFIXES) - 1 and float(f"{size / 1000**power:.3g}") >= 1000:
        power += 1
    value = size / 1000**power
    digits = max(0, 2 - math.floor(math.log10(value))) if value < 1000 else 0
    # 9.996 rounds to one digit more before the point.
    digits -= digits > 0 and round(value, digits) >= 10 ** (3 - digits)
    return f"{value:.{digits}f} {_PREFIXES[power]}B"


def format_count(value: float) -> str:
    """A number in three digits and a unit: ``464``, ``74k``, ``1.81G``."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000 or unit == "T":
            return f"{value:.0f}" if not unit else f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")
