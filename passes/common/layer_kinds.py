"""Kinds of layers of torch.nn: the one place that says what counts as a convolution, a norm, a layer that mixes."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Convolution = _ConvNd
"""Convolutions of any dimension, transposed ones included."""
TransposedConvolution = _ConvTransposeNd
BatchNormLike = _NormBase
"""Norms with a number of features: batch norms and instance norms."""

DENSE = (Convolution, nn.Linear)
"""Layers whose outputs are weighted sums of channels, by one weight."""
MIXING = (*DENSE, nn.Bilinear, nn.MultiheadAttention)
"""Layers that mix channels without keeping a state."""
WEIGHTED = (*MIXING, nn.RNNBase)
"""Layers whose weights are matrices: those that can be trained to do something, unlike a norm."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Norms over the samples of a batch."""
SAMPLE_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Norms within one sample."""
NORMS = (BatchNormLike, nn.LayerNorm, nn.GroupNorm)
"""Norms whose architecture is known: from their attributes follow the shapes of their parameters."""
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
"""Pooling layers whose result is one of the values they read."""
IMAGE_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
"""Pooling layers over windows of images."""
IMAGE_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm)
"""Layers that read images with their channels first: (N, C, H, W)."""
VOLUME_LAYERS = (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)
"""Layers that read volumes or clips with their channels first: (N, C, D, H, W)."""


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalizes, judged by its class or its class's name; weights start as ones and zeros."""
    return isinstance(module, NORMS) or type(module).__name__.endswith("Norm")


def normalizes_last(module: nn.Module) -> bool:
    """Return whether a module is a layer norm over the last dimension.

    Subclasses with a forward of their own (timm's ``LayerNorm2d``) are for images with their channels first.
    """
    return type(module).forward is nn.LayerNorm.forward


def is_depthwise(layer: Convolution) -> bool:
    """Return whether each output channel of a convolution reads one input channel alone."""
    return layer.groups == layer.in_channels > 1
