"""Two counts of multiply-accumulates that the plan does not make: as the papers count, and of a whole training step.

There are three counters in all, because they answer different questions:

- ``passes.shapes`` counts the convolutions and linear layers of one forward pass at batch 1, from shapes alone and
  before any code exists: :attr:`localize.Plan.macs`, by which depths are chosen and modules are balanced.
- :func:`step_flops` counts one forward pass of the networks as they were built, the way fvcore does. AugLocal's tables
  7 and 11 were made with fvcore: multiply-accumulates of convolutions and linear layers, 2 for each element that batch
  norm gives, 1 for each element that adaptive average pooling reads. All else is free, similarity matrices and
  interpolation too. A comparison with the papers must repeat these choices.
- :func:`step_macs` counts forward and backward as they run, with torch's own counter, so that recomputed activations
  and the layers that cascades run twice count as often as they run. A bound on step time needs this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from localize.memory.peak import Step, train_step
from localize.memory.replicas import fake_copy
from localize.methods.mlaan.leaps import Leaps
from localize.methods.networks.local_loss import Term
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.predictions import in_eval_mode

aten = torch.ops.aten

SAMPLES = 2
"""Samples of the step that :func:`step_macs` counts: batch norm refuses a single value per channel."""
FLOPS_PER_MAC = 2


def step_macs(
    module: nn.Module,
    *,
    image_shape: tuple[int, ...] = (3, 32, 32),
    label_shape: tuple[int, ...] = (),
    step: Step | None = None,
) -> int:
    """Count the multiply-accumulates of forward and backward of one sample, on fake tensors.

    Convolutions, matrix products and attention count, at the level of ATen operators. Gradients that nobody asks for
    (of the images, of a cut) are not computed, and so do not count.

    Args:
        module: A localized model, or a plain one.
        image_shape: Shape of one image, C x H x W.
        label_shape: Shape of one label: () for a class.
        step: Forward and backward of a batch; by default :func:`~localize.memory.peak.train_step`.
    """
    with fake_copy(module) as replica, torch.enable_grad(), FlopCounterMode(display=False) as counter:
        replica.train()
        images = torch.empty(SAMPLES, *image_shape)
        labels = torch.zeros((SAMPLES, *label_shape), dtype=torch.int64)
        (step or train_step)(replica, images, labels)
    return int(counter.get_total_flops()) // (FLOPS_PER_MAC * SAMPLES)


class Flops(NamedTuple):
    """The cost of one forward pass at batch 1."""

    macs: int
    """Multiply-accumulates of convolutions and linear layers."""
    total: int
    """fvcore's count: the multiply-accumulates, plus its figures for batch norm and pooling."""


class FvcoreCount(TorchDispatchMode):
    """Count the ATen operators that run inside the ``with`` block at batch 1, as fvcore does.

    Attributes:
        macs: Multiply-accumulates of convolutions and linear layers so far.
        others: Operations of batch norm and average pooling so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.others = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """Run the operator and add its cost."""
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
    """Count the cost of one eval-mode forward pass of a module; its mode is the same afterwards.

    Args:
        module: A network on the meta device, from one tensor: convolutions, linear layers, batch norms and adaptive
            average pooling.
        shape: Shape of its input, without the batch.
    """
    with in_eval_mode(module), torch.device("meta"), FvcoreCount() as counter:
        module(torch.empty(1, *shape))
    return Flops(counter.macs, counter.macs + counter.others)


def step_flops(local: LocalGraphModule, terms: bool = True) -> Flops:
    """Count the forward cost of the primary network and of all auxiliary networks, as they were built.

    Layers that cascades run a second time count once; :attr:`localize.Plan.repeated_macs` has the second run.

    Args:
        local: A localized model on the meta device.
        terms: Whether the networks of further loss terms count too. AugLocal's tables leave them out.
    """
    plan = local.plan
    # Most auxiliary networks of a deep model are alike: those with equal blocks, text and input are counted once.
    known: dict[tuple[object, ...], Flops] = {}
    counts = [count_flops(local.primary, plan.input.shape[1:])]
    for planned, module in zip(plan.modules, local.local_modules, strict=True):
        cascaded = planned.cascade.auxiliary if planned.cascade else None
        for described, own in ((planned.auxiliary, module.auxiliary), (cascaded, module.cascaded)):
            if described is None or own is None:
                continue
            shape = plan.layers[planned.layers[-1]].output.shape[1:]
            further = [part.network for part in own.modules() if isinstance(part, Term)] if terms else []
            after_blocks = _shape_after_leaps(own, shape) if further else shape
            for network, read in ((own, shape), *((each, after_blocks) for each in further)):
                key = (read, described.blocks, str(network))
                if key not in known:
                    known[key] = count_flops(network, read)
                counts.append(known[key])
    return Flops(sum(count.macs for count in counts), sum(count.total for count in counts))


def _shape_after_leaps(network: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape, without the batch, of the tensor that further loss terms read."""
    if not isinstance(network, Leaps):
        return tuple(shape)
    with torch.device("meta"), torch.no_grad():
        features: Tensor = network.blocks(torch.empty(2, *shape))
    return tuple(features.shape[1:])
