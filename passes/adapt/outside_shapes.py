"""Stand-ins: tensors without memory, whose shape is asked for.

A layer may ask for sizes of a tensor that an earlier layer computed (height and width, where it reads tokens). In a
copy behind another input that tensor does not exist; what it would measure follows from the copy's own input.
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
    """In the primary network."""
    layout: Layout
    grid: tuple[int, int]
    """Height and width of the layer's input in the primary network."""
    times: int
    """How many times as high and wide it is."""
    follows: bool
    """Whether it has as many channels as the layer's input."""


def measured(outside: TensorSpec, entry: TensorSpec) -> Measured | None:
    """How the shape of ``outside`` follows from ``entry``, the layer's input; None if it cannot be told."""
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
    """A tensor on the meta device with the shape that the measured one has beside ``reference``.

    Args:
        reference: What the copy reads, batch first.
        layout: The layout of ``reference``.
        shape: Of the measured tensor in the primary network.
        of: Its layout.
        grid: Height and width of the copied layer's input in the primary network.
        times: How many times as high and wide the measured tensor is.
        follows: Whether it has the channels of ``reference``; else its own.

    Raises:
        ValueError: ``reference`` holds tokens, and not as many as an image of the proportions of ``grid`` has pixels.
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
    if layout == "NCHW":
        return reference.shape[2], reference.shape[3]
    if layout == "NHWC":
        return reference.shape[1], reference.shape[2]
    tokens = reference.shape[1]
    height = math.isqrt(tokens * grid[0] // grid[1])
    width = tokens // max(1, height)
    if height * width != tokens or height * grid[1] != width * grid[0]:
        raise ValueError(f"{tokens} tokens are no image of the proportions {grid[0]}:{grid[1]}")
    return height, width
