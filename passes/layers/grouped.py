"""Layers whose groups of output channels each read input channels of their own: what :mod:`passes.split.split` puts in.

A convolution can do that by itself (``groups``); linear layers and norms over channels cannot, and no layer can where
the channels that a group reads do not stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class GroupedLinear(nn.Linear):
    """A block-diagonal linear layer: (..., C) -> (..., C'), group i of G reading the i-th C/G channels.

    Args:
        in_features: C, a multiple of ``groups``.
        out_features: C', a multiple of ``groups``.
        groups: G.
        bias: Whether there is one.
        device: Where weights are.
        dtype: Of the weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        assert in_features % groups == 0 and out_features % groups == 0
        super().__init__(in_features // groups, out_features, bias, device=device, dtype=dtype)
        self.in_features, self.groups = in_features, groups

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Runs it as a grouped convolution over one position."""
        rows = input.reshape(-1, self.in_features, 1)
        return F.conv1d(rows, self.weight.unsqueeze(-1), self.bias, groups=self.groups).view(
            *input.shape[:-1], self.out_features
        )

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, groups={self.groups}"


class GroupedLayerNorm(nn.LayerNorm):
    """A layer norm of each of G groups of channels by itself; weight and bias of all channels.

    Args:
        channels: Their number, a multiple of ``groups``.
        groups: G.
        dim: The channels' dimension in what it reads.
        eps: Added to the variance.
        affine: Whether there is a weight.
        bias: Whether there is a bias too.
        device: Where weights are.
        dtype: Of the weights.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        dim: int = -1,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        assert channels % groups == 0
        super().__init__(channels, eps, affine, bias, device, dtype)
        self.groups, self.dim = groups, dim

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The same shape, each group's channels with mean 0 and variance 1 before scale and shift."""
        x = input.movedim(self.dim, -1)
        apart = x.unflatten(-1, (self.groups, -1))
        x = F.layer_norm(apart, apart.shape[-1:], eps=self.eps).flatten(-2)
        if self.weight is not None:
            x = x * self.weight
        if self.bias is not None:
            x = x + self.bias
        return x.movedim(-1, self.dim)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, groups={self.groups}, dim={self.dim}"


class Gathered(nn.Module):
    """A grouped layer behind a selection of channels: what each of its groups reads, one group after the other.

    Channels that several groups read are selected several times.

    Args:
        layer: The layer.
        index: For each of its input channels, the channel of the input.
        dim: The channels' dimension.
    """

    index: torch.Tensor

    def __init__(self, layer: nn.Module, index: Sequence[int], dim: int) -> None:
        super().__init__()
        self.layer = layer
        self.dim = dim
        device = next(layer.parameters()).device
        self.register_buffer("index", torch.tensor(index, device=device))
        self.channels = tuple(index)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """What the layer gives."""
        result: torch.Tensor = self.layer(input.index_select(self.dim, self.index))
        return result

    def extra_repr(self) -> str:
        """How many channels."""
        return f"{len(set(self.channels))} -> {len(self.channels)} channels, dim={self.dim}"
