"""Auxiliary networks of GN-DGL: one for each group of neurons of a local module, with a loss of its own.

Patel, Eickenberg, Belilovsky: "Local Learning with Neuron Groups" (2023), sections 3.2 to 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from localize.methods.gn_dgl.options import Options
from localize.methods.networks.dgl_network import dgl_network
from localize.methods.networks.features import Features, features_of
from localize.methods.networks.linear import build_two_linear, describe_two_linear
from localize.methods.networks.local_loss import Batch, supervise
from localize.methods.networks.predsim_network import predsim_network
from localize.methods.networks.terms import diversity
from localize.plan.records import Auxiliary
from passes.common.initializer import Initializer
from passes.errors import InputError
from passes.ir import Network, TensorSpec
from passes.layers.plain_blocks import Plain, stack
from passes.split.channel_owners import OPEN, runs

Ranges = tuple[tuple[int, int], ...]
"""Channels, as first and one past the last."""


def describe_group(network: Network, options: Options, layer: int, width: int, outputs: int) -> Auxiliary:
    """Describe the auxiliary network of one group for the plan.

    Args:
        network: The primary network, its width split.
        options: GN-DGL's options.
        layer: Index of the local layer whose output the auxiliary network reads.
        width: Channels that it reads.
        outputs: Logits that it returns.
    """
    features = _narrowed(features_of(network, layer), width)
    if options.auxiliary == "dgl":
        return dgl_network(features).describe(outputs)
    if options.auxiliary == "predsim":
        return predsim_network(features).describe(outputs)
    described = describe_two_linear(_convolution(features), options.hidden, outputs)
    return replace(described, head=" > ".join([*features.words(), described.head]))


def build_group(
    network: Network,
    options: Options,
    layer: int,
    width: int,
    outputs: int,
    draw: Initializer,
    like: nn.Module | None,
) -> nn.Module:
    """Build the auxiliary network of one group.

    Args:
        network: The primary network, its width split.
        options: GN-DGL's options.
        layer: Index of the local layer whose output the auxiliary network reads.
        width: Channels that it reads.
        outputs: Logits that it returns.
        draw: Source of weights.
        like: A layer whose initializer the classifier gets; None for torch's.
    """
    features = _narrowed(features_of(network, layer), width)
    if options.auxiliary == "dgl":
        return dgl_network(features).build(outputs, draw, like)
    if options.auxiliary == "predsim":
        return predsim_network(features).build(outputs, draw, like)
    return build_two_linear(features, _convolution(features), options.hidden, outputs, draw, like)


def _convolution(features: Features) -> Plain:
    """Return a convolution to twice the channels at half the resolution; a linear layer if there are no positions."""
    return stack("conv3x3", features.spec, [2], 2 * features.spec.channels)[0]


def _narrowed(features: Features, channels: int) -> Features:
    shape = (features.spec.shape[0], channels, *features.spec.shape[2:])
    return replace(features, spec=replace(features.spec, shape=shape))


class GroupLosses(nn.Module):
    """The auxiliary networks of a module's groups, and the sum of their losses.

    The gradient of group i's loss stops at channels of other groups.

    Args:
        networks: The auxiliary network of each of several groups.
        groups: The channels of each group. Channels of no group are read by all networks.
        spec: Output of the module.
        stop_gradient: Whether a group's network reads the other groups' channels too, detached (section 3.3).
        weight: Weight of the diversity-promoting penalty (section 3.4); 0 leaves it out.
        temperature: Temperature of the softmax in the penalty.
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
        """Return the module's prediction (N, classes): logits whose softmax is the mean of the groups' softmaxes."""
        return mean_prediction(self.by_group(features))

    def by_group(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Return each group's logits."""
        return [network(self.read_by(i, features)) for i, network in enumerate(self.groups)]

    def read_by(self, group: int, features: torch.Tensor) -> torch.Tensor:
        """Return the channels that a group's network reads; other groups' channels are detached, or left out."""
        parts = []
        for start, stop, owner in self.pieces:
            part = features.narrow(self.dim, start, stop - start)
            if owner in (group, OPEN):
                parts.append(part)
            elif self.stop_gradient:
                parts.append(part.detach())
        return torch.cat(parts, self.dim)

    def supervise(self, batch: Batch, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prediction, and the sum of the groups' losses and the weighted penalty.

        Raises:
            InputError: The penalty is on, and the target does not hold class indices (N,).
        """
        each = [supervise(network, batch, self.read_by(i, features)) for i, network in enumerate(self.groups)]
        logits = [values for values, _ in each]
        total = torch.stack([loss for _, loss in each]).sum()
        if self.weight:
            total = total + self.weight * diversity(logits, _classes(batch), self.temperature)
        return mean_prediction(logits), total

    def extra_repr(self) -> str:
        """Return the settings of the loss."""
        return f"stop_gradient={self.stop_gradient}, diversity={self.weight:g}, temperature={self.temperature:g}"


def mean_prediction(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return logits (N, classes) whose softmax is the mean of the softmaxes of several."""
    each = torch.stack([values.log_softmax(1) for values in logits])
    return each.logsumexp(0) - math.log(len(logits))


def _classes(batch: Batch) -> torch.Tensor:
    """Return the target as class indices (N,).

    Raises:
        InputError: The target holds something else.
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
    """Return all channels in order, as runs of one owner: first, one past the last, group."""
    owner = [OPEN] * channels
    for group, ranges in enumerate(groups):
        for start, stop in ranges:
            owner[start:stop] = [group] * (stop - start)
    return runs(owner)
