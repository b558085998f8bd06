"""The tracer: records one forward pass on proxies, together with calls, scopes, source lines and constants."""

from __future__ import annotations

import contextlib
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Argument
from torch.nn.modules import transformer

from passes.capture.assertions import assertion, expected_by_assert
from passes.capture.leaf_policy import LeafPolicy
from passes.capture.outputs import flatten
from passes.capture.proxies import Sized, store
from passes.capture.size_decisions import Sizes, Undecided, guard
from passes.capture.torch_patches import Builtins, patched, slow_attention
from passes.common.inplace import changes_first_argument, is_view
from passes.common.source_lines import calling_line
from passes.ir import Call, TensorSpec
from passes.structure import Structure

_LOOK_AT_SIZES = (transformer._get_seq_len,)
"""Functions of torch that stay one node, because their control flow does not matter."""


class Tracer(fx.Tracer):
    """Records a graph with its calls, scopes, source lines and constants, and never writes to the model.

    The output node holds the tuple of all values that the model returns, in the order of ``structure``'s slots.

    Args:
        is_leaf: Whether a module stays one node; see :meth:`passes.capture.leaf_policy.LeafPolicy.is_leaf`.
        policy: Names the functions that stay one node.
        example: Shape and type of an input; without it, no decision on sizes can be taken.
        builtins: Whether Python's ``len`` and ``int`` are recorded.
    """

    structure: Structure

    def __init__(
        self,
        is_leaf: Callable[[nn.Module, str, bool], bool],
        policy: LeafPolicy,
        example: TensorSpec | None,
        builtins: bool = False,
    ) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=(*_LOOK_AT_SIZES, *policy.functions))
        self.is_leaf = is_leaf
        self.policy = policy
        self.example = example
        self.calls: list[Call] = []
        self.open: list[int] = []
        self.node_scopes: dict[str, int] = {}
        self.node_sources: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.in_place: dict[str, Callable[..., object]] = {}
        self.failed_path: str | None = None
        self.paths: dict[int, str] = {}
        self.attributes: frozenset[str] = frozenset()
        self.sizes: Sizes | None = None
        self.deciding = False
        self.builtins = Builtins(self) if builtins else None
        self.missed_number = False
        """Whether the trace failed at ``len`` or ``int`` of a value that depends on the batch size."""

    def trace(
        self, root: nn.Module | Callable[..., object], concrete_args: dict[str, object] | None = None
    ) -> fx.Graph:
        """Record one forward pass of ``root`` in its present mode."""
        try:
            with torch.enable_grad(), slow_attention(), patched(self):
                return super().trace(root, concrete_args)
        finally:
            if self.builtins is not None:
                self.builtins.restore()

    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., object], list[fx.Proxy]]:
        """Return a forward with one input; further arguments keep their defaults.

        As proxies they would take every "is not None" branch.
        """
        forward = self.root.forward
        if self.builtins is not None:
            self.builtins.replace_in(forward)
        first = next(iter(inspect.signature(forward).parameters.values()))
        self.paths = {id(t): name for name, t in [*self.root.named_buffers(), *self.root.named_parameters()]}
        self.attributes = frozenset(self.paths.values())
        if self.example is not None:
            self.sizes = Sizes(self.root, self.example, self.constants)

        def values(x: fx.Proxy) -> tuple[object, ...]:
            # fx knows neither named tuples nor dataclasses, so it is given the values in them.
            result = forward(x)
            self.structure, returned = flatten(result, (fx.Proxy, torch.Tensor), type(self.root).__name__)
            return tuple(returned)

        return values, [self.create_proxy("placeholder", first.name, (), {})]

    # Modules ----------------------------------------------------------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module stays one node."""
        return self.is_leaf(m, module_qualified_name, False)

    def call_module(
        self, m: nn.Module, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Record a leaf as one node, or trace into a module and note its call."""
        if self.deciding:
            return forward(*args, **kwargs)
        if m not in (self.submodule_paths or {}) and next(m.parameters(), None) is None:
            # Created in the forward: nn.ReLU()(x).
            return m.forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf(m, path, any(_holds_several(a) for a in (*args, *kwargs.values()))):
            return self.create_proxy("call_module", path, args, kwargs)
        index = len(self.calls)
        first = len(self.graph.nodes)
        parent = self.open[-1] if self.open else -1
        call = Call(path, _type_name(m), _nodes(args), _nodes(kwargs), None, first, first - 1, parent)
        self.calls.append(call)
        self.open.append(index)
        if self.builtins is not None:
            self.builtins.replace_in(m.forward)
        try:
            # Not by __call__, which fx has patched: the call is noted here.
            result = m.forward(*args, **kwargs)
        except Exception:
            self.failed_path = self.failed_path or path
            raise
        finally:
            self.open.pop()
        last = len(self.graph.nodes) - 1
        self.calls[index] = Call(path, call.type_name, call.args, call.kwargs, _nodes(result), first, last, parent)
        return result

    # Nodes ------------------------------------------------------------------------------------------------------------

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record a node, its scope and its source line.

        Raises:
            Undecided: The operation does something that a graph does not show.
        """
        node = super().create_node(*args, **kwargs)
        if not torch.is_grad_enabled():
            raise Undecided("it computes something without gradients (torch.no_grad), which a graph does not show")
        if self.open and self._writes_to_buffer(node):
            raise Undecided("it changes a parameter or buffer of its own in place")
        self.node_scopes[node.name] = self.open[-1] if self.open else -1
        source = calling_line(fx.Tracer.trace.__code__)
        if source is not None:
            self.node_sources[node.name] = source
        return node

    def _writes_to_buffer(self, node: fx.Node) -> bool:
        if node.op not in ("call_function", "call_method") or not changes_first_argument(node):
            return False
        # Through views back to the tensor whose memory they share.
        source: Any = node.args[0]
        while isinstance(source, fx.Node) and is_view(source):
            source = source.args[0]
        return isinstance(source, fx.Node) and source.op == "get_attr" and source.target in self.attributes

    def assign(self, owner: nn.Module, name: str, value: fx.Proxy) -> None:
        """Record ``owner.name = value``, where ``name`` is a buffer.

        Raises:
            Undecided: The assignment is not in the root's own forward.
        """
        buffer: fx.Proxy = getattr(owner, name)
        node = value.node
        if node.args and node.args[0] is buffer.node and changes_first_argument(node):
            # The second half of ``self.buffer += 1``, whose first half has changed the buffer.
            return
        if self.open:
            raise Undecided(f"it assigns to its buffer {buffer.node.target}")
        self.create_proxy("call_function", store, (buffer, value), {})

    def create_arg(self, a: object) -> Argument:
        """Return the node or constant that stands for an argument."""
        unknown = id(a) not in self.paths
        if unknown and isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs:
            # The forward created it. fx would store it on the user's model.
            return self._constant(a)
        return super().create_arg(a)

    def _constant(self, value: torch.Tensor) -> fx.Node:
        for name, known in self.constants.items():
            if known is value:
                return self.create_node("get_attr", name, (), {})
        name = f"_tensor_constant{len(self.constants)}"
        self.constants[name] = value
        return self.create_node("get_attr", name, (), {})

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]) -> object:
        """Return an attribute of a module: parameters and buffers as nodes, anything else as it is."""
        path = self.paths.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) and not self.deciding else None
        if path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return parameter_proxy_cache[path]

    def create_proxy(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        name: str | None = None,
        type_expr: object = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        """Record a node and return its proxy.

        An item of a leaf's result that is None is returned as None, because code asks ``is None``.
        """
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        if target is operator.getitem and self.sizes is not None and isinstance(proxy.node.args[1], int):
            source = proxy.node.args[0]
            if isinstance(source, fx.Node) and source.op == "call_module" and not self._is_of_torch(source):
                with self._deciding():
                    return None if self.sizes.is_none(proxy.node) else proxy
        return proxy

    def _is_of_torch(self, node: fx.Node) -> bool:
        return type(self.root.get_submodule(str(node.target))).__module__.startswith("torch.nn.")

    # Decisions --------------------------------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return a proxy that answers questions about sizes."""
        return Sized(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return the branch that ``if obj`` takes; ``assert obj`` is recorded, and takes the branch that goes on."""
        expected = expected_by_assert()
        if expected is None:
            return bool(self.decide(obj, "bool"))
        self.create_proxy("call_function", assertion, (obj, expected, self._line()), {})
        return expected

    def _line(self) -> str:
        return calling_line(fx.Tracer.trace.__code__) or "an unknown line"

    def iter(self, obj: Any) -> Iterator[fx.Proxy]:
        """Return an iterator over the items of ``obj``, whose number must follow from sizes."""
        return iter([obj[i] for i in range(self.decide(obj, "len"))])

    def decide(self, obj: fx.Proxy, ask: str) -> Any:
        """Return the answer of a proxy, and record a guard where other sizes may give another answer.

        Args:
            obj: The proxy.
            ask: The question, a key of :data:`passes.capture.size_decisions.ASKS`.

        Raises:
            Undecided: The answer does not follow from sizes alone, or there is no example.
        """
        if self.sizes is None:
            raise Undecided("its path depends on a tensor")
        # Noted before the question: if it fails, another trace that records len and int may succeed.
        missed, self.missed_number = self.missed_number, ask in ("len", "int")
        with self._deciding():
            decision = self.sizes.decide(obj.node, ask)
        if not decision.on_batch:
            self.missed_number = missed
        elif self.open:
            # As a leaf the module decides again for every batch.
            raise Undecided("its path depends on the batch size")
        if decision.varies:
            self.create_proxy("call_function", guard, (obj, ask, decision.answer, self._line()), {})
        return decision.answer

    def is_number(self, obj: fx.Proxy) -> bool:
        """Return whether a proxy is known to stand for a number that follows from sizes."""
        if self.sizes is None:
            return False
        with self._deciding():
            return self.sizes.is_number(obj.node)

    @contextlib.contextmanager
    def _deciding(self) -> Iterator[None]:
        """Run code on values inside: nothing is recorded."""
        self.deciding = True
        try:
            yield
        finally:
            self.deciding = False


def _holds_several(value: object) -> bool:
    return isinstance(value, (tuple, list, dict)) and any(
        isinstance(item, fx.Proxy) for item in (value.values() if isinstance(value, dict) else value)
    )


def _type_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _nodes(value: Any) -> Any:
    """Return the same containers with each proxy replaced by its node."""
    if isinstance(value, fx.Proxy):
        return value.node
    if type(value) in (tuple, list):
        return type(value)(_nodes(item) for item in value)
    if type(value) is dict:
        return {key: _nodes(item) for key, item in value.items()}
    return value
