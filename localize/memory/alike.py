"""What two modules have in common if they run the same operations on tensors of the same shapes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

_PLAIN = (int, float, bool, str, type(None), torch.dtype)


def look(value: Any) -> Hashable:
    """A tensor without its content; another value as it is."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.requires_grad)
    return value if isinstance(value, _PLAIN) else repr(value)


def code_of(module: nn.Module) -> Hashable:
    """What a module runs, without names: graphs node by node, others by class, settings, tensors and submodules."""
    if isinstance(module, fx.GraphModule):
        return _graph(module)
    settings = tuple(
        (key, value)
        for key, value in sorted(module.__dict__.items())
        if key[0] != "_" and (isinstance(value, _PLAIN) or (isinstance(value, tuple) and _is_plain(value)))
    )
    tensors = tuple((key, look(value)) for key, value in (*module._parameters.items(), *module._buffers.items()))
    children = tuple((name, code_of(child)) for name, child in module._modules.items() if child is not None)
    return (type(module), settings, tensors, children)


def _graph(module: fx.GraphModule) -> Hashable:
    index = {node: i for i, node in enumerate(module.graph.nodes)}
    return tuple(
        (node.op, _target(module, node), _arguments(node.args, index), _arguments(node.kwargs, index))
        for node in module.graph.nodes
    )


def _target(module: fx.GraphModule, node: fx.Node) -> Hashable:
    if node.op == "call_module":
        return code_of(module.get_submodule(str(node.target)))
    if node.op == "get_attr":
        value: Any = module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return code_of(value) if isinstance(value, nn.Module) else look(value)
    return "" if node.op in ("placeholder", "output") else node.target


def _arguments(value: Any, index: Mapping[fx.Node, int]) -> Hashable:
    if isinstance(value, fx.Node):
        return ("node", index[value])
    if isinstance(value, (tuple, list)):
        return tuple(_arguments(item, index) for item in value)
    if isinstance(value, Mapping):
        return tuple((key, _arguments(item, index)) for key, item in value.items())
    if isinstance(value, slice):
        return ("slice", *(_arguments(item, index) for item in (value.start, value.stop, value.step)))
    return look(value)


def _is_plain(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, _PLAIN) for value in values)
