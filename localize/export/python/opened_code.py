"""Modules and functions of other libraries, opened: traced into operations of torch, for what they are called with."""

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
Given = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class CallSite:
    """A call: its arguments as they are written, nodes or tensors among them, and what gives their values."""

    written: Given
    values: Callable[[], Given]

    @property
    def nodes(self) -> list[Any]:
        """What differs from call to call, each once, in order: inputs of the opened graph."""
        found: dict[int, Any] = {}
        _leaves(self.written, found)
        return list(found.values())


@dataclass(frozen=True, slots=True)
class OpenedCode:
    """What a module or function does with its arguments, in one mode."""

    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]
    values: _Values

    def site(self, node: fx.Node) -> CallSite:
        """A call within it."""
        return CallSite((node.args, node.kwargs), lambda: self.values.given(node))


def paired(written: Any, value: Any, found: dict[int, Any]) -> None:
    """Notes the value of each node among arguments, by the node's identity."""
    if isinstance(written, (fx.Node, torch.Tensor)):
        found.setdefault(id(written), value)
    elif isinstance(written, Mapping):
        for key, part in written.items():
            paired(part, value[key], found)
    elif isinstance(written, (tuple, list)):
        for part, other in zip(written, value, strict=True):
            paired(part, other, found)


def _leaves(value: Any, found: dict[int, Any]) -> None:
    if isinstance(value, (fx.Node, torch.Tensor)):
        found.setdefault(id(value), value)
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ():
        _leaves(part, found)


def open_code(what: nn.Module | Callable[..., Any], site: CallSite) -> OpenedCode:
    """Traces a module or function; decisions are those for these arguments.

    Args:
        what: The module, in the mode that it is to be traced in; its parameters may be fake.
        site: What it is called with.

    Raises:
        Exception: Whatever its code raises on proxies.
    """
    tracer = _Opener(what, site)
    graph = tracer.trace(what)
    return OpenedCode(graph, dict(tracer.constants), tracer.values)


def _policy(module: nn.Module, path: str, several: bool) -> bool:
    return LeafPolicy().is_leaf(module, path, several)


class _Opener(Tracer):
    """Traces code that takes several arguments, and knows what each of its values is."""

    def __init__(self, what: nn.Module | Callable[..., Any], site: CallSite) -> None:
        super().__init__(_policy, LeafPolicy(), None)
        self.site = site
        self.values = _Values(what if isinstance(what, nn.Module) else nn.Module(), self.constants, site)
        self.sizes = self.values  # type: ignore[assignment]

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """One input for each node among the arguments, in order; the rest is what it is."""
        self.paths = {id(t): name for name, t in [*self.root.named_buffers(), *self.root.named_parameters()]}
        self.attributes = frozenset(self.paths.values())
        inputs: dict[int, Any] = {}

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
    """Runs what is being recorded, and answers what Python asks of it."""

    def __init__(self, root: nn.Module, constants: Mapping[str, torch.Tensor], site: CallSite) -> None:
        super().__init__(root, constants)
        self.site = site
        self.written: dict[fx.Node, int] = {}
        """Identity of what is written in the place of each input."""

    def decide(self, node: fx.Node, ask: str) -> Decision:
        """What ``node`` answers; a guard goes into the code where it is more than the rank of a tensor that decides."""
        value = self.value_of(node)
        return Decision(ASKS[ask](value), not isinstance(value, torch.Size) and not self._by_rank(node), False)

    def _by_rank(self, node: fx.Node) -> bool:
        """Whether a number follows from how many dimensions tensors have."""
        if any(isinstance(self.value_of(parent), torch.Tensor) for parent in node.all_input_nodes):
            return str(node.args[1] if node.target is getattr else node.target) in _RANK
        return bool(node.all_input_nodes) and all(self._by_rank(parent) for parent in node.all_input_nodes)

    def is_number(self, node: fx.Node) -> bool:
        """Whether ``node`` yields a number."""
        return isinstance(self.value_of(node), (int, float))

    def is_none(self, node: fx.Node) -> bool:
        """Whether ``node`` yields None."""
        return self.value_of(node) is None

    def given(self, node: fx.Node) -> Given:
        """Return the arguments of a node."""
        return arguments_of(node, self.value_of)

    def placeholder(self, node: fx.Node) -> Any:
        """Return what is written in the place of an input."""
        found: dict[int, Any] = {}
        paired(self.site.written, self.site.values(), found)
        return found[self.written[node]]
