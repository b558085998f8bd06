"""Assertions in the user's code: they stay in the graph, whatever they depend on."""

from __future__ import annotations

import dis
import sys
from itertools import pairwise
from types import FrameType

from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

_BETWEEN = ("CACHE", "COPY", "EXTENDED_ARG", "NOP", "TO_BOOL")


def assertion(value: object, expected: bool, source: str) -> None:
    """Check an assertion of the user's code; the graph calls this for ``assert value`` or ``assert not value``.

    Raises:
        AssertionError: ``bool(value)`` is not ``expected``.
    """
    if not isinstance(value, FakeTensor) and bool(value) is not expected:
        raise AssertionError(f"the assertion at {source} does not hold")


def expected_by_assert() -> bool | None:
    """Return the value expected by the ``assert`` that called ``Proxy.__bool__``; None if it was not an assert.

    The byte code after the call tells: an ``assert`` jumps over the loading of ``AssertionError``.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not fx.Proxy.__bool__.__code__:
        frame = frame.f_back
    if frame is None or frame.f_back is None:
        return None
    caller = frame.f_back
    following = (i for i in dis.get_instructions(caller.f_code) if i.offset >= caller.f_lasti)
    names = [i.opname for i, _ in zip(following, range(8), strict=False) if i.opname not in _BETWEEN]
    for jump, then in pairwise(names[:3]):
        if jump.startswith("POP_JUMP") and "NONE" not in jump:
            return "TRUE" in jump if then == "LOAD_ASSERTION_ERROR" else None
    return None
