"""Inference with code that was traced in train mode: the training flags of its functional calls are switched off.

Train and eval mode are two graphs: functional dropout and stochastic depth write the training flag into a trace.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn
from torch.nn import functional as F

from passes.common.parameters import hold

_FLAGS = ("training", "train")
"""Names of the arguments that tell a function that it runs in training."""
_ATTENTION_DROPOUT = 4
"""Position of ``dropout_p`` among the arguments of scaled dot product attention, which has no Python signature."""
_TWIN = "inference_twin"
"""Attribute under which a module keeps its twin."""


def for_inference(module: fx.GraphModule) -> fx.GraphModule:
    """Return a twin of ``module`` over the same submodules and parameters, whose functional calls run as in inference.

    The twin is made once. Submodules follow their own ``training`` flag. A forward that branches on the flag keeps the
    branch that it took in training: where that may be, compare results with the user's model.
    """
    if _TWIN not in module.__dict__:
        hold(module, **{_TWIN: _twin(module)})
    twin: fx.GraphModule = module.__dict__[_TWIN]
    return twin


def _twin(module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    result = graph.graph_copy(module.graph, {})
    graph.output(result)
    for node in graph.nodes:
        if node.op == "call_function":
            _switch_off(node)
    twin = fx.GraphModule(module, graph, type(module).__name__)
    # The same tables, so that a parameter that is replaced later is replaced in the twin too.
    twin._modules, twin._parameters, twin._buffers = module._modules, module._parameters, module._buffers
    return twin


@contextmanager
def as_in_inference(network: nn.Module) -> Iterator[None]:
    """Run all generated code in a network as in inference while inside."""
    generated = [module for module in network.modules() if isinstance(module, fx.GraphModule)]
    for module in generated:
        module.__dict__["forward"] = for_inference(module).forward
    try:
        yield
    finally:
        for module in generated:
            del module.__dict__["forward"]


def _switch_off(node: fx.Node) -> None:
    flag = training_flag(node.target)
    if flag is not None:
        _set(node, *flag, 0.0 if node.target is F.scaled_dot_product_attention else False)


def training_flag(function: Callable[..., object] | str) -> tuple[str, int] | None:
    """Return name and position of the argument that tells a function that it runs in training; None if it has none.

    For scaled dot product attention it is the probability of dropout, 0 in inference.

    >>> training_flag(F.dropout)
    ('training', 2)
    """
    if function is F.scaled_dot_product_attention:
        return "dropout_p", _ATTENTION_DROPOUT
    if function is torch.dropout:
        return "train", 2
    try:
        names = list(inspect.signature(function).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return next(((name, i) for i, name in enumerate(names) if name in _FLAGS), None)


def _set(node: fx.Node, name: str, position: int, value: float) -> None:
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)
