"""Capture: nn.Module -> Captured, by torch.fx.

The model is traced in train mode, because inference always goes through the user's own module. Which modules stay
whole is a policy that is passed in. A submodule whose forward cannot be traced becomes a leaf as well, runs its own
code, and is reported (*progressive leafing*). The model is handed back as it was: mode, attributes, buffers.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from passes.errors import CaptureError, first_line
from passes.ir import Call, Captured, Opaque

_ATOMS = (_ConvNd, nn.Linear, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.Embedding, nn.MultiheadAttention)
_FRAMEWORK = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(__file__) + os.sep,
    contextlib.__file__,
    functools.__file__,
)


@dataclass(frozen=True, slots=True)
class LeafPolicy:
    """What the tracer must not look into.

    Modules of torch.nn, and modules that hold neither parameters nor children (activations, stochastic depth, custom
    pooling), are always leaves: nothing inside them could be cut, and as leaves they keep their train/eval behaviour.
    """

    classes: frozenset[type[nn.Module]] = frozenset()
    functions: tuple[Callable[..., Any], ...] = ()
    paths: frozenset[str] = frozenset()

    def is_leaf(self, module: nn.Module, path: str) -> bool:
        """Whether ``module``, reached at ``path``, stays one node."""
        if path in self.paths or type(module) in self.classes:
            return True
        if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return False
        if type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")) or isinstance(module, _ATOMS):
            return True
        bare = next(module.children(), None) is None
        return bare and not module._parameters and not module._buffers


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Silences hooks, and on leaving puts back every attribute, buffer, hook and mode flag of every submodule.

    Inside, buffers are copies: fake modes run in-place operations on real tensors for real (batch norm's counter).
    """
    registries = ("_parameters", "_buffers", "_modules")
    saved = [
        (module, dict(module.__dict__), {name: dict(module.__dict__[name]) for name in registries})
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    copies: dict[int, torch.Tensor] = {}
    try:
        for module, attributes, _ in saved:
            buffers = module.__dict__["_buffers"]
            for name, buffer in buffers.items():
                if buffer is not None:
                    buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
            # The user's hooks belong to real runs, not to ours on proxies and fake tensors.
            module.__dict__.update({name: OrderedDict() for name in attributes if is_hook_table(name)})
        yield
    finally:
        for module, attributes, tables in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, table in tables.items():
                module.__dict__[name].clear()
                module.__dict__[name].update(table)


def is_hook_table(name: str) -> bool:
    """Whether a module's attribute of this name holds hooks."""
    return "_hooks" in name and name.startswith(("_forward", "_backward"))


def capture(model: nn.Module, policy: LeafPolicy | None = None) -> Captured:
    """Traces ``model`` into a graph.

    Args:
        model: Any module whose forward takes one tensor (further arguments must have defaults, and keep them).
        policy: What stays a leaf besides torch.nn's modules and modules without parameters.

    Returns:
        The graph with the calls, source lines and constants that later stages need.

    Raises:
        CaptureError: The model's own forward cannot be traced, or it does not take one tensor and return one.
    """
    policy = policy or LeafPolicy()
    _check_signature(model)
    opaque: list[Opaque] = []
    for _ in range(1 + sum(1 for _ in model.modules())):
        tracer = _Tracer(policy, frozenset(leaf.path for leaf in opaque))
        try:
            with untouched(model):
                _set_training(model)
                graph = tracer.trace(model)
        except Exception as error:
            path = tracer.failed_path
            source = source_of(error)
            if not path:
                raise CaptureError(
                    "the model's forward cannot be traced",
                    where=type(model).__name__,
                    source=source,
                    why=_reason(error),
                    remedy="Move the code that depends on values or sizes into a submodule: a submodule that cannot be "
                    "traced is kept whole",
                ) from error
            opaque.append(Opaque(path, source, _reason(error)))
            continue
        return _finish(model, tracer, graph, tuple(opaque))
    raise AssertionError("every failed trace must add a leaf")


def source_of(error: BaseException) -> str | None:
    """Source line of the innermost frame of the user's own code in ``error``'s traceback, as ``file.py:12``."""
    frames = list(_frames(error.__traceback__))
    for frame, line in reversed(frames):
        if not _is_framework(frame.f_code.co_filename):
            return f"{os.path.basename(frame.f_code.co_filename)}:{line}"
    return None


def _frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    return ((frame, line) for frame, line in traceback.walk_tb(trace))


def _is_framework(filename: str) -> bool:
    return filename.startswith(_FRAMEWORK) or filename.startswith("<")


def _reason(error: BaseException) -> str:
    name, line = type(error).__name__, first_line(error)
    return line if line == name else f"{name}: {line}"


def _set_training(model: nn.Module) -> None:
    # Not model.train(): classes override it (to keep a norm frozen, say), and theirs may do more than set flags.
    for module in model.modules():
        module.training = True


def _check_signature(model: nn.Module) -> None:
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    inputs = [p.name for p in parameters if p.kind in positional]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in variadic]
    if not inputs or len(required) > 1:
        raise CaptureError(
            f"the model's forward must take one tensor; it takes ({', '.join(str(p) for p in parameters)})",
            where=type(model).__name__,
            source=_line_of(type(model).forward),
            remedy="Wrap the model in a module whose forward takes one tensor",
        )


def _line_of(function: Callable[..., Any]) -> str | None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}" if code else None


class _Tracer(fx.Tracer):
    """Records calls, scopes, source lines and constants beside the graph, and never writes to the model."""

    def __init__(self, policy: LeafPolicy, opaque: frozenset[str]) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=policy.functions)
        self.policy = policy
        self.opaque_paths = opaque
        self.calls: list[Call] = []
        self.open: list[int] = []
        self.node_scopes: dict[str, int] = {}
        self.node_sources: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.failed_path: str | None = None

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        # One input; further arguments keep their defaults. As proxies they would take every "is not None" branch.
        first = list(inspect.signature(inspect.unwrap(root_fn)).parameters)[1]
        return root_fn, [self.root, self.create_proxy("placeholder", first, (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.opaque_paths or self.policy.is_leaf(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        index = len(self.calls)
        first = len(self.graph.nodes)
        parent = self.open[-1] if self.open else -1
        call = Call(path, _type_name(m), _nodes(args), _nodes(kwargs), None, first, first - 1, parent)
        self.calls.append(call)
        self.open.append(index)
        try:
            # Not through __call__, which fx has patched: the call is recorded here.
            result = m.forward(*args, **kwargs)
        except Exception:
            self.failed_path = self.failed_path or path
            raise
        finally:
            self.open.pop()
        last = len(self.graph.nodes) - 1
        self.calls[index] = Call(path, call.type_name, call.args, call.kwargs, _nodes(result), first, last, parent)
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.node_scopes[node.name] = self.open[-1] if self.open else -1
        source = _calling_line()
        if source is not None:
            self.node_sources[node.name] = source
        return node

    def create_arg(self, a: Any) -> Any:
        made_here = isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs
        if made_here and not any(a is buffer for buffer in self.root.buffers()):
            # fx would store it on the user's model.
            return self._constant(a)
        return super().create_arg(a)

    def _constant(self, value: torch.Tensor) -> fx.Node:
        for name, known in self.constants.items():
            if known is value:
                return self.create_node("get_attr", name, (), {})
        name = f"_tensor_constant{len(self.constants)}"
        self.constants[name] = value
        return self.create_node("get_attr", name, (), {})


def _calling_line() -> str | None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not capture.__code__:
        filename = frame.f_code.co_filename
        if not _is_framework(filename):
            return f"{os.path.basename(filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def _type_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _nodes(value: Any) -> Any:
    """The same structure with proxies replaced by their nodes; what is neither stays as it is."""
    if isinstance(value, fx.Proxy):
        return value.node
    if type(value) in (tuple, list):
        return type(value)(_nodes(item) for item in value)
    if type(value) is dict:
        return {key: _nodes(item) for key, item in value.items()}
    return value


def _finish(model: nn.Module, tracer: _Tracer, graph: fx.Graph, opaque: tuple[Opaque, ...]) -> Captured:
    result = graph.output_node().args[0]
    if not isinstance(result, fx.Node):
        kind = f"{len(result)} values" if isinstance(result, (tuple, list)) else f"a {type(result).__name__}"
        raise CaptureError(
            f"the model must return one tensor; in train mode it returns {kind}",
            where=type(model).__name__,
            source=_line_of(type(model).forward),
            remedy="Wrap it in a module that returns the tensor the loss is computed from",
        )
    return Captured(
        model,
        graph,
        tuple(tracer.calls),
        dict(tracer.node_scopes),
        dict(tracer.node_sources),
        dict(tracer.constants),
        opaque,
    )
