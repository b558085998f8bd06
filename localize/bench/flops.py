"""Costs as the papers count them: fvcore's FLOPs, which are multiply-accumulates and a little more.

AugLocal's tables 7 and 11 were made with fvcore: multiply-accumulates of convolutions and linear layers, 2 for each
element that batch norm gives, 1 for each element that adaptive average pooling reads; all else is free, similarity
matrices and interpolation too.
:attr:`localize.Plan.macs` counts the first of these alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from localize.methods.mlaan.leaps import Leaps
from localize.methods.networks.local_loss import Term
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.predictions import in_eval_mode

aten = torch.ops.aten


class Flops(NamedTuple):
    """What one forward pass costs at batch 1."""

    macs: int
    """Multiply-accumulates of convolutions and linear layers."""
    total: int
    """fvcore's count: those, and batch norm and pooling."""


class FvcoreCount(TorchDispatchMode):
    """Counts what runs inside it at the level of ATen operators, at batch 1, as fvcore does."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.others = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs the operator and adds what it costs."""
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is aten.convolution:
            self.macs += out[0, 0].numel() * args[1].numel()
        elif packet in (aten.addmm, aten.mm):
            self.macs += args[-2].shape[0] * args[-1].numel()
        elif "batch_norm" in func.__name__:
            self.others += 2 * args[0].numel()
        elif packet in (aten.mean, aten._adaptive_avg_pool2d):
            self.others += args[0].numel()
        return out


def count_flops(module: nn.Module, shape: Sequence[int]) -> Flops:
    """Cost of one eval-mode forward pass of a module that lies on the meta device; its mode is as before afterwards.

    Args:
        module: A network of convolutions, linear layers, batch norms and adaptive average pooling, one tensor in.
        shape: Of its input, without batch.
    """
    with in_eval_mode(module), torch.device("meta"), FvcoreCount() as counter:
        module(torch.empty(1, *shape))
    return Flops(counter.macs, counter.macs + counter.others)


def step_flops(local: LocalGraphModule, terms: bool = True) -> Flops:
    """Forward cost of the primary network and of all auxiliary networks, as emitted, on the meta device.

    What cascades run once more is not in it (:attr:`localize.Plan.repeated_macs`).

    Networks that print alike behind inputs of one shape, weights aside, are counted once.

    Args:
        local: A localized model on the meta device.
        terms: Whether the networks of further loss terms count too. AugLocal's tables leave them out.
    """
    plan = local.plan
    known: dict[tuple[Any, ...], Flops] = {}
    counts = [count_flops(local.primary, plan.input.shape[1:])]
    for planned, module in zip(plan.modules, local.local_modules, strict=True):
        cascaded = planned.cascade.auxiliary if planned.cascade else None
        for described, own in ((planned.auxiliary, module.auxiliary), (cascaded, module.cascaded)):
            if described is None or own is None:
                continue
            shape = plan.layers[planned.layers[-1]].output.shape[1:]
            further = [part.network for part in own.modules() if isinstance(part, Term)] if terms else []
            behind = _behind_leaps(own, shape) if further else shape
            for network, read in ((own, shape), *((each, behind) for each in further)):
                key = (read, described.blocks, str(network))
                if key not in known:
                    known[key] = count_flops(network, read)
                counts.append(known[key])
    return Flops(sum(count.macs for count in counts), sum(count.total for count in counts))


def _behind_leaps(network: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape, without batch, of what further terms read."""
    if not isinstance(network, Leaps):
        return tuple(shape)
    with torch.device("meta"), torch.no_grad():
        return tuple(network.blocks(torch.empty(2, *shape)).shape[1:])
