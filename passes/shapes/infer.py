"""Shapes and costs: Captured -> Shapes, on fake tensors. Nothing is computed, and no real memory is taken.

Costs are counted at the level of ATen operators, so a convolution counts wherever it hides: in a leaf module, in a
functional call, in a class of the user's own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from passes.common.fake_tensors import device_of, fake_mode, faked, has_values
from passes.common.interpreter import Interpreter, arguments_of
from passes.common.layer_kinds import DENSE, NORMS
from passes.common.restore import untouched
from passes.common.source_lines import source_of
from passes.errors import CaptureError, first_line
from passes.ir import Captured, Cost, Shapes, TensorSpec
from passes.shapes.costs import CostMode
from passes.shapes.layouts import with_layouts


def infer_shapes(captured: Captured, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Shapes:
    """Runs the graph once on fake tensors.

    Args:
        captured: The graph.
        shape: Shape of the input, batch first; the batch should be at least 2, for batch norm in train mode.
        dtype: Type of the input.

    Returns:
        Shape, dtype, layout and cost of every node.

    Raises:
        CaptureError: The graph does not run on an input of this shape; names the node's module and source line.
    """
    runner = _Runner(captured, max(1, shape[0]))
    # Parameters live on the model's device: the fake input must say it is there too.
    device = device_of(captured.model)
    with (
        untouched(captured.model),
        fake_mode() as mode,
        faked(captured.model, mode) as runner.real,
        runner.cost,
        torch.no_grad(),
    ):
        runner.run(captured.graph, torch.empty(tuple(shape), dtype=dtype, device=device))
    specs = with_layouts(captured, runner.specs)
    source, result = specs[captured.input], specs[captured.result.name]
    for node in (captured.result, *captured.heads):
        if specs[node.name] is None and (node is captured.result or node.name not in runner.numbers):
            raise CaptureError(
                "the model does not return a tensor" if node is captured.result else "what the model returns is hidden",
                where=type(captured.model).__name__,
                source=captured.sources.get(node.name),
                why=f"{node.target} returns several values" if node.op == "call_module" else None,
                remedy="Wrap it in a module that returns the tensor the loss is computed from, or unpack what "
                "submodules return: `a, b = self.part(x)`",
            )
    assert source is not None and result is not None
    return Shapes(specs, runner.costs, frozenset(runner.numbers), source, result)


class _Runner(Interpreter):
    """Runs the graph, keeping a spec and a cost a node, and naming the node that fails."""

    def __init__(self, captured: Captured, batch: int) -> None:
        super().__init__(captured.model, captured.constants)
        self.captured = captured
        self.cost = CostMode(batch)
        self.specs: dict[str, TensorSpec | None] = {}
        self.costs: dict[str, Cost] = {}
        self.numbers: set[str] = set()
        self.layers_run: dict[Any, tuple[Any, Cost]] = {}
        self.real: dict[int, torch.Tensor] = {}

    def call_module(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a leaf layer, unless one just like it has been run on such an input."""
        module = self.root.get_submodule(str(node.target))
        key = _signature(module, args, kwargs)
        if key is None:
            return super().call_module(node, args, kwargs)
        if key not in self.layers_run:
            value = super().call_module(node, args, kwargs)
            self.layers_run[key] = pytree.tree_map(_form, value), self.cost.take()
        form, cost = self.layers_run[key]
        self.cost.put(cost)
        return pytree.tree_map(lambda leaf: leaf.make() if isinstance(leaf, _Form) else leaf, form)

    def run_node(self, node: fx.Node) -> Any:
        """Run a node, and note its spec and cost."""
        try:
            value = super().run_node(node)
        except DataDependentOutputException as error:
            value = self._by_running(node, error)
        except Exception as error:
            where = node.target if node.op == "call_module" else self.captured.scope_path(node.name)
            raise CaptureError(
                "the model does not run on this input",
                where=str(where) or type(self.captured.model).__name__,
                source=self.captured.sources.get(node.name) or source_of(error),
                why=first_line(error),
                remedy="Give an input of the shape the model expects as example_inputs",
            ) from error
        is_tensor = isinstance(value, torch.Tensor)
        self.specs[node.name] = TensorSpec(tuple(value.shape), value.dtype) if is_tensor else None
        self.costs[node.name] = self.cost.take()
        if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value)):
            self.numbers.add(node.name)
        return value

    def _by_running(self, node: fx.Node, error: Exception) -> Any:
        """The value of a leaf whose forward looks at what its tensors hold: a copy of it runs on random real ones.

        Raises:
            CaptureError: The node is no leaf module, or its parameters hold no values.
        """
        module = self.captured.module(node)
        held = [*module.parameters(), *module.buffers()] if module is not None else []
        real = {id(t): self.real.get(id(t), t) for t in held}
        if module is None or not all(has_values(t) for t in real.values()):
            raise CaptureError(
                "what is computed depends on the values of a tensor, so shapes cannot be inferred",
                where=str(node.target) if module is not None else self.captured.scope_path(node.name),
                source=self.captured.sources.get(node.name) or source_of(error),
                remedy="Move the code that looks at values into a submodule of its own, and give it real parameters",
            ) from error
        args, kwargs = arguments_of(node, self.known)
        with _disable_current_modes(), torch.random.fork_rng(), torch.no_grad():
            twin = copy.deepcopy(module, {fake: copy.deepcopy(tensor) for fake, tensor in real.items()})
            result = twin(*pytree.tree_map(_random, args), **pytree.tree_map(_random, kwargs))
        self.cost.mixing |= any(p.ndim > 1 for p in module.parameters())
        return pytree.tree_map(lambda t: torch.empty_like(t) if isinstance(t, torch.Tensor) else t, result)


@dataclass(frozen=True, slots=True)
class _Form:
    """All of a fake tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


def _form(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return _Form(tuple(value.shape), value.stride(), value.dtype, value.device)


_PLAIN_LAYERS = (*DENSE, *NORMS, nn.RNNBase)


def _signature(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What decides the form of the layer's output; None where that cannot be told from outside."""
    ours = type(module).__module__.startswith(("torch.nn.", "timm.layers."))
    if not ours or not isinstance(module, _PLAIN_LAYERS) or kwargs:
        return None
    tensors = [*module.named_parameters(), *module.named_buffers()]
    held = tuple((name, tuple(t.shape), t.dtype) for name, t in tensors)
    leaves, structure = pytree.tree_flatten(args)
    return type(module), repr(module), held, tuple(_form(leaf) for leaf in leaves), str(structure)


def _random(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point():
        return torch.randn(tuple(value.shape), dtype=value.dtype, device=value.device)
    return torch.zeros(tuple(value.shape), dtype=value.dtype, device=value.device)
