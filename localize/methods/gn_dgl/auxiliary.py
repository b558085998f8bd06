"""Auxiliary networks of GN-DGL: one for each group of neurons of a local module, with a loss of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from localize.methods import dgl, predsim
from localize.methods.base import Context
from localize.methods.gn_dgl.diversity import diversity
from localize.methods.gn_dgl.options import Options
from localize.methods.layerwise import Features, build_two_linear, describe_two_linear, features_of
from localize.methods.networks.local_loss import Batch, supervise
from localize.plan.modules import Auxiliary
from passes.common.initializer import Initializer
from passes.errors import InputError
from passes.ir import TensorSpec
from passes.layers.plain_blocks import Plain, stack
from passes.split.channel_owners import OPEN, runs

Ranges = tuple[tuple[int, int], ...]
"""Channels, as first and one past the last."""


def describe(context: Context, options: Options, layer: int, width: int) -> Auxiliary:
    """The auxiliary network of one group, in the plan.

    Args:
        context: What to plan on.
        options: The options.
        layer: Index of the local layer whose output it reads.
        width: Channels that it reads.
    """
    features, outputs = _narrowed(features_of(context, layer), width), context.prediction.outputs
    if options.auxiliary == "dgl":
        return dgl.describe(dgl.network_behind(features, dgl.Options()), outputs)
    if options.auxiliary == "predsim":
        return predsim.network_behind(features, predsim.Options()).describe(predsim.Options(), outputs)
    found = describe_two_linear(_convolution(features), options.hidden, outputs)
    return replace(found, head=" > ".join([*features.words(), found.head]))


def build_one(context: Context, options: Options, layer: int, width: int, draw: Initializer) -> nn.Module:
    """The auxiliary network of one group; arguments as for :func:`describe`."""
    features = _narrowed(features_of(context, layer), width)
    if options.auxiliary == "dgl":
        return dgl.build_network(context, dgl.network_behind(features, dgl.Options()), draw)
    if options.auxiliary == "predsim":
        network = predsim.network_behind(features, predsim.Options())
        return predsim.build_network(context, network, predsim.Options(), draw)
    return build_two_linear(context, features, _convolution(features), options.hidden, draw)


def _convolution(features: Features) -> Plain:
    """To twice the channels at half the resolution; a linear layer where there are no positions."""
    return stack("conv3x3", features.spec, [2], 2 * features.spec.channels)[0]


def _narrowed(features: Features, channels: int) -> Features:
    shape = (features.spec.shape[0], channels, *features.spec.shape[2:])
    return replace(features, spec=replace(features.spec, shape=shape))


class GroupLosses(nn.Module):
    """The auxiliary networks of a module's groups, and the sum of their losses.

    The gradient of group i's loss stops at channels that are another group's.

    Args:
        networks: One for each of several groups.
        groups: For each group the channels that are its own; those that are nobody's are read by all.
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
        parts = []
        for start, stop, owner in self.pieces:
            part = features.narrow(self.dim, start, stop - start)
            if owner in (group, OPEN):
                parts.append(part)
            elif self.stop_gradient:
                parts.append(part.detach())
        return torch.cat(parts, self.dim)

    def supervise(self, batch: Batch, features: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Prediction, and the sum of the groups' losses and the weighted penalty.

        Raises:
            InputError: The penalty needs class indices, and the target is something else.
        """
        found = [supervise(network, batch, self.read_by(i, features)) for i, network in enumerate(self.groups)]
        logits = [values for values, _ in found]
        total = torch.stack([loss for _, loss in found]).sum()
        if self.weight:
            total = total + self.weight * diversity(logits, _classes(batch), self.temperature)
        return together(logits), total

    def extra_repr(self) -> str:
        """What is not in the networks."""
        return f"stop_gradient={self.stop_gradient}, diversity={self.weight:g}, temperature={self.temperature:g}"


def together(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits whose softmax is the mean of the softmaxes of several."""
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
    """All channels in order, as first, one past the last, and group."""
    owner = [OPEN] * channels
    for group, ranges in enumerate(groups):
        for start, stop in ranges:
            owner[start:stop] = [group] * (stop - start)
    return runs(owner)
