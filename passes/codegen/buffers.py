"""Buffers that a forward pass changes (running statistics), put back where layers run a second time in one step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn

Buffer = tuple[nn.Module, str]
"""The module that holds a buffer, and the buffer's name in it."""


def buffers_of(code: fx.GraphModule) -> tuple[Buffer, ...]:
    """Return the buffers of all modules that generated code calls, and the buffers that it reads, each once."""
    buffers: dict[tuple[int, str], Buffer] = {}
    for node in code.graph.nodes:
        if node.op == "call_module":
            owners = [(m, n) for m in code.get_submodule(str(node.target)).modules() for n in m._buffers]
        elif node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            owner = code.get_submodule(path)
            owners = [(owner, name)] if name in owner._buffers else []
        else:
            continue
        buffers.update({(id(owner), name): (owner, name) for owner, name in owners})
    return tuple(buffers.values())


def buffers_in(module: nn.Module) -> tuple[Buffer, ...]:
    """Return the buffers of a module and of all modules in it."""
    return tuple((owner, name) for owner in module.modules() for name in owner._buffers)


@contextmanager
def buffers_kept(buffers: Iterable[Buffer]) -> Iterator[None]:
    """Restore buffers on leaving: the same tensors with the same values.

    Batch norm's statistics must move once a step, also where cascades or recomputed activations run a layer again.
    Values are written past the version counters, so that graphs recorded before may still go backward.
    """
    held = []
    for owner, name in buffers:
        tensor = owner._buffers[name]
        if tensor is not None:
            held.append((owner, name, tensor, tensor.detach().clone()))
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, tensor, values in held:
                owner._buffers[name] = tensor
                tensor.data.copy_(values)
