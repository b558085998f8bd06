"""Lines of the user's code, written as ``file.py:12``."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from types import CodeType, FrameType

import torch

_FRAMEWORK = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
    contextlib.__file__,
    functools.__file__,
)


def source_of(error: BaseException) -> str | None:
    """Return the line of the user's code in which ``error`` was raised, or from which that line was called."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if not _is_framework(frame.f_code.co_filename):
            return f"{os.path.basename(frame.f_code.co_filename)}:{line}"
    return None


def line_of(function: Callable[..., object]) -> str | None:
    """Return the line where a function starts; None if it has no Python code."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}" if code else None


def calling_line(stop: CodeType) -> str | None:
    """Return the innermost line of the user's code that is running now, inside of a frame of ``stop``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not stop:
        filename = frame.f_code.co_filename
        if not _is_framework(filename):
            return f"{os.path.basename(filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def _is_framework(filename: str) -> bool:
    return filename.startswith(_FRAMEWORK) or filename.startswith("<")
