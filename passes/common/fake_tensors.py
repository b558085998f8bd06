"""Tensors without values: a module whose parameters and buffers are fake for a while, and what can be said of such."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.parameter import is_lazy


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are; the CPU for one that has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def has_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers: not on the meta device, where it is fake, or before it is initialized."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor) or is_lazy(tensor))


@contextlib.contextmanager
def faked(module: nn.Module, mode: FakeTensorMode) -> Iterator[dict[int, torch.Tensor]]:
    """Inside, parameters and buffers are fake; tied ones stay tied, uninitialized ones are left.

    A mode that admits real tensors makes fakes of them too, but operation by operation, and remembers none of their
    results: this is several times as fast.

    Yields:
        The real tensor of each fake one, by the identity of the fake.
    """
    tables: list[dict[str, Any]] = [
        table
        for owner in module.modules()
        if not isinstance(owner, torch.jit.ScriptModule)
        for table in (owner.__dict__["_parameters"], owner.__dict__["_buffers"])
    ]
    real = [
        (table, name, tensor)
        for table in tables
        for name, tensor in table.items()
        if tensor is not None and not is_lazy(tensor)
    ]
    fakes: dict[int, torch.Tensor] = {}
    try:
        for table, name, tensor in real:
            if id(tensor) not in fakes:
                fake = _fake(tensor, mode)
                is_parameter = isinstance(tensor, nn.Parameter)
                fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
            table[name] = fakes[id(tensor)]
        yield {id(fakes[id(tensor)]): tensor for _, _, tensor in real}
    finally:
        for table, name, tensor in real:
            table[name] = tensor


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    if tensor.layout is not torch.strided or type(tensor) not in (torch.Tensor, nn.Parameter):
        return mode.from_tensor(tensor.detach())
    # What the mode would do by itself, at a third of the cost.
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


@contextlib.contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    """A mode under which real parameters and buffers are read as fake tensors.

    Torch logs an error for each operator that refuses its shapes; here that is an answer, and is raised anyway.
    """
    with quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps fake tensors from logging what they raise."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
