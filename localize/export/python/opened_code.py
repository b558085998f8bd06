"""Trace modules and functions of other libraries into operations of torch, for the arguments of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from passes.capture.leaf_policy import LeafPolicy
from passes.capture.size_decisions import ASKS, Decision
from passes.capture.tracer import Tracer
from passes.common.interpreter import Interpreter, arguments_of

_RANK = ("ndim", "dim", "ndimension")
Given = tuple[tuple[object, ...], Mapping[str, object]]
"""Positional and named arguments of a call."""


@dataclass(frozen=True, slots=True)
class CallSite:
    """One call of a module or function."""

    written: Given
    """Arguments as they are written, with nodes or tensors among them."""
    values: Callable[[], Given]
    """Function that returns the values of the arguments."""

    @property
    def nodes(self) -> list[Any]:
        """Nodes and tensors among the arguments, each once, in order: the inputs of the opened graph."""
        leaves: dict[int, Any] = {}
        _leaves(self.written, leaves)
        return list(leaves.values())


@dataclass(frozen=True, slots=True)
class OpenedCode:
    """The operations of a module or function, in one mode."""

    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]
    values: _Values

    def site(self, node: fx.Node) -> CallSite:
        """Return the call of a node in the graph."""
        return CallSite((node.args, node.kwargs), lambda: self.values.given(node))


def paired(written: object, value: Any, values: dict[int, object]) -> None:
    """Collect the value of each node among the arguments of a call.

    Args:
        written: Arguments as they are written.
        value: Values of these arguments.
        values: Values by the identity of the node or tensor. New ones are added.
    """
    if isinstance(written, (fx.Node, torch.Tensor)):
        values.setdefault(id(written), value)
    elif isinstance(written, Mapping):
        for key, part in written.items():
            paired(part, value[key], values)
    elif isinstance(written, (tuple, list)):
        for part, other in zip(written, value, strict=True):
            paired(part, other, values)


def _leaves(value: object, leaves: dict[int, Any]) -> None:
    if isinstance(value, (fx.Node, torch.Tensor)):
        leaves.setdefault(id(value), value)
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ():
        _leaves(part, leaves)


def open_code(what: nn.Module | Callable[..., object], site: CallSite) -> OpenedCode:
    """Trace a module or function; branches are taken as for the arguments of this call.

    Args:
        what: The function, or the module in the mode to trace; its parameters may be fake.
        site: The call.

    Raises:
        Exception: The code of ``what`` raised it when it ran on proxies.
    """
    tracer = _Opener(what, site)
    graph = tracer.trace(what)
    return OpenedCode(graph, dict(tracer.constants), tracer.values)


def _policy(module: nn.Module, path: str, several: bool) -> bool:
    return LeafPolicy().is_leaf(module, path, several)


class _Opener(Tracer):
    """Traces code with several arguments, and computes the value of each node on the way."""

    def __init__(self, what: nn.Module | Callable[..., object], site: CallSite) -> None:
        super().__init__(_policy, LeafPolicy(), None)
        self.site = site
        self.values = _Values(what if isinstance(what, nn.Module) else nn.Module(), self.constants, site)
        self.sizes = self.values  # type: ignore[assignment]

    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., object], list[fx.Proxy]]:
        """Make one input for each node among the arguments, in order; other arguments keep their values."""
        self.paths = {id(t): name for name, t in [*self.root.named_buffers(), *self.root.named_parameters()]}
        self.attributes = frozenset(self.paths.values())
        inputs: dict[int, fx.Proxy] = {}

        def take(written: Any) -> Any:
            if isinstance(written, (fx.Node, torch.Tensor)):
                if id(written) not in inputs:
                    proxy = self.create_proxy("placeholder", f"x_{len(inputs)}" if inputs else "x", (), {})
                    inputs[id(written)] = proxy
                    self.values.written[proxy.node] = id(written)
                return inputs[id(written)]
            if isinstance(written, Mapping):
                return {key: take(part) for key, part in written.items()}
            if isinstance(written, (tuple, list)):
                parts = [take(part) for part in written]
                return tuple(parts) if isinstance(written, tuple) else parts
            return written

        args, kwargs = (take(written) for written in self.site.written)
        call = self.root.forward if is_module else root_fn
        return lambda *_: call(*args, **kwargs), list(inputs.values())


class _Values(Interpreter):
    """Runs the graph while it is recorded, to answer the questions that Python code asks of proxies."""

    def __init__(self, root: nn.Module, constants: Mapping[str, torch.Tensor], site: CallSite) -> None:
        super().__init__(root, constants)
        self.site = site
        self.written: dict[fx.Node, int] = {}
        """Identity of the node or tensor that each input stands for."""

    def decide(self, node: fx.Node, ask: str) -> Decision:
        """Answer a question about a node; the answer is guarded unless it follows from the ranks of tensors alone."""
        value = self.value_of(node)
        return Decision(ASKS[ask](value), not isinstance(value, torch.Size) and not self._by_rank(node), False)

    def _by_rank(self, node: fx.Node) -> bool:
        """Return whether a number follows from the numbers of dimensions of tensors."""
        if any(isinstance(self.value_of(parent), torch.Tensor) for parent in node.all_input_nodes):
            return str(node.args[1] if node.target is getattr else node.target) in _RANK
        return bool(node.all_input_nodes) and all(self._by_rank(parent) for parent in node.all_input_nodes)

    def is_number(self, node: fx.Node) -> bool:
        """Return whether the value of ``node`` is a number."""
        return isinstance(self.value_of(node), (int, float))

    def is_none(self, node: fx.Node) -> bool:
        """Return whether the value of ``node`` is None."""
        return self.value_of(node) is None

    def given(self, node: fx.Node) -> Given:
        """Return the arguments of a node."""
        return arguments_of(node, self.value_of)

    def placeholder(self, node: fx.Node) -> object:
        """Return the value that an input stands for."""
        values: dict[int, object] = {}
        paired(self.site.written, self.site.values(), values)
        return values[self.written[node]]
