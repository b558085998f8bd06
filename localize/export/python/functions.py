"""Names of functions of torch in a generated file, and the source of two functions that the file has itself."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.node import _get_qualified_name
from torch.nn import functional as F

_MODULES = {"torch": torch, "F": F, "math": math, "operator": operator}
SAME_PATH = '''\
def same_path(found: object, expected: object) -> None:
    """Refuses an input of a size for which the model takes another path than the one that is written here."""
    if found != expected:
        raise ValueError(f"the network takes another path for an input of this size: {found}, not {expected}")
'''
"""Source of the function that replaces guards of traced sizes."""
STORE = '''\
def store(buffer: torch.Tensor, value: torch.Tensor) -> None:
    """Writes a buffer."""
    with torch.no_grad():
        buffer.copy_(value)
'''


def function_name(target: Callable[..., Any]) -> str | None:
    """Return the name by which generated code calls a function of torch, math or Python; None for any other.

    >>> function_name(torch.nn.functional.relu), function_name(math.sqrt), function_name(function_name)
    ('F.relu', 'math.sqrt', None)
    """
    short = getattr(target, "__name__", "")
    if getattr(F, short, None) is target:
        return f"F.{short}"
    try:
        name = _get_qualified_name(target)
    except (RuntimeError, AttributeError, TypeError):
        return None
    name = name.replace("torch.nn.functional.", "F.").replace("_operator.", "operator.").removeprefix("builtins.")
    try:
        return name if eval(name, dict(_MODULES)) is target else None
    except (NameError, AttributeError, SyntaxError):
        return None
