"""Fingerprints of values and states: equal where, and only where, every bit is."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import fx, nn


def fingerprint(module: nn.Module, value: object, env: Mapping[fx.Node, object] | None = None) -> object:
    """Return the fingerprint of a module's input or output, of its own buffers, and of the random generators."""
    return digest(value, env), digest(list(module._buffers.values())), generators()


def digest(value: object, env: Mapping[fx.Node, object] | None = None) -> object:
    """Return the fingerprint of a value: of tensors by shape, type and bits, of containers by their contents.

    Args:
        value: The value.
        env: Values that nodes and proxies in ``value`` stand for.
    """
    if env is not None and isinstance(value, (fx.Node, fx.Proxy)):
        value = env[value.node if isinstance(value, fx.Proxy) else value]
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, _checksum(value)
    if isinstance(value, (tuple, list)):
        return tuple(digest(item, env) for item in value)
    if isinstance(value, dict):
        return tuple((key, digest(item, env)) for key, item in value.items())
    return value if isinstance(value, (int, float, bool, str, type(None))) else type(value).__name__


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def _checksum(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return sums over the bits of all elements, each weighted by its position."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.dtype.is_complex:
        flat = torch.view_as_real(flat).reshape(-1)
    bits = flat.view(_BITS[flat.dtype.itemsize])
    # In a square the position of an element is its row and its column: sums along both are cheap, and take no memory.
    side = math.isqrt(bits.numel())
    square, rest = bits[: side * side].view(side, side), bits[side * side :]
    sums = (square.sum(0, dtype=torch.int64), square.sum(1, dtype=torch.int64), rest.to(torch.int64))
    return tuple(int((part * torch.arange(1, part.numel() + 1, device=part.device)).sum()) for part in sums)


def generators() -> tuple[int, ...]:
    """Return the fingerprints of the states of torch's, Python's and numpy's random number generators."""
    numpy: Any = sys.modules.get("numpy")
    states = [hash(random.getstate()), hash(torch.get_rng_state().numpy().tobytes())]
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        states.append(hash((kind, keys.tobytes(), *rest)))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(hash(torch.cuda.get_rng_state().numpy().tobytes()))
    return tuple(states)


def python_state(model: nn.Module) -> dict[tuple[int, str], object]:
    """Return all attributes of modules but tensors and modules, in a form that shows whether they changed."""
    return {
        (id(module), name): _mark(value)
        for module in model.modules()
        for name, value in module.__dict__.items()
        if name not in ("_parameters", "_buffers", "_modules", "training") and not name.endswith("_hooks")
    }


def _mark(value: object) -> tuple[Literal["value", "size", "version", "id"], object]:
    if isinstance(value, (int, float, str, type(None))):
        return "value", value
    if isinstance(value, (list, dict, set, tuple)):
        return "size", (id(value), len(value))
    return ("version", (id(value), value._version)) if isinstance(value, torch.Tensor) else ("id", id(value))
