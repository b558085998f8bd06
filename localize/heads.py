"""The end of an auxiliary network: what turns features into the prediction that a local loss is computed from.

A vector of logits comes from pooling and a linear layer, a map of logits from the linear layer at each position and
interpolation. :func:`build_head`, :func:`head_cost` and :func:`describe_head` choose by the :class:`Prediction`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from localize.dense import Resize, ToGrid, ToLayout, grid_of, pointwise_, resampling
from localize.prediction import Prediction
from passes.errors import MethodError
from passes.ir import TensorSpec
from passes.weights import Initializer, bare

_POOLED = {"NCHW": (2, 3), "NHWC": (1, 2), "NCDHW": (2, 3, 4), "NLC": (1,), "NC": ()}
"""Dimensions of the positions, by layout."""
_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


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


def build_head(spec: TensorSpec, prediction: Prediction, *, batch_norm: bool, draw: Initializer) -> nn.Sequential:
    """The head for a prediction.

    Args:
        spec: What the head reads.
        prediction: What it is to give.
        batch_norm: Whether to normalize what the classifier reads.
        draw: Source of weights.

    Raises:
        MethodError: No such head can stand behind ``spec``.
    """
    build = dense_head if prediction.kind == "dense" else linear_head
    return build(spec, prediction, batch_norm=batch_norm, draw=draw)


def linear_head(spec: TensorSpec, prediction: Prediction, *, batch_norm: bool, draw: Initializer) -> nn.Sequential:
    """Global average pool, batch norm if asked for, linear: from ``spec`` to (N, outputs).

    AugLocal (ICLR 2024), section 3.2: the classifier g of the primary network, a global average pool and a fully
    connected layer. Its released CIFAR code puts a BatchNorm1d before the linear layer of auxiliary networks with one
    hidden layer.

    Raises:
        MethodError: ``spec`` has a layout that cannot be pooled.
    """
    _check_vector(spec, prediction)
    dims = _POOLED[spec.layout]
    parts: dict[str, nn.Module] = {"pool": GlobalAveragePool(dims)} if dims else {}
    if batch_norm:
        parts["norm"] = nn.BatchNorm1d(spec.channels)
    parts["classifier"] = draw.plain_(bare(nn.Linear, spec.channels, prediction.outputs))
    return _sequence(parts)


def dense_head(spec: TensorSpec, prediction: Prediction, *, batch_norm: bool, draw: Initializer) -> nn.Sequential:
    """Batch norm if asked for, 1x1 convolution, interpolation: from ``spec`` to a map of logits of the output's size.

    Long, Shelhamer, Darrell: "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 4.1: a 1x1
    convolution scores the classes at each coarse position, and bilinear upsampling brings the scores to the resolution
    of the output. It has one trainable layer, as :func:`linear_head` has. Tokens and images with channels last are put
    in the form of images first, tokens that precede the patches (class token, registers) left out: Strudel et al.:
    "Segmenter", ICCV 2021, section 3.2, the linear decoder. Features without positions say the same everywhere.

    Raises:
        MethodError: ``spec`` holds no grid.
    """
    grid = grid_of(spec, prediction)
    parts: dict[str, nn.Module] = {} if grid.plain else {"grid": ToGrid(grid)}
    if batch_norm:
        parts["norm"] = _NORMS[len(grid.size)](spec.channels)
    classifier = bare(_CONVOLUTIONS[len(grid.size)], spec.channels, prediction.outputs, 1)
    parts["classifier"] = pointwise_(classifier, draw)
    if grid.size != prediction.size:
        parts["resize"] = Resize(prediction.size)
    if prediction.layout == "NHWC":
        parts["layout"] = ToLayout()
    return _sequence(parts)


def _sequence(parts: dict[str, nn.Module]) -> nn.Sequential:
    head = nn.Sequential()
    for name, part in parts.items():
        head.add_module(name, part)
    return head


def describe_head(spec: TensorSpec, prediction: Prediction, batch_norm: bool) -> str:
    """The head's layers in words.

    Raises:
        MethodError: No such head can stand behind ``spec``.
    """
    norm = ["batch_norm"] if batch_norm else []
    if prediction.kind == "dense":
        grid = grid_of(spec, prediction)
        parts = [*([] if grid.plain else ["grid"]), *norm]
        parts.append(f"conv{'x'.join('1' for _ in grid.size)}({spec.channels}, {prediction.outputs})")
        if grid.size != prediction.size:
            parts.append(f"{resampling(len(grid.size))}({'x'.join(map(str, prediction.size))})")
        return " > ".join(parts)
    _check_vector(spec, prediction)
    pool = [] if spec.layout == "NC" else ["pool"]
    return " > ".join([*pool, *norm, f"linear({spec.channels}, {prediction.outputs})"])


def head_cost(spec: TensorSpec, prediction: Prediction, batch_norm: bool) -> tuple[int, int]:
    """Parameters and multiply-accumulates of :func:`build_head`.

    Raises:
        MethodError: No such head can stand behind ``spec``.
    """
    positions = math.prod(grid_of(spec, prediction).size) if prediction.kind == "dense" else 1
    weights = spec.channels * prediction.outputs
    return weights + prediction.outputs + 2 * spec.channels * batch_norm, weights * positions


def _check_vector(spec: TensorSpec, prediction: Prediction) -> None:
    assert prediction.kind == "vector", f"there is no head for {prediction}"
    if spec.layout not in _POOLED:
        raise MethodError(f"a value of shape {spec} cannot be pooled for a local loss", remedy="Use method='bp'")
