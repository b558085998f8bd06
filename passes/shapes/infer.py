"""Shapes and costs: Captured -> Shapes, on fake tensors. Nothing is computed, and no real memory is taken.

Costs are counted at the level of ATen operators, so a convolution counts wherever it hides: in a leaf module, in a
functional call, in a class of the user's own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from passes.common.fake_tensors import device_of, fake_mode, faked, has_values
from passes.common.interpreter import Interpreter, arguments_of
from passes.common.restore import untouched
from passes.common.source_lines import source_of
from passes.errors import CaptureError, first_line
from passes.ir import Captured, Cost, Layout, Shapes, TensorSpec

_aten = torch.ops.aten


class CostMode(TorchDispatchMode):
    """Adds up what passes through it; :meth:`take` reads the tally and starts anew."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self._clear()

    def _clear(self) -> None:
        self.macs = 0
        self.mixing = False
        self.depthwise = False

    def take(self) -> Cost:
        """The cost since the last call, for one sample."""
        cost = Cost(self.macs // self.batch, self.mixing, self.depthwise)
        self._clear()
        return cost

    def put(self, cost: Cost) -> None:
        """Adds a cost for one sample that is known without running."""
        self.macs += cost.macs * self.batch
        self.mixing |= cost.mixing
        self.depthwise |= cost.depthwise

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", func)
        if packet is _aten.convolution:
            weight, transposed = args[1], args[6]
            positions = args[0] if transposed else out
            self.macs += positions.numel() // positions.shape[1] * weight.numel()
            depthwise = weight.shape[1] == 1 and args[8] > 1
            self.depthwise |= depthwise
            self.mixing |= not depthwise
        elif packet in (_aten.mm, _aten.addmm):
            matrix = args[0] if packet is _aten.mm else args[1]
            self.macs += matrix.shape[0] * matrix.shape[1] * out.shape[1]
            self.mixing = True
        elif packet in _ATTENTION:
            self.mixing = True
        return out


_ATTENTION = {
    _aten.bmm,
    _aten.baddbmm,
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_efficient_attention,
    _aten._scaled_dot_product_cudnn_attention,
}


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
    specs = _with_layouts(captured, runner.specs)
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


_PLAIN_LAYERS = (_ConvNd, _NormBase, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.RNNBase)


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


def _with_layouts(captured: Captured, specs: Mapping[str, TensorSpec | None]) -> dict[str, TensorSpec | None]:
    layouts: dict[str, Layout] = {}
    known: dict[str, TensorSpec | None] = {}
    for node in captured.nodes:
        spec = specs[node.name]
        if spec is None:
            known[node.name] = None
            continue
        layout = layouts[node.name] = _layout(captured, node, spec, layouts, specs)
        known[node.name] = TensorSpec(spec.shape, spec.dtype, layout)
    return known


def _layout(
    captured: Captured,
    node: fx.Node,
    spec: TensorSpec,
    layouts: Mapping[str, Layout],
    specs: Mapping[str, TensorSpec | None],
) -> Layout:
    rank = len(spec.shape)
    if rank == 5:
        return "NCDHW" if _is_volume(captured, node, layouts) else "other"
    if rank != 4:
        return {2: "NC", 3: "NLC"}.get(rank, "other")  # type: ignore[return-value]
    if node.op == "placeholder":
        return "NCHW"
    if node.op == "call_module":
        module = captured.model.get_submodule(str(node.target))
        if isinstance(module, nn.Linear) or type(module).forward is nn.LayerNorm.forward:
            return "NHWC"
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm)):
            return "NCHW"
    order = _permutation(node)
    source = next((n for n in node.all_input_nodes if layouts.get(n.name) in ("NCHW", "NHWC")), None)
    if order == (0, 2, 3, 1):
        return "NHWC"
    if order == (0, 3, 1, 2):
        return "NCHW"
    if source is not None:
        return layouts[source.name]
    # Tokens folded back into an image: channels are where the tokens' channels went.
    tokens = next((specs[n.name] for n in node.all_input_nodes if layouts.get(n.name) == "NLC"), None)
    return "NHWC" if tokens is not None and tokens.shape[-1] == spec.shape[-1] else "NCHW"


def _is_volume(captured: Captured, node: fx.Node, layouts: Mapping[str, Layout]) -> bool:
    """Whether a value of five dimensions is a batch of volumes or clips, its channels first."""
    module = captured.module(node)
    if node.op == "placeholder" or isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)):
        return True
    turns = {"view", "reshape", "permute", "transpose", "unflatten", torch.permute, torch.transpose, torch.reshape}
    return node.target not in turns and any(layouts.get(p.name) == "NCDHW" for p in node.all_input_nodes)


def _permutation(node: fx.Node) -> tuple[int, ...] | None:
    if node.op == "call_module" or node.target not in ("permute", torch.permute):
        return None
    dims: tuple[Any, ...] = node.args[1:]
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = tuple(dims[0])
    return tuple(int(d) % 4 for d in dims) if len(dims) == 4 and all(isinstance(d, int) for d in dims) else None
