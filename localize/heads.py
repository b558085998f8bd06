"""Auxiliary networks from a TensorSpec: pooling, then what turns features into the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from passes.errors import MethodError
from passes.ir import TensorSpec
from passes.weights import Initializer, bare


class GlobalAveragePool(nn.Module):
    """Mean over all positions of images or tokens: (N, C, H, W), (N, H, W, C) or (N, T, C) -> (N, C)."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Averages over the position dimensions."""
        return x.mean(self.dims)

    def extra_repr(self) -> str:
        """The dimensions averaged over."""
        return f"dims={self.dims}"


def linear_head(spec: TensorSpec, outputs: int, *, batch_norm: bool, draw: Initializer) -> nn.Sequential:
    """Global average pool, batch norm if asked for, linear.

    AugLocal (ICLR 2024), section 3.2: the classifier g of the primary network, a global average pool and a fully
    connected layer. Its released CIFAR code puts a BatchNorm1d before the linear layer of auxiliary networks with one
    hidden layer.

    Args:
        spec: What the head reads.
        outputs: Number of classes.
        batch_norm: Whether to normalize the pooled features.
        draw: Source of weights.

    Returns:
        A module from ``spec`` to (N, outputs).

    Raises:
        MethodError: ``spec`` has a layout that cannot be pooled.
    """
    dims = {"NCHW": (2, 3), "NHWC": (1, 2), "NCDHW": (2, 3, 4), "NLC": (1,), "NC": ()}.get(spec.layout)
    if dims is None:
        raise MethodError(f"a value of shape {spec} cannot be pooled for a local loss", remedy="Use method='bp'")
    parts: list[tuple[str, nn.Module]] = [("pool", GlobalAveragePool(dims))] if dims else []
    if batch_norm:
        parts.append(("norm", nn.BatchNorm1d(spec.channels)))
    parts.append(("classifier", draw.plain_(bare(nn.Linear, spec.channels, outputs))))
    head = nn.Sequential()
    for name, part in parts:
        head.add_module(name, part)
    return head


def describe_head(spec: TensorSpec, outputs: int, batch_norm: bool) -> str:
    """The head's layers in words."""
    parts = [] if spec.layout == "NC" else ["pool"]
    parts += ["batch_norm"] if batch_norm else []
    return " > ".join([*parts, f"linear({spec.channels}, {outputs})"])


def head_cost(spec: TensorSpec, outputs: int, batch_norm: bool) -> tuple[int, int]:
    """Parameters and multiply-accumulates of :func:`linear_head`."""
    weights = spec.channels * outputs
    return weights + outputs + 2 * spec.channels * batch_norm, weights
