"""Shape inference: runs the graph once on fake tensors, which computes nothing and takes no real memory.

Leaf layers of one kind, size and input are run once; the rest of the time is Python's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

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
    """Infer shape, dtype, layout and cost of every node.

    Args:
        captured: The graph.
        shape: Shape of the input, batch first; the batch should be at least 2, for batch norm in train mode.
        dtype: Type of the input.

    Raises:
        CaptureError: The graph does not run on an input of this shape, a result depends on the values of a tensor
            outside of a leaf, or the model does not return tensors.
    """
    runner = _Runner(captured, max(1, shape[0]))
    # Parameters are on the model's device: the fake input must claim to be there too.
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
    """Runs the graph, notes spec and cost of each node, and raises errors that name the node that failed."""

    def __init__(self, captured: Captured, batch: int) -> None:
        super().__init__(captured.model, captured.constants)
        self.captured = captured
        self.cost = CostMode(batch)
        self.specs: dict[str, TensorSpec | None] = {}
        self.costs: dict[str, Cost] = {}
        self.numbers: set[str] = set()
        self.layers_run: dict[object, tuple[object, Cost]] = {}
        self.real: dict[int, torch.Tensor] = {}

    def call_module(self, node: fx.Node, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
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

    def run_node(self, node: fx.Node) -> object:
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
        spec = TensorSpec(tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else None
        self.specs[node.name] = spec
        self.costs[node.name] = self.cost.take()
        if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value)):
            self.numbers.add(node.name)
        return value

    def _by_running(self, node: fx.Node, error: Exception) -> object:
        """Return the value of a leaf module whose forward depends on values: a copy of it runs on random real tensors.

        Raises:
            CaptureError: The node does not call a module, or the module's parameters have no values.
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
    """All that defines a fake tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


def _form(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    return _Form(tuple(value.shape), value.stride(), value.dtype, value.device)


_PLAIN_LAYERS = (*DENSE, *NORMS, nn.RNNBase)


def _signature(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """Return a key: layers of one key give outputs of one form. None for layers whose code is not known."""
    ours = type(module).__module__.startswith(("torch.nn.", "timm.layers."))
    if not ours or not isinstance(module, _PLAIN_LAYERS) or kwargs:
        return None
    tensors = [*module.named_parameters(), *module.named_buffers()]
    held = tuple((name, tuple(t.shape), t.dtype) for name, t in tensors)
    leaves, structure = pytree.tree_flatten(args)
    return type(module), repr(module), held, tuple(_form(leaf) for leaf in leaves), str(structure)


def _random(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point():
        return torch.randn(tuple(value.shape), dtype=value.dtype, device=value.device)
    return torch.zeros(tuple(value.shape), dtype=value.dtype, device=value.device)
