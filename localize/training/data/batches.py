"""Training and test images by name, in batches that a resumed run draws again exactly.

Every random choice comes from a generator that is derived from (seed, epoch, step): batch (epoch, step) is the same
whether a run reaches it or starts there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localize.training.data.images import DataError, Images
from localize.training.data.sources import SMALL, Source, Split, balanced_subset, open_source

LARGE_SIZE = 224
"""Pixels a side that large images are cropped to, unless told otherwise."""

STATISTICS_SAMPLE = 512
"""Large images that the channel statistics are taken from; small ones are all counted."""

TEST_SHARE_OF_LIMIT = 5
"""A limit of N training images brings N // 5 test images with it."""

Batch = tuple[Tensor, Tensor]
"""Images, (B, C, H, W), float32 and normalised; labels, (B,), int64."""


def derived_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator whose stream depends on ``parts`` alone: a seed, a purpose, an epoch, a step."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Training and test images, ready to be drawn in batches."""

    source: str
    """Name of the source, as :func:`load_data` took it."""

    classes: tuple[str, ...]
    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor

    size: tuple[int, int]
    """Height and width of the images in batches, in pixels."""

    channels: int
    """Channels of an image, 1 or 3."""

    flip: bool
    """Whether training images are mirrored half of the time."""

    mean: Tensor
    """Mean of each channel over the training images, (C,), in 0..1."""

    std: Tensor
    """Standard deviation of each channel over the training images, (C,), in 0..1."""

    fingerprint: str
    """Text that changes with the images, their labels and the limit, but not with the folder that they are in."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image in a batch: (C, H, W)."""
        return (self.channels, *self.size)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of batches that an epoch is split into."""
        return math.ceil(len(self.train_labels) / batch_size)

    def train_batches(
        self, epoch: int, batch_size: int, seed: int, *, start: int = 0, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Return batches ``start``, ``start`` + 1, ... of an epoch: shuffled, augmented, normalised.

        Small images: random crop with 4 pixels of reflected padding, mirrored half of the time where ``flip``: AugLocal
        (ICLR 2024), appendix A.2. Large ones: random resized crop. Sizes of batches differ by at most one image, so
        that no last batch is too small for batch normalisation.
        """
        place = torch.device(device)
        order = torch.randperm(len(self.train_labels), generator=derived_generator(seed, "order", epoch))
        chunks = order.tensor_split(self.steps_per_epoch(batch_size))
        images = self.train_images.to(place)

        def make(step: int) -> Batch:
            generator = derived_generator(seed, "augment", epoch, step)
            pixels = images.train_batch(chunks[step], generator, self.flip)
            return self._delivered(pixels, place), self.train_labels[chunks[step]].to(place)

        jobs = [lambda step=step: make(step) for step in range(start, len(chunks))]
        return one_ahead(jobs) if images.lazy else (job() for job in jobs)

    def test_batches(self, batch_size: int, *, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Return all test images in order, in batches, normalised and not augmented."""
        place = torch.device(device)
        chunks = torch.arange(len(self.test_labels)).split(batch_size)
        images = self.test_images.to(place)

        def make(chunk: Tensor) -> Batch:
            return self._delivered(images.test_batch(chunk), place), self.test_labels[chunk].to(place)

        jobs = [lambda chunk=chunk: make(chunk) for chunk in chunks]
        return one_ahead(jobs) if images.lazy else (job() for job in jobs)

    def settings(self) -> dict[str, Any]:
        """Return what must be the same in a resumed run."""
        return {"images": self.fingerprint, "image_shape": list(self.image_shape), "classes": list(self.classes)}

    def _delivered(self, pixels: Tensor, device: torch.device) -> Tensor:
        mean, std = (statistic.to(device)[:, None, None] for statistic in (self.mean, self.std))
        images = (pixels.to(device).float().div_(255) - mean) / std
        images = images.contiguous()
        if images.shape[2:] != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False)
        return images


def one_ahead(jobs: Iterable[Callable[[], Batch]]) -> Iterator[Batch]:
    """Yield the results of jobs in order; a thread makes the next one while the caller works on the last."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        pending = None
        for job in jobs:
            upcoming = thread.submit(job)
            if pending is not None:
                yield pending.result()
            pending = upcoming
        if pending is not None:
            yield pending.result()


def load_data(
    source: str | Source,
    *,
    image_size: int | None = None,
    channels: int = 3,
    limit: int | None = None,
    test_limit: int | None = None,
) -> Data:
    """Open a source, decode its images if they are small, and compute the statistics of its training images.

    Args:
        source: ``digits``, ``fashion-mnist:DIR``, a folder (see
            :func:`~localize.training.data.sources.open_source`), or a source that is open already.
        image_size: Pixels a side in batches. ``None``: the images' own size if small (digits: 32), else 224.
        channels: 3, or 1 for grey.
        limit: Train on this many images only, the same number of every class, and the same images every time.
        test_limit: Test on this many images only. ``None``: on all of them, or on ``limit // 5`` if there is a
            limit, but on at least one of each class.

    Raises:
        DataError: There is no such source, its folders have another layout, an image cannot be read, or a limit
            is smaller than the number of classes.
    """
    opened = open_source(source) if isinstance(source, str) else source
    _check_shape(image_size, channels)
    classes = len(opened.classes)
    if test_limit is None and limit is not None:
        test_limit = max(classes, limit // TEST_SHARE_OF_LIMIT)
    size = (image_size, image_size) if image_size is not None else opened.native_size or (LARGE_SIZE, LARGE_SIZE)
    # Small images are kept small in memory and enlarged batch by batch; they are shrunk when they are loaded.
    stored = opened.native_size if opened.native_size is not None and max(size) > SMALL else size
    train = _chosen(opened.train, limit, classes, "limit")
    test = _chosen(opened.test, test_limit, classes, "test limit")
    train_images = opened.train.raw.load(train, stored, channels)
    mean, std = channel_statistics(train_images)
    return Data(
        source=opened.spec,
        classes=opened.classes,
        train_images=train_images,
        train_labels=opened.train.labels[train],
        test_images=opened.test.raw.load(test, stored, channels),
        test_labels=opened.test.labels[test],
        size=size,
        channels=channels,
        flip=opened.flip,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(opened, len(train), len(test)),
    )


def channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, (C,) and (C,), in 0..1.

    All small images count; of large ones, :data:`STATISTICS_SAMPLE` at equal distances.
    """
    count = min(len(images), STATISTICS_SAMPLE) if images.lazy else len(images)
    chosen = torch.linspace(0, len(images) - 1, count).round().long()
    total, squares, pixels = torch.zeros(1), torch.zeros(1), 0
    for chunk in chosen.split(STATISTICS_SAMPLE):
        values = images.test_batch(chunk).double() / 255
        total = total + values.sum((0, 2, 3))
        squares = squares + values.square().sum((0, 2, 3))
        pixels += values[:, 0].numel()
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)  # a channel may be constant
    return mean.float(), std.float()


def _check_shape(image_size: int | None, channels: int) -> None:
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    if image_size is not None and image_size < 1:
        raise DataError(f"image size must be at least 1 pixel, got {image_size}")


def _chosen(split: Split, limit: int | None, classes: int, name: str) -> Tensor:
    if limit is None or limit >= len(split):
        return torch.arange(len(split))
    if limit < classes:
        raise DataError(
            f"{name} of {limit} images for {classes} classes", remedy="Take at least one image of each class"
        )
    return balanced_subset(split.labels, limit)


def _fingerprint(source: Source, train: int, test: int) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for split in (source.train, source.test):
        digest.update(split.raw.fingerprint().to_bytes(8, "big"))
        digest.update(split.labels.numpy().tobytes())
    return f"{train} training and {test} test images, {digest.hexdigest()}"
