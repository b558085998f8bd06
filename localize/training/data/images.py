"""Stores of images that deliver batches: from memory (small images) or from files (large ones).

Shapes: N images, B images of a batch, C channels, H x W pixels. Stores deliver uint8, (B, C, H, W). All random
choices come from the generator that a store is given, so equal generators give equal batches.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from passes.errors import LocalizeError


class DataError(LocalizeError):
    """A data source cannot be read, or does not fit the model."""


CROP_PADDING = 4
"""Pixels of reflected padding before a random crop. AugLocal (ICLR 2024), appendix A.2."""

AREA_RANGE = (0.08, 1.0)
"""Share of a large image that a random crop covers, as is standard for ImageNet."""

ASPECT_RANGE = (3 / 4, 4 / 3)
CROP_TRIES = 10
CENTRE_SHARE = 0.875
"""Share of a large image's shorter side kept at test time (224 of 256)."""


class Images(Protocol):
    """A store of N images."""

    lazy: bool
    """Whether a batch takes long to make, so that a thread should make the next one in advance."""

    def __len__(self) -> int: ...

    def train_batch(self, indices: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
        """Return augmented images, uint8, (B, C, H, W)."""
        ...

    def test_batch(self, indices: Tensor) -> Tensor:
        """Return images without augmentation, uint8, (B, C, H, W)."""
        ...

    def to(self, device: torch.device) -> Images:
        """Return a store that delivers on ``device`` if that saves time, else this store."""
        ...


def reflect(positions: Tensor, size: int) -> Tensor:
    """Mirror positions outside 0..size-1 back inside, without repeating the edge (reflected padding).

    >>> reflect(torch.tensor([-2, -1, 0, 3, 4]), 4).tolist()
    [2, 1, 0, 3, 2]
    """
    if size == 1:
        return torch.zeros_like(positions)
    period = 2 * (size - 1)
    positions = positions.remainder(period)
    return torch.minimum(positions, period - positions)


def random_crop_and_flip(pixels: Tensor, indices: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """Crop images at random after padding them by reflection; mirror half of them if ``flip``.

    Padding, crop and mirror are one gather: the padded images are never made.

    Args:
        pixels: Images, (N, H, W, C).
        indices: Numbers of the images to crop, (B,).
        generator: Source of all random choices.
        flip: Whether to mirror.

    Returns:
        Crops, (B, C, H, W), of the dtype of ``pixels``.
    """
    _, height, width, _ = pixels.shape
    shifts = torch.randint(-CROP_PADDING, CROP_PADDING + 1, (2, len(indices)), generator=generator)
    # Drawn without ``flip`` too, so that the generator gives equal numbers afterwards.
    mirrored = torch.rand(len(indices), generator=generator) < (0.5 if flip else 0.0)
    rows = reflect(torch.arange(height) + shifts[0, :, None], height)
    columns = reflect(torch.arange(width) + shifts[1, :, None], width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    place = pixels.device
    return pixels[indices.to(place)[:, None, None], rows.to(place)[:, :, None], columns.to(place)[:, None, :]].permute(
        0, 3, 1, 2
    )


@dataclass(slots=True, eq=False)
class MemoryImages:
    """Decoded images in one uint8 tensor, (N, H, W, C)."""

    pixels: Tensor
    lazy: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def train_batch(self, indices: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
        """See :class:`Images`."""
        return random_crop_and_flip(self.pixels, indices, generator, flip)

    def test_batch(self, indices: Tensor) -> Tensor:
        """See :class:`Images`."""
        return self.pixels[indices.to(self.pixels.device)].permute(0, 3, 1, 2)

    def to(self, device: torch.device) -> MemoryImages:
        """See :class:`Images`: all images move once, and batches are cropped from them on the device."""
        return self if self.pixels.device == device else MemoryImages(self.pixels.to(device))


@dataclass(slots=True, eq=False)
class FileImages:
    """Image files that are decoded when a batch needs them, by a few threads (Pillow releases the interpreter lock).

    Training: a random area of ``AREA_RANGE`` and aspect ``ASPECT_RANGE``, resized, mirrored half of the time. Test: the
    central square. This is the ImageNet recipe that AugLocal (ICLR 2024), appendix A.2, follows.
    """

    paths: list[Path]
    size: tuple[int, int]
    """Height and width of the images in batches, in pixels."""

    channels: int
    lazy: bool = field(default=True, init=False)
    _pool: ThreadPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self.paths)

    def train_batch(self, indices: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
        """See :class:`Images`."""
        # All draws are made here, before any thread runs, so that threads cannot change their order.
        draws = torch.rand(len(indices), CROP_TRIES, 4, generator=generator).tolist()
        mirrored = (torch.rand(len(indices), generator=generator) < (0.5 if flip else 0.0)).tolist()
        return torch.stack(list(self._pool.map(self._random_crop, indices.tolist(), draws, mirrored)))

    def test_batch(self, indices: Tensor) -> Tensor:
        """See :class:`Images`."""
        return torch.stack(list(self._pool.map(self._central_crop, indices.tolist())))

    def to(self, device: torch.device) -> FileImages:
        """See :class:`Images`: files are decoded on the CPU, whatever the device."""
        return self

    def _random_crop(self, index: int, draws: list[list[float]], mirrored: bool) -> Tensor:
        return self._decode(index, lambda width, height: random_box(width, height, draws), mirrored)

    def _central_crop(self, index: int) -> Tensor:
        return self._decode(index, self._central_box, mirrored=False)

    def _central_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        # The largest box of the wanted aspect, less a margin on every side.
        scale = CENTRE_SHARE * min(width / self.size[1], height / self.size[0])
        box_width, box_height = max(1, round(scale * self.size[1])), max(1, round(scale * self.size[0]))
        left, top = (width - box_width) // 2, (height - box_height) // 2
        return left, top, left + box_width, top + box_height

    def _decode(self, index: int, box: BoxRule, mirrored: bool) -> Tensor:
        pixels = decode(self.paths[index], self.channels, self.size, box).permute(2, 0, 1)
        return pixels.flip(2) if mirrored else pixels


class BoxRule(Protocol):
    """A rule for the part of an image to keep."""

    def __call__(self, width: int, height: int, /) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of the part, in pixels."""
        ...


def random_box(width: int, height: int, draws: list[list[float]]) -> tuple[int, int, int, int]:
    """Choose a random box of an image: the first of ``draws`` that fits, else the central box of a legal aspect.

    Args:
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        draws: Tries of four numbers in 0..1: area, aspect, vertical and horizontal position.

    Returns:
        Left, top, right, bottom, in pixels.
    """
    low, high = (math.log(ratio) for ratio in ASPECT_RANGE)
    for area_draw, aspect_draw, top_draw, left_draw in draws:
        area = width * height * (AREA_RANGE[0] + area_draw * (AREA_RANGE[1] - AREA_RANGE[0]))
        aspect = math.exp(low + aspect_draw * (high - low))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = min(int(left_draw * (width - box_width + 1)), width - box_width)
            top = min(int(top_draw * (height - box_height + 1)), height - box_height)
            return left, top, left + box_width, top + box_height
    box_width = min(width, max(1, round(height * ASPECT_RANGE[1])))
    box_height = min(height, max(1, round(width / ASPECT_RANGE[0])))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def decode(path: Path, channels: int, size: tuple[int, int] | None = None, box: BoxRule | None = None) -> Tensor:
    """Decode an image file to uint8, (H, W, C).

    Args:
        path: The file.
        channels: 3 (RGB) or 1 (grey).
        size: Height and width to resize to; ``None`` keeps the image's own.
        box: The part of the image to keep before resizing; ``None`` keeps all.

    Raises:
        DataError: The file is not an image, or is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB" if channels == 3 else "L")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow reports broken PNGs as SyntaxError
        raise DataError(f"cannot read image {path}", why=str(error), remedy="Remove or repair this file") from error
    if size is not None and (box is not None or image.size != (size[1], size[0])):
        kept = None if box is None else box(*image.size)
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=kept)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, channels)


def decode_all(paths: list[Path], channels: int, size: tuple[int, int]) -> Tensor:
    """Decode image files into one uint8 tensor, (N, H, W, C).

    Raises:
        DataError: A file is not an image, or is damaged.
    """
    pixels = torch.empty(len(paths), *size, channels, dtype=torch.uint8)
    for index, path in enumerate(paths):  # no threads: for small images they cost more than they save (measured)
        pixels[index] = decode(path, channels, size)
    return pixels
