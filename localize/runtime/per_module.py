"""One optimizer a local module: its parameters are updated, and their gradients freed, right after its own backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from localize.methods.mlaan.leaps import followed
from localize.runtime.local_graph import LocalGraphModule

Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class ModuleOptimizers(Mapping[str, torch.optim.Optimizer]):
    """Optimizers by local module; made by :func:`per_module`.

    A mapping from a module's name, as ``out.name`` has it, to its optimizer. Modules that own no parameter (all of
    theirs are frozen, or a later loss reaches them too) have none; :meth:`step` leaves them alone.
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
        """Updates what module ``name`` owns, and frees its gradients. To be called after the module's backward."""
        optimizer = self._optimizers.get(name)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """State of each optimizer, by module."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Reads what :meth:`state_dict` gave.

        Raises:
            KeyError: A module's state is missing.
        """
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(dict(state[name]))


def per_module(local: LocalGraphModule, factory: Factory) -> ModuleOptimizers:
    """An optimizer for each local module, so that its gradients are freed before the next module runs.

    ::

        optimizers = per_module(local, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        for out in local.steps(x, y):
            out.loss.backward()
            optimizers.step(out.name)

    Weights are those of one optimizer over all parameters, bit for bit, where each parameter is updated by itself
    (SGD, Adam, ...): see :func:`owned_parameters`.

    Args:
        local: A localized model.
        factory: From parameters to an optimizer.
    """
    owned = owned_parameters(local)
    return ModuleOptimizers({name: factory(parameters) for name, parameters in owned.items() if parameters})


def owned_parameters(local: LocalGraphModule) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by the local module after whose backward they may be updated. Each is in one list.

    That is the last module whose loss reaches it: with cascades several do. A copy that follows a later layer
    (:func:`localize.methods.mlaan.leaps.follow`) goes with that layer, since it is pulled towards what the layer has
    become.
    """
    names = [module.name for module in local.plan.modules]
    assert len(set(names)) == len(names), f"local modules share a name: {names}"
    parameters: dict[int, nn.Parameter] = {}
    last: dict[int, int] = {}
    for k in range(len(names)):
        for parameter in local.parameters_of(k):
            parameters[id(parameter)] = parameter
            last[id(parameter)] = k
    for told, live in followed(local):
        if id(told) in last and id(live) in last:
            last[id(told)] = max(last[id(told)], last[id(live)])
    owned: dict[str, list[nn.Parameter]] = {name: [] for name in names}
    for key, parameter in parameters.items():
        owned[names[last[key]]].append(parameter)
    return owned
