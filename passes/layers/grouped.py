"""Grouped layers, which :mod:`passes.split.split` puts into networks: each group of outputs reads its own inputs.

A convolution can be grouped by itself (``groups``). Linear layers and norms over channels cannot, and no layer can
where the channels that a group reads are not neighbours.
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
        bias: Whether the layer has a bias.
        device: Device of the weights.
        dtype: Type of the weights.
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
        """Run the layer as a grouped convolution over one position."""
        rows = input.reshape(-1, self.in_features, 1)
        return F.conv1d(rows, self.weight.unsqueeze(-1), self.bias, groups=self.groups).view(
            *input.shape[:-1], self.out_features
        )

    def extra_repr(self) -> str:
        """Return the sizes as text."""
        return f"{super().extra_repr()}, groups={self.groups}"


class GroupedLayerNorm(nn.LayerNorm):
    """A layer norm that normalizes each of G groups of channels by itself; weight and bias cover all channels.

    Args:
        channels: Number of channels, a multiple of ``groups``.
        groups: G.
        dim: Dimension of the channels in the input.
        eps: Number added to the variance.
        affine: Whether the norm has a weight.
        bias: Whether the norm also has a bias.
        device: Device of the weights.
        dtype: Type of the weights.
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
        """Normalize each group's channels to mean 0 and variance 1, then scale and shift; the shape stays."""
        x = input.movedim(self.dim, -1)
        apart = x.unflatten(-1, (self.groups, -1))
        x = F.layer_norm(apart, apart.shape[-1:], eps=self.eps).flatten(-2)
        if self.weight is not None:
            x = x * self.weight
        if self.bias is not None:
            x = x + self.bias
        return x.movedim(-1, self.dim)

    def extra_repr(self) -> str:
        """Return the sizes as text."""
        return f"{super().extra_repr()}, groups={self.groups}, dim={self.dim}"


class Gathered(nn.Module):
    """A selection of channels, then a grouped layer that reads them: group by group the channels that the group reads.

    A channel that several groups read is selected several times. This is needed after a concatenation, where each
    group's channels lie apart, and after a dense connection, where the previous module's channels lie among them.

    Args:
        layer: The layer.
        index: For each input channel of ``layer``, the channel of this module's input.
        dim: Dimension of the channels.
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
        """Return the layer's output for the selected channels."""
        result: torch.Tensor = self.layer(input.index_select(self.dim, self.index))
        return result

    def extra_repr(self) -> str:
        """Return the numbers of channels as text."""
        return f"{len(set(self.channels))} -> {len(self.channels)} channels, dim={self.dim}"
