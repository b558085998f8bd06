"""Optimizers of a localized network: one over all of it, or one for each local module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from localize.methods.mlaan.leaps import followed
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.named_optimizers import Kind, build_fused

Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def build(kind: type[Kind], local: LocalGraphModule, **options: Any) -> Kind:
    """Build an optimizer over all parameters that need gradients, fused if ``local.runtime`` says so.

    Args:
        kind: Class of the optimizer, such as ``torch.optim.SGD``.
        local: The localized network, on the device that it is trained on.
        options: Further arguments of the class.
    """
    parameters = [p for p in local.parameters() if p.requires_grad]
    device = next((p.device.type for p in parameters), "cpu")
    return build_fused(kind, parameters, bool(local.runtime.on(device).runtime.fused), **options)


class ModuleOptimizers(Mapping[str, torch.optim.Optimizer]):
    """Optimizers by local module; made by :func:`per_module`.

    A mapping from a module's name, as in ``out.name``, to its optimizer. A module that owns no parameter has none
    (because its parameters are frozen, or because a later loss reaches them too); :meth:`step` does nothing for it.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self._optimizers = dict(optimizers)

    def __getitem__(self, name: str) -> torch.optim.Optimizer:
        return self._optimizers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizers)

    def __len__(self) -> int:
        return len(self._optimizers)

    def step(self, name: str) -> None:
        """Update the parameters that module ``name`` owns, and free their gradients. Call it after its backward."""
        optimizer = self._optimizers.get(name)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict[str, object]]:
        """Return the state of each optimizer, by module."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, object]]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            KeyError: A module's state is missing.
        """
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(dict(state[name]))


def per_module(local: LocalGraphModule, factory: Factory) -> ModuleOptimizers:
    """Build an optimizer for each local module, so that its gradients are freed before the next module runs.

    ::

        optimizers = per_module(local, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        for out in local.steps(x, y):
            out.loss.backward()
            optimizers.step(out.name)

    This saves little of the peak at large batches: gradients pile up towards the output, and the peak is at the input.
    Weights are bit for bit those of one optimizer over all parameters, if it updates each parameter by itself (SGD,
    Adam, ...).

    Args:
        local: A localized model.
        factory: Makes an optimizer of a list of parameters.
    """
    owned = owned_parameters(local)
    return ModuleOptimizers({name: factory(parameters) for name, parameters in owned.items() if parameters})


def owned_parameters(local: LocalGraphModule) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters by the local module after whose backward they may be updated.

    Each parameter is in one list: that of the last module whose loss reaches it (with cascades, several do). A copy
    that follows a later layer (:func:`localize.methods.mlaan.leaps.follow`) is in the list of that layer, since it is
    pulled towards the layer's updated weights.
    """
    names = [module.name for module in local.plan.modules]
    assert len(set(names)) == len(names), f"local modules share a name: {names}"
    parameters: dict[int, nn.Parameter] = {}
    last: dict[int, int] = {}
    for k in range(len(names)):
        for parameter in local.parameters_of(k):
            parameters[id(parameter)] = parameter
            last[id(parameter)] = k
    for copied, live in followed(local):
        if id(copied) in last and id(live) in last:
            last[id(copied)] = max(last[id(copied)], last[id(live)])
    owned: dict[str, list[nn.Parameter]] = {name: [] for name in names}
    for key, parameter in parameters.items():
        owned[names[last[key]]].append(parameter)
    return owned
