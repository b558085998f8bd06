"""Fake tensors, which have a shape and no values: modules run on them at no cost in time or memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.parameter import is_lazy


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter; the CPU if it has no parameters."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def has_values(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has values: not on the meta device, not if it is fake, not before it is initialized."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor) or is_lazy(tensor))


@contextlib.contextmanager
def faked(module: nn.Module, mode: FakeTensorMode) -> Iterator[dict[int, torch.Tensor]]:
    """Replace a module's parameters and buffers by fake ones for a while; tied tensors stay tied.

    A fake mode that admits real tensors converts them again in each operation that reads them, and remembers no result
    for them. Replacing them once is several times as fast. Parameters that are not initialized yet are left alone.

    Args:
        module: The module.
        mode: The fake mode, which must be active inside.

    Yields:
        The real tensor of each fake one, by the identity of the fake.
    """
    tables: list[dict[str, torch.Tensor | None]] = [
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
    # The mode would do the same by itself, at three times the cost.
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


@contextlib.contextmanager
def fake_mode() -> Iterator[FakeTensorMode]:
    """Enter a mode in which every operation runs on fake tensors; real parameters and buffers are read as fake ones.

    Torch logs an error for each operator that refuses the shapes of its arguments. That is silenced: the error is also
    raised, and callers expect it.

    >>> with fake_mode():
    ...     nn.Linear(4, 3)(torch.empty(2, 4)).shape
    torch.Size([2, 3])
    """
    with quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's log of the errors that operations on fake tensors raise."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def fill_with_fakes(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace a module's parameters and buffers by fake CPU tensors. To be called inside a fake mode.

    Args:
        module: Changed in place.
        dtype: Type of floating-point tensors; by default each keeps its own.
    """
    fill(module.modules(), dtype)


def fill(owners: Iterable[nn.Module], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Replace what some modules hold themselves, without their submodules, by fake CPU tensors; return these."""
    fakes: dict[int, Any] = {}
    for owner in owners:
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                fakes.setdefault(id(parameter), nn.Parameter(_empty_on_cpu(parameter, dtype), parameter.requires_grad))
                owner._parameters[name] = fakes[id(parameter)]
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = fakes.setdefault(id(buffer), _empty_on_cpu(buffer, dtype))
    return list(fakes.values())


def _empty_on_cpu(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind, device="cpu")


def on_meta(*parts: Any) -> dict[int, Any]:
    """Return a ``copy.deepcopy`` memo that replaces parameters and buffers by tensors on the meta device.

    Args:
        parts: Modules; other values are ignored.
    """
    modules = [part for part in parts if isinstance(part, nn.Module)]
    memo: dict[int, Any] = {}
    for tensor in (t for module in modules for t in (*module.parameters(), *module.buffers())):
        if not is_lazy(tensor):
            like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if parameter else like
    return memo
