"""The user's own assertions: they stay in the graph, whatever they look at."""

from __future__ import annotations

import dis
import sys
from itertools import pairwise
from types import FrameType
from typing import Any

from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

_BETWEEN = ("CACHE", "COPY", "EXTENDED_ARG", "NOP", "TO_BOOL")


def assertion(value: Any, expected: bool, source: str) -> None:
    """Stands in the graph for ``assert value``, or ``assert not value``.

    Raises:
        AssertionError: It does not hold.
    """
    if not isinstance(value, FakeTensor) and bool(value) is not expected:
        raise AssertionError(f"the assertion at {source} does not hold")


def asserted() -> bool | None:
    """What an assertion expects that is just asking a proxy for its truth; None where none is."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not fx.Proxy.__bool__.__code__:
        frame = frame.f_back
    if frame is None or frame.f_back is None:
        return None
    asking = frame.f_back
    following = (i for i in dis.get_instructions(asking.f_code) if i.offset >= asking.f_lasti)
    names = [i.opname for i, _ in zip(following, range(8), strict=False) if i.opname not in _BETWEEN]
    for jump, then in pairwise(names[:3]):
        if jump.startswith("POP_JUMP") and "NONE" not in jump:
            return "TRUE" in jump if then == "LOAD_ASSERTION_ERROR" else None
    return None
