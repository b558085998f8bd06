"""Memory layout of images and weights: channels last, where torch computes correctly in it.

On CPUs with AVX2 and no AVX-512, torch's weight gradient of a strided 1x1 convolution of few input channels is wrong at
random with channels last, and writes past its memory (torch 2.14.1 with oneDNN 3.12, kernel ``jit_1x1:avx2``: it copies
the pixels that the stride picks into a buffer of just their channels, eight channels at a time). Seen in float32, for
2 to 7 input channels, with two or more images whose side the stride divides. Not seen with 1 channel or with 8 to 132,
stride 1, kernels of other sizes, groups, transposed or one- and three-dimensional convolutions, bfloat16, float16 or
float64, and not with ``ONEDNN_MAX_CPU_ISA=SSE41`` or ``AVX``.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from passes.codegen.generate import PRIMARY

LEAST_CHANNELS = 16
"""Input channels from which on a strided 1x1 convolution is trusted with channels last: twice what was seen to work."""


def channels_last_fault(network: nn.Module) -> str | None:
    """Return why a network cannot be trained with channels last on a CPU; None if it can.

    The answer is the same on every CPU, so that a run does not depend on the machine.

    >>> channels_last_fault(nn.Sequential(nn.Conv2d(4, 8, 1, stride=2)))
    'torch may compute wrong weight gradients for 0, a strided 1x1 convolution of 4 input channels (fewer than 16)'
    >>> channels_last_fault(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.Conv2d(16, 8, 1, stride=2)))
    """
    for name, module in network.named_modules():
        channels = _narrow(module)
        if channels is not None:
            where = name.removeprefix(f"{PRIMARY}.") or type(module).__name__
            kind = "a strided 1x1 convolution" if isinstance(module, nn.modules.conv._ConvNd) else "a 1x1 weight"
            return (
                f"torch may compute wrong weight gradients for {where}, {kind} of {channels} input "
                f"channel{'' if channels == 1 else 's'} (fewer than {LEAST_CHANNELS})"
            )
    return None


def lay_out(network: nn.Module, device: str) -> torch.memory_format:
    """Put the weights of a network in memory with channels last, unless torch goes wrong there: then warn.

    Args:
        network: Its 4-dimensional parameters and buffers are laid out.
        device: Type of the device that the network is trained on.

    Returns:
        The layout that its images should have: ``torch.channels_last``, or ``torch.contiguous_format`` after a warning.
    """
    fault = channels_last_fault(network) if device == "cpu" else None
    if fault is not None:
        warnings.warn(f"channels_last off: {fault}", stacklevel=2)
        return torch.contiguous_format
    network.to(memory_format=torch.channels_last)
    return torch.channels_last


def _narrow(module: nn.Module) -> int | None:
    """Return the input channels of a layer if it may be computed wrongly, else None."""
    if isinstance(module, nn.modules.conv._ConvNd):
        # The weight gradient of a transposed convolution is that of a convolution of its output.
        channels = (module.out_channels if module.transposed else module.in_channels) // module.groups
        risky = max(module.stride) > 1 and max(module.kernel_size) == 1 and channels < LEAST_CHANNELS
        return channels if risky else None
    if isinstance(module, ParametrizationList):
        return None  # the layer that it belongs to is looked at
    # A weight outside of torch's own layers may be that of a functional convolution, whose stride is not known here.
    for weight in module.parameters(recurse=False):
        if weight.ndim == 4 and tuple(weight.shape[2:]) == (1, 1) and weight.shape[1] < LEAST_CHANNELS:
            return weight.shape[1]
    return None
