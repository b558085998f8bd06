"""Optimizers: fused where torch can, over the whole network or one for each local module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from localize.methods.mlaan.leaps import followed
from localize.runtime.local_graph import LocalGraphModule
from passes.errors import first_line

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
"""Optimizers that the command line and forecasts know by name."""

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)
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


def build_named(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Build an optimizer of :data:`OPTIMIZERS` over the parameters that need gradients.

    >>> build_named("sgd", [nn.Parameter(torch.zeros(2))], lr=0.5).defaults["nesterov"]
    True

    Args:
        name: Key of :data:`OPTIMIZERS`.
        parameters: Those without ``requires_grad`` are left out.
        lr: Learning rate.
        momentum: Momentum of SGD, which is Nesterov's; 0 for none. The others keep torch's betas.
        weight_decay: L2 penalty on every parameter; with AdamW decoupled decay.
        fused: See :func:`build_fused`.
    """
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    if name == "sgd":
        options |= {"momentum": momentum, "nesterov": momentum > 0}  # torch refuses Nesterov without momentum
    return build_fused(OPTIMIZERS[name], [p for p in parameters if p.requires_grad], fused, **options)


def build_fused(kind: type[Kind], parameters: Iterable[nn.Parameter], fused: bool, **options: Any) -> Kind:
    """Build an optimizer. If ``fused`` is asked for and torch has none, warn and use torch's default.

    Args:
        kind: Class of the optimizer.
        parameters: The parameters to train.
        fused: Whether one kernel updates all of them. Weights equal those of the default within rounding.
        options: Further arguments of the class.
    """
    trained = list(parameters)
    if fused:
        try:
            optimizer = kind(trained, **{"fused": True, **options})
        except (TypeError, RuntimeError) as error:  # the class has no such argument, or not for these devices and types
            warnings.warn(f"runtime: {kind.__name__} is not fused: {first_line(error)}", stacklevel=2)
            return kind(trained, **options)
        optimizer.register_step_pre_hook(_align)
        return optimizer
    return kind(trained, **options)


def _align(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Give gradients and state the memory layout of their parameters.

    A fused kernel walks through memory. Where gradients or state lie in another order than their parameter, because a
    runtime changed the layout of weights, it would silently mix up elements.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p).copy_(p.grad)
            state = optimizer.state.get(p, {})
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == p.shape and value.stride() != p.stride():
                    state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


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

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each optimizer, by module."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
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
