"""What values of options may be."""

from __future__ import annotations

import math
from typing import Any

from passes.errors import MethodError


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; truth values are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number of at least ``least``; truth values are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require_count(name: str, value: Any, least: int, optional: bool = False) -> None:
    """Refuses what is no whole number, or a smaller one.

    Raises:
        MethodError: It is not.
    """
    if not (optional and value is None) and not is_whole(value, least):
        raise MethodError(f"{name}={value!r} is not possible", remedy=f"Give a whole number of at least {least}")
