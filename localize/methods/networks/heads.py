"""Heads: the end of an auxiliary network, which turns features into the prediction of a local loss.

A vector of logits comes from pooling and a linear layer, a map of logits from the linear layer at each position and
interpolation. :func:`build_head`, :func:`head_cost` and :func:`describe_head` choose by the :class:`Prediction`.
"""

from __future__ import annotations

import math

from torch import nn

from localize.methods.networks.dense import Resize, ToGrid, grid_of, pointwise_, resampling
from localize.methods.networks.pooling import Pooling, build_pool, describe_pool, pool_cost
from localize.plan.prediction import Prediction
from passes.common.initializer import Initializer, bare
from passes.ir import TensorSpec
from passes.layers.adapters import ToLayout

_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


def build_head(
    spec: TensorSpec,
    prediction: Prediction,
    *,
    batch_norm: bool,
    draw: Initializer,
    layer_norm: bool = False,
    pool: Pooling = "average",
    like: nn.Module | None = None,
) -> nn.Sequential:
    """Build the head for a prediction: from ``spec`` to a vector or a map of logits.

    Args:
        spec: Form of the features that the head reads.
        prediction: Form of the logits that it returns.
        batch_norm: Whether the classifier's input is normalized, each channel over the batch.
        layer_norm: Whether the classifier's input is normalized, each sample over its channels; ignored for maps.
        draw: Source of weights.
        pool: Pooling of positions to a vector; ignored for maps.
        like: A layer whose initializer the classifier gets, such as the primary network's output layer; None for
            torch's.

    >>> import torch
    >>> from localize.plan.prediction import Prediction
    >>> spec = TensorSpec((1, 64, 8, 8), torch.float32, "NCHW")
    >>> head = build_head(spec, Prediction("vector", 10), batch_norm=False, draw=Initializer(None))
    >>> head(torch.randn(4, 64, 8, 8)).shape
    torch.Size([4, 10])
    >>> describe_head(spec, Prediction("vector", 10), batch_norm=False)
    'pool > linear(64, 10)'
    >>> head_cost(spec, Prediction("vector", 10), batch_norm=False)
    (650, 640)

    Raises:
        MethodError: ``spec`` has a layout that there is no such head for.
    """
    if prediction.kind == "dense":
        return dense_head(spec, prediction, batch_norm=batch_norm, draw=draw, like=like)
    return linear_head(spec, prediction, batch_norm=batch_norm, layer_norm=layer_norm, draw=draw, pool=pool, like=like)


def linear_head(
    spec: TensorSpec,
    prediction: Prediction,
    *,
    batch_norm: bool,
    draw: Initializer,
    layer_norm: bool = False,
    pool: Pooling = "average",
    like: nn.Module | None = None,
) -> nn.Sequential:
    """Build pooling, an optional norm and a linear layer: from ``spec`` to (N, outputs).

    AugLocal (ICLR 2024), section 3.2: the classifier g of the primary network, a global average pool and a fully
    connected layer. Its released CIFAR code puts a BatchNorm1d before the linear layer of auxiliary networks with one
    hidden layer.

    Raises:
        MethodError: ``spec`` has a layout that cannot be pooled.
    """
    assert prediction.kind == "vector", f"no head is known for {prediction}"
    pooled = build_pool(spec, pool)
    parts: dict[str, nn.Module] = {} if pooled is None else {"pool": pooled}
    if batch_norm or layer_norm:
        parts["norm"] = nn.BatchNorm1d(spec.channels) if batch_norm else nn.LayerNorm(spec.channels)
    classifier = bare(nn.Linear, spec.channels, prediction.outputs)
    if not draw.imitate_(classifier, like):
        draw.plain_(classifier)
    parts["classifier"] = classifier
    return _sequence(parts)


def dense_head(
    spec: TensorSpec,
    prediction: Prediction,
    *,
    batch_norm: bool,
    draw: Initializer,
    like: nn.Module | None = None,
) -> nn.Sequential:
    """Build an optional batch norm, a 1x1 convolution and interpolation: from ``spec`` to a map of logits.

    The map has the size of the primary network's output.

    Long, Shelhamer, Darrell: "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 4.1: a 1x1
    convolution scores the classes at each coarse position, and bilinear upsampling brings the scores to the resolution
    of the output. It has one trainable layer, as :func:`linear_head` has. Tokens and images with channels last
    are rearranged to images first; tokens before the patches (class token, registers) are left out: Strudel et al.:
    "Segmenter", ICCV 2021, section 3.2, the linear decoder. Features without positions give
    the same logits everywhere.

    Raises:
        MethodError: ``spec`` holds no grid.
    """
    grid = grid_of(spec, prediction)
    parts: dict[str, nn.Module] = {} if grid.plain else {"grid": ToGrid(grid)}
    if batch_norm:
        parts["norm"] = _NORMS[len(grid.size)](spec.channels)
    classifier = bare(_CONVOLUTIONS[len(grid.size)], spec.channels, prediction.outputs, 1)
    parts["classifier"] = classifier if draw.imitate_(classifier, like) else pointwise_(classifier, draw)
    if grid.size != prediction.size:
        parts["resize"] = Resize(prediction.size)
    if prediction.layout == "NHWC":
        parts["layout"] = ToLayout("NCHW", "NHWC")
    return _sequence(parts)


def _sequence(parts: dict[str, nn.Module]) -> nn.Sequential:
    head = nn.Sequential()
    for name, part in parts.items():
        head.add_module(name, part)
    return head


def describe_head(
    spec: TensorSpec, prediction: Prediction, batch_norm: bool, pool: Pooling = "average", layer_norm: bool = False
) -> str:
    """Describe the layers of :func:`build_head` in words.

    Raises:
        MethodError: ``spec`` has a layout that there is no such head for.
    """
    norm = ["batch_norm"] if batch_norm else []
    if prediction.kind == "dense":
        grid = grid_of(spec, prediction)
        parts = [*([] if grid.plain else ["grid"]), *norm]
        parts.append(f"conv{'x'.join('1' for _ in grid.size)}({spec.channels}, {prediction.outputs})")
        if grid.size != prediction.size:
            parts.append(f"{resampling(len(grid.size))}({'x'.join(map(str, prediction.size))})")
        return " > ".join(parts)
    norm = norm or ["layer_norm"] * layer_norm
    return " > ".join([*describe_pool(spec, pool), *norm, f"linear({spec.channels}, {prediction.outputs})"])


def head_cost(
    spec: TensorSpec, prediction: Prediction, batch_norm: bool, pool: Pooling = "average", layer_norm: bool = False
) -> tuple[int, int]:
    """Return parameters and multiply-accumulates of :func:`build_head`.

    Raises:
        MethodError: ``spec`` has a layout that there is no such head for.
    """
    weights = spec.channels * prediction.outputs
    params = weights + prediction.outputs + 2 * spec.channels * batch_norm
    if prediction.kind == "dense":
        return params, weights * math.prod(grid_of(spec, prediction).size)
    own, macs = pool_cost(spec, pool)
    own += 2 * spec.channels * (layer_norm and not batch_norm)
    return params + own, weights + macs
