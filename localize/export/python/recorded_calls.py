"""Record the arguments of each module of a localized model in one step on fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from localize.export.python.opened_code import CallSite, Given
from localize.runtime.local_graph import LocalGraphModule
from passes.common.fake_tensors import device_of, faked, quiet
from passes.common.interpreter import Interpreter, arguments_of
from passes.common.restore import same_randomness, set_mode, untouched


@dataclass(slots=True)
class RecordedCalls:
    """Arguments of modules, and values of the nodes of the graph; their tensors are fake.

    The model runs once, when the first of them is needed. Most models are written without.
    """

    local: LocalGraphModule
    """The localized model."""
    real: dict[int, torch.Tensor]
    """Real tensor of each fake parameter or buffer, by the identity of the fake."""
    modules: dict[int, Given] = field(default_factory=dict)
    """Arguments of the first call of each module that ran, by the identity of the module."""
    _values: dict[str, Any] = field(default_factory=dict)
    _networks_ran: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """Values of the nodes of the primary network's graph, by name."""
        if not self._values:
            network = self.local.compiled.network
            spec, captured = network.shapes.input, network.captured
            shape = (max(2, spec.shape[0]), *spec.shape[1:])
            x = torch.empty(shape, dtype=spec.dtype, device=device_of(captured.model))
            self._values = Interpreter(captured.model, captured.constants).run_all(captured.graph, x)
        return self._values

    def given(self, module: nn.Module) -> Given:
        """Return the arguments of the first call of a module.

        Raises:
            KeyError: The module is not called in a step.
        """
        if id(module) not in self.modules and not self._networks_ran:
            self._networks_ran = True
            for one in self.local.local_modules:
                reads = [self.values[name] for name in one.outputs[: one.reads]]
                for network in (one.auxiliary, one.cascaded):
                    if network is not None:
                        network(*reads)
        return self.modules[id(module)]

    def holding(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor with its values, for a fake one."""
        return self.real.get(id(tensor), tensor)

    def site(self, node: fx.Node) -> CallSite:
        """Return the call of a node of the primary network's graph."""
        return CallSite((node.args, node.kwargs), lambda: arguments_of(node, lambda n: self.values[n.name]))

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments of the first call of a module; a forward pre-hook."""
        self.modules.setdefault(id(module), (args, kwargs))


@contextlib.contextmanager
def recorded_calls(local: LocalGraphModule) -> Iterator[RecordedCalls]:
    """Make parameters and buffers of a localized model fake for the time of the context, and record calls on demand."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with untouched(local), same_randomness(), quiet(), faked(local, mode) as real, mode, torch.no_grad():
        calls = RecordedCalls(local, real)
        set_mode(local, True)
        for module in local.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(calls.note, with_kwargs=True)
        yield calls
