"""Stand-ins for tensors from outside a layer whose sizes it asks for.

A layer that reads tokens may ask an earlier image for height and width. A copy for another input does not have that
image; the shape it would have follows from the copy's own input. A tensor without memory of that shape takes its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from passes.ir import Layout, TensorSpec


@dataclass(frozen=True, slots=True)
class Measured:
    """A tensor outside a layer whose shape the layer asks for, in terms of the layer's input."""

    shape: tuple[int, ...]
    """Shape of the tensor in the primary network, batch first."""
    layout: Layout
    """Layout of the tensor."""
    grid: tuple[int, int]
    """Height and width of the layer's input in the primary network."""
    times: int
    """Height of the tensor over that of the layer's input; the same for widths."""
    follows: bool
    """Whether the tensor has as many channels as the layer's input."""


def measured(outside: TensorSpec, entry: TensorSpec) -> Measured | None:
    """Return how the shape of ``outside`` follows from ``entry``, the layer's input; None if it does not.

    >>> image, tokens = TensorSpec((2, 8, 4, 4), layout="NCHW"), TensorSpec((2, 16, 8), layout="NLC")
    >>> measured(image, tokens)
    Measured(shape=(2, 8, 4, 4), layout='NCHW', grid=(4, 4), times=1, follows=True)
    """
    images = ("NCHW", "NHWC")
    if not {outside.layout, entry.layout} <= {*images, "NLC"} or not {outside.layout, entry.layout} & set(images):
        return None
    ratio = math.prod(outside.spatial) / max(1, math.prod(entry.spatial))
    times = math.isqrt(round(ratio))
    if not times or times * times != ratio:
        return None
    height, width = entry.spatial if entry.layout in images else (size // times for size in outside.spatial)
    if outside.layout in images and outside.spatial != (height * times, width * times):
        return None
    return Measured(outside.shape, outside.layout, (height, width), times, outside.channels == entry.channels)


def stand_in(
    reference: torch.Tensor,
    layout: Layout,
    shape: tuple[int, ...],
    of: Layout,
    grid: tuple[int, int],
    times: int,
    follows: bool,
) -> torch.Tensor:
    """Return a tensor without memory, of the shape that the measured tensor would have for this input of the copy.

    Args:
        reference: The copy's input, batch first.
        layout: The layout of ``reference``.
        shape: Shape of the measured tensor in the primary network.
        of: Layout of the measured tensor.
        grid: Height and width of the copied layer's input in the primary network.
        times: Height of the measured tensor over that of the copied layer's input.
        follows: Whether the measured tensor has the channels of ``reference``; else it keeps its own.

    Raises:
        ValueError: ``reference`` holds tokens, and no image of the proportions of ``grid`` has that number of pixels.
    """
    height, width = (times * side for side in _sides(reference, layout, grid))
    channels = reference.shape[1 if layout == "NCHW" else -1] if follows else shape[1 if of == "NCHW" else -1]
    sizes = {
        "NCHW": (channels, height, width),
        "NHWC": (height, width, channels),
        "NLC": (height * width, channels),
    }[of]
    return torch.empty((reference.shape[0], *sizes), device="meta")


def _sides(reference: torch.Tensor, layout: Layout, grid: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the copy's input; tokens form an image of the proportions of ``grid``."""
    if layout == "NCHW":
        return reference.shape[2], reference.shape[3]
    if layout == "NHWC":
        return reference.shape[1], reference.shape[2]
    tokens = reference.shape[1]
    height = math.isqrt(tokens * grid[0] // grid[1])
    width = tokens // max(1, height)
    if height * width != tokens or height * grid[1] != width * grid[0]:
        raise ValueError(f"{tokens} tokens do not form an image of the proportions {grid[0]}:{grid[1]}")
    return height, width
