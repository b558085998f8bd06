"""Merge several tensors in front of one auxiliary network, where a cut is several tensors wide.

A module of a densely connected network may compute tensors that its newest one does not depend on. Their parameters
would learn nothing from a loss on the newest tensor alone, so each is adapted to its shape and added to it. Tensors
that only pass through the module are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from localize.methods.networks.local_loss import Batch, supervise
from localize.plan.records import Auxiliary
from passes.common.initializer import Initializer, bare
from passes.ir import Layout, TensorSpec
from passes.layers.adapters import Projection, build_projection


class ToShapeOf(nn.Module):
    """Adapt a tensor to another of the same layout: first its channels, then its resolution by average pooling."""

    def __init__(self, channels: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.channels = channels
        self.layout = layout

    def forward(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return ``value`` with the channels and the resolution of ``like``."""
        value = self.channels(value)
        if value.shape == like.shape:
            return value
        if self.layout == "NCHW":
            return F.adaptive_avg_pool2d(value, (like.shape[2], like.shape[3]))
        if self.layout == "NHWC":
            return F.adaptive_avg_pool2d(value.permute(0, 3, 1, 2), (like.shape[1], like.shape[2])).permute(0, 2, 3, 1)
        return F.adaptive_avg_pool1d(value.transpose(1, 2), like.shape[1]).transpose(1, 2)

    def extra_repr(self) -> str:
        """Return the layout."""
        return self.layout


class ToEveryPosition(nn.Module):
    """Adapt a tensor to one of another layout: project its mean over positions, to be added at every position."""

    def __init__(self, value: TensorSpec, like: TensorSpec, draw: Initializer) -> None:
        super().__init__()
        self.source, self.target = value.channel_dim, like.channel_dim
        self.channels = draw.plain_(bare(nn.Linear, value.channels, like.channels))

    def forward(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return a tensor that broadcasts over ``like``."""
        positions = [i for i in range(1, value.ndim) if i != self.source % value.ndim]
        pooled = value.mean(positions) if positions else value
        shape = [1] * like.ndim
        shape[0], shape[self.target] = like.shape[0], -1
        result: torch.Tensor = self.channels(pooled).view(shape)
        return result


class Merged(nn.Module):
    """An auxiliary network that reads several tensors.

    Args:
        like: Form of the newest tensor.
        others: Forms of the other tensors.
        network: The auxiliary network, which reads the newest tensor's form.
        draw: Source of the adapters' weights.
    """

    def __init__(self, like: TensorSpec, others: Sequence[TensorSpec], network: nn.Module, draw: Initializer) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapter(value, like, draw) for value in others)
        self.network = network

    def forward(self, newest: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Merge the tensors, and run the auxiliary network on the result."""
        result: torch.Tensor = self.network(self.merge(newest, *others))
        return result

    def supervise(self, batch: Batch, newest: torch.Tensor, *others: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return prediction and local loss."""
        return supervise(self.network, batch, self.merge(newest, *others))

    def merge(self, newest: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Return the sum of the newest tensor and the others, adapted."""
        merged = newest
        for adapt, value in zip(self.adapters, others, strict=True):
            merged = merged + adapt(value, newest)
        return merged


def adapter(value: TensorSpec, like: TensorSpec, draw: Initializer) -> nn.Module:
    """Build the module that adapts ``value`` to ``like``: 1x1 convolution or linear layer + norm, and pooling."""
    if not _alike(value, like):
        return ToEveryPosition(value, like, draw)
    return ToShapeOf(build_projection(Projection(value.channels, like.channels, 1, like.layout), draw), like.layout)


def adapter_cost(value: TensorSpec, like: TensorSpec) -> tuple[int, int]:
    """Return parameters and multiply-accumulates of :func:`adapter`."""
    weights = value.channels * like.channels
    if not _alike(value, like):
        return weights + like.channels, weights
    positions = 1
    for size in value.spatial:
        positions *= size
    return weights + 2 * like.channels, weights * positions


def with_adapters(auxiliary: Auxiliary, like: TensorSpec, others: Sequence[TensorSpec]) -> Auxiliary:
    """Return the plan of an auxiliary network that reads the other tensors too."""
    costs = [adapter_cost(other, like) for other in others]
    return replace(
        auxiliary,
        params=auxiliary.params + sum(params for params, _ in costs),
        macs=auxiliary.macs + sum(macs for _, macs in costs),
        merged=tuple(describe_adapter(other, like) for other in others),
    )


def describe_adapter(value: TensorSpec, like: TensorSpec) -> str:
    """Describe the adapter in words."""
    if not _alike(value, like):
        return f"{value} mean > linear"
    return f"{value} {'conv1x1' if like.layout == 'NCHW' else 'linear'}+norm"


def _alike(value: TensorSpec, like: TensorSpec) -> bool:
    return value.layout == like.layout and value.layout in ("NCHW", "NHWC", "NLC")
