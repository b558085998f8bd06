"""What every module of a localized model is called with: one step on tensors without values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from localize.export.python_opened import Given, Site
from localize.local_graph import LocalGraphModule
from passes.faked import device_of, faked
from passes.ir import Captured
from passes.shapes import quiet
from passes.untouched import same_randomness, set_mode, untouched


@dataclass(slots=True)
class Seen:
    """Arguments of modules, and values of the graph's nodes, of which tensors are fake."""

    modules: dict[int, Given] = field(default_factory=dict)
    """By identity of the module; of its first call."""
    values: dict[str, Any] = field(default_factory=dict)
    """By name of the node."""
    real: dict[int, torch.Tensor] = field(default_factory=dict)
    """The real tensor of each fake parameter or buffer, by identity of the fake."""

    def holding(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with its values."""
        return self.real.get(id(tensor), tensor)

    def site(self, node: fx.Node) -> Site:
        """A call in the primary network's graph."""
        return Site(
            (node.args, node.kwargs), lambda: fx.map_arg((node.args, node.kwargs), lambda n: self.values[n.name])
        )

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before a module runs."""
        self.modules.setdefault(id(module), (args, kwargs))


@contextlib.contextmanager
def seen(local: LocalGraphModule) -> Iterator[Seen]:
    """Runs a localized model in train mode without computing anything, and leaves it as it was.

    Inside, its parameters and buffers are fake, so that parts of it can be run with what they were called with.
    """
    found = Seen()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    device = device_of(local.primary)
    spec = local.made.context.network.shapes.input
    with untouched(local), same_randomness(), quiet(), faked(local, mode) as real, mode, torch.no_grad():
        found.real = real
        set_mode(local, True)
        for module in local.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(found.note, with_kwargs=True)
        x = torch.empty((max(2, spec.shape[0]), *spec.shape[1:]), dtype=spec.dtype, device=device)
        _run(local.made.context.network.captured, x, found)
        for module in local.local_modules:
            reads = [found.values[name] for name in module.outputs[: module.reads]]
            for network in (module.auxiliary, module.cascaded):
                if network is not None:
                    network(*reads)
        yield found


def _run(captured: Captured, x: torch.Tensor, found: Seen) -> None:
    """The primary network's graph, all values of which are kept."""
    found.values = values_of(captured.graph, captured.model, (x,), captured.constants)


def values_of(
    graph: fx.Graph, root: nn.Module, inputs: Sequence[Any], constants: Mapping[str, torch.Tensor] | None = None
) -> dict[str, Any]:
    """The value of each node of a graph, by name."""
    values: dict[str, Any] = {}
    given = iter(inputs)
    for node in graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n.name])
        if node.op == "placeholder":
            values[node.name] = next(given)
        elif node.op == "get_attr":
            path = str(node.target)
            owner, _, name = path.rpartition(".")
            own = constants is not None and path in constants
            values[node.name] = constants[path] if own else getattr(root.get_submodule(owner), name)  # type: ignore[index]
        elif node.op == "call_module":
            values[node.name] = root.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            values[node.name] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "call_function":
            function: Any = node.target
            values[node.name] = function(*args, **kwargs)
    return values
