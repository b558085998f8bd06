"""Auxiliary networks of GN-DGL: one for each group of neurons of a local module, with a loss of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from localize.diversity import diversity
from localize.pooling import build_pool, describe_pool
from localize.records import AuxiliaryBlock
from localize.supervision import Batch, supervise
from passes.errors import InputError
from passes.ir import TensorSpec
from passes.plain import Plain, build_plain, stack
from passes.weights import Initializer, bare

Ranges = tuple[tuple[int, int], ...]
"""Channels, as first and one past the last."""


@dataclass(frozen=True, slots=True)
class Network:
    """The auxiliary network of one group.

    Convolution of stride 2 to twice the channels, norm, ReLU; pooling; two linear layers with ReLU between. Where
    channels come last, the convolution is a linear layer.
    """

    spec: TensorSpec
    """What it reads."""
    hidden: int
    outputs: int

    @property
    def block(self) -> Plain:
        """The convolution."""
        return stack("conv3x3", self.spec, [2], 2 * self.spec.channels)[0]

    @property
    def cost(self) -> tuple[int, int]:
        """Parameters, and multiply-accumulates at batch 1."""
        block = self.block
        linear = block.out_channels * self.hidden + self.hidden * self.outputs
        return block.params + linear + self.hidden + self.outputs, block.macs + linear

    @property
    def blocks(self) -> tuple[AuxiliaryBlock, ...]:
        """The convolution, for the plan."""
        block = self.block
        width = self.spec.channels
        return (AuxiliaryBlock(None, width, block.out_channels, block.stride, False, None, block.kind),)

    @property
    def head(self) -> str:
        """What follows it, in words."""
        block = self.block
        linear = [f"linear({block.out_channels}, {self.hidden})", "relu", f"linear({self.hidden}, {self.outputs})"]
        return " > ".join([*describe_pool(block.output, "average"), *linear])

    def build(self, draw: Initializer, like: nn.Module | None) -> nn.Sequential:
        """The module, from (N, ...) of ``spec`` to (N, outputs).

        Args:
            draw: Source of weights.
            like: The primary network's output layer, whose initializer the classifier has; None for torch's.
        """
        block = self.block
        network = nn.Sequential()
        network.add_module("block", build_plain(block, draw))
        pool = build_pool(block.output, "average")
        if pool is not None:
            network.add_module("pool", pool)
        network.add_module("hidden", draw.plain_(bare(nn.Linear, block.out_channels, self.hidden)))
        network.add_module("relu", nn.ReLU())
        classifier = bare(nn.Linear, self.hidden, self.outputs)
        if not draw.imitate_(classifier, like):
            draw.plain_(classifier)
        network.add_module("classifier", classifier)
        return network


def narrowed(spec: TensorSpec, channels: int) -> TensorSpec:
    """The same with another number of channels."""
    shape = list(spec.shape)
    shape[spec.channel_dim] = channels
    return replace(spec, shape=tuple(shape))


class GroupLosses(nn.Module):
    """The auxiliary networks of a module's groups, and the sum of their losses.

    The gradient of group i's loss stops at channels that are another group's.

    Args:
        networks: One for each group.
        groups: For each group the channels that are its own; those that are nobody's are read by all. None for one
            group, to which all belong.
        spec: What the module gives.
        stop_gradient: Whether a group's network reads the other groups' channels too, detached.
        weight: Of the diversity-promoting penalty; 0 leaves it out.
        temperature: Of its softmax.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        groups: Sequence[Ranges],
        spec: TensorSpec,
        stop_gradient: bool,
        weight: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.groups = nn.ModuleList(networks)
        self.stop_gradient, self.weight, self.temperature = stop_gradient, weight, temperature
        self.dim = spec.channel_dim
        self.ranges = tuple(groups)
        self.pieces = _pieces(groups, spec.channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The module's prediction, (N, classes): logits whose softmax is the mean of the groups' softmaxes."""
        return together(self.by_group(features))

    def by_group(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Each group's logits."""
        return [network(self.read_by(i, features)) for i, network in enumerate(self.groups)]

    def read_by(self, group: int, features: torch.Tensor) -> torch.Tensor:
        """What a group's network reads."""
        if len(self.groups) == 1:
            return features
        parts = []
        for start, stop, owner in self.pieces:
            part = features.narrow(self.dim, start, stop - start)
            if owner in (group, -1):
                parts.append(part)
            elif self.stop_gradient:
                parts.append(part.detach())
        return torch.cat(parts, self.dim)

    def supervise(self, batch: Batch, features: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Prediction, and the sum of the groups' losses and the weighted penalty.

        Raises:
            InputError: The penalty needs class indices, and the target is something else.
        """
        if len(self.groups) == 1:
            return supervise(self.groups[0], batch, features)
        logits = self.by_group(features)
        total = batch.loss(logits[0])
        for values in logits[1:]:
            total = total + batch.loss(values)
        if self.weight:
            total = total + self.weight * diversity(logits, _classes(batch), self.temperature)
        return together(logits), total

    def extra_repr(self) -> str:
        """What is not in the networks."""
        return f"stop_gradient={self.stop_gradient}, diversity={self.weight:g}, temperature={self.temperature:g}"


def together(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits whose softmax is the mean of the softmaxes of several; those of one as they are."""
    if len(logits) == 1:
        return logits[0]
    each = torch.stack([values.log_softmax(1) for values in logits])
    return each.logsumexp(0) - math.log(len(logits))


def _classes(batch: Batch) -> torch.Tensor:
    """The target as class indices.

    Raises:
        InputError: It is something else.
    """
    y = batch.y
    if not isinstance(y, torch.Tensor) or y.ndim != 1 or y.is_floating_point():
        got = f"shape {tuple(y.shape)}, {str(y.dtype).removeprefix('torch.')}" if isinstance(y, torch.Tensor) else y
        raise InputError(
            f"the diversity penalty needs class indices (N,) as target; it is {got}",
            where=batch.name,
            why="it leaves out the true class of each sample",
            remedy="Give localize() diversity=0 for other targets",
        )
    return y


def _pieces(groups: Sequence[Ranges], channels: int) -> tuple[tuple[int, int, int], ...]:
    """All channels in order, as first, one past the last, and group; -1 where they are nobody's."""
    owner = [-1] * channels
    for group, ranges in enumerate(groups):
        for start, stop in ranges:
            owner[start:stop] = [group] * (stop - start)
    starts = [i for i in range(channels) if i == 0 or owner[i] != owner[i - 1]]
    return tuple((a, b, owner[a]) for a, b in zip(starts, [*starts[1:], channels], strict=True))
