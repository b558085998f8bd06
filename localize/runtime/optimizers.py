"""Optimizers that update all parameters in one kernel, where torch has one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from localize.runtime.local_graph import LocalGraphModule
from passes.errors import first_line

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
"""Optimizers that have a name here."""

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def build(kind: type[Kind], local: LocalGraphModule, **options: Any) -> Kind:
    """An optimizer over all parameters that learn, fused if ``local.runtime`` says so.

    Args:
        kind: Class of the optimizer, such as ``torch.optim.SGD``.
        local: The localized network, on the device that it is to be trained on.
        options: What the class takes beside parameters.
    """
    parameters = [p for p in local.parameters() if p.requires_grad]
    device = next((p.device.type for p in parameters), "cpu")
    return made(kind, parameters, bool(local.runtime.on(device).runtime.fused), **options)


def made(kind: type[Kind], parameters: Iterable[torch.nn.Parameter], fused: bool, **options: Any) -> Kind:
    """The optimizer, fused if that is asked for and torch can; else it warns, and has torch's own default.

    Args:
        kind: Class of the optimizer.
        parameters: To be trained.
        fused: Whether one kernel is to update all of them. Weights are those of the default within rounding.
        options: What the class takes beside parameters.
    """
    found = list(parameters)
    if fused:
        try:
            optimizer = kind(found, **{"fused": True, **options})
        except (TypeError, RuntimeError) as error:  # no such argument; or not for these devices and types
            warnings.warn(f"runtime: {kind.__name__} is not fused: {first_line(error)}", stacklevel=2)
            return kind(found, **options)
        optimizer.register_step_pre_hook(_align)
        return optimizer
    return kind(found, **options)


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

    Args:
        name: Key of :data:`OPTIMIZERS`.
        parameters: Those without ``requires_grad`` are left out.
        lr: Learning rate.
        momentum: Momentum of SGD, which is Nesterov's; 0 for none. The others keep torch's betas.
        weight_decay: L2 penalty on every parameter; with AdamW decoupled decay.
        fused: See :func:`made`.
    """
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    if name == "sgd":
        options |= {"momentum": momentum, "nesterov": momentum > 0}  # torch refuses Nesterov without momentum
    return made(OPTIMIZERS[name], [p for p in parameters if p.requires_grad], fused, **options)


def _align(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Gradients and state in the layout of their parameters.

    A fused kernel walks through memory: what lies there in another order, since a runtime changed the layout of
    weights, it would mix up without a word.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p).copy_(p.grad)
            state = optimizer.state.get(p, {})
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == p.shape and value.stride() != p.stride():
                    state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
