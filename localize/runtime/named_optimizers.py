"""Optimizers by name, fused where torch can: one kernel then updates all parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from passes.errors import first_line

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
"""Optimizers that the command line and forecasts know by name."""

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


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
