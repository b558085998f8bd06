"""What every module of a localized model is called with: one step on tensors without values."""

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
    """What modules are called with, and what the graph's nodes give, of which tensors are fake.

    Most code never asks: the model runs when it does, once.
    """

    local: LocalGraphModule
    real: dict[int, torch.Tensor]
    """The real tensor of each fake parameter or buffer, by identity of the fake."""
    modules: dict[int, Given] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)
    _networks_ran: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """Values of the primary network's graph, by name of the node."""
        if not self._values:
            network = self.local.compiled.network
            spec, captured = network.shapes.input, network.captured
            shape = (max(2, spec.shape[0]), *spec.shape[1:])
            x = torch.empty(shape, dtype=spec.dtype, device=device_of(captured.model))
            self._values = Interpreter(captured.model, captured.constants).run_all(captured.graph, x)
        return self._values

    def given(self, module: nn.Module) -> Given:
        """The arguments of a module's first call.

        Raises:
            KeyError: It is not called.
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
        """The tensor with its values."""
        return self.real.get(id(tensor), tensor)

    def site(self, node: fx.Node) -> CallSite:
        """A call in the primary network's graph."""
        return CallSite((node.args, node.kwargs), lambda: arguments_of(node, lambda n: self.values[n.name]))

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before a module runs."""
        self.modules.setdefault(id(module), (args, kwargs))


@contextlib.contextmanager
def recorded_calls(local: LocalGraphModule) -> Iterator[RecordedCalls]:
    """Inside, parameters and buffers of a localized model are fake, and it can be run; it is left as it was."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with untouched(local), same_randomness(), quiet(), faked(local, mode) as real, mode, torch.no_grad():
        found = RecordedCalls(local, real)
        set_mode(local, True)
        for module in local.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(found.note, with_kwargs=True)
        yield found
