"""Sources of images: digits, Fashion-MNIST files, folders. They are found and checked here, and not decoded yet."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from localize.training.data.images import DataError, FileImages, Images, MemoryImages, decode_all

SMALL = 64
"""Images of at most this many pixels a side are decoded once and kept in memory."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
TEST_FOLDERS = ("test", "val")
DIGITS_SIZE = 32
DIGITS_TEST_SHARE = 0.2
IDX_IMAGES, IDX_LABELS = 0x00000803, 0x00000801
FASHION_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

LAYOUT = "Expected DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or DIR/val)"


class Raw(Protocol):
    """Images that were found and are not decoded yet."""

    def __len__(self) -> int: ...

    def load(self, chosen: Tensor, size: tuple[int, int], channels: int) -> Images:
        """Return a store of the images with the numbers ``chosen``, which delivers them at ``size`` (height, width)."""
        ...

    def fingerprint(self) -> int:
        """Return a checksum that changes with the set of images, but not with the folder that they are in."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One part, training or test, of a source: N images and their N labels (int64)."""

    raw: Raw
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A data source, opened and checked."""

    spec: str
    """Name of the source, as :func:`open_source` took it."""

    classes: tuple[str, ...]
    train: Split
    test: Split

    native_size: tuple[int, int] | None
    """Height and width of the images; ``None`` if they are large (above 64 pixels), and are cropped."""

    flip: bool
    """Whether a mirror image keeps its class."""


def open_source(spec: str) -> Source:
    """Find and check a source by name, without decoding any image.

    Args:
        spec: ``digits``; ``fashion-mnist:DIR`` with the four idx files, gzipped or not; or a folder, laid out as
            DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or DIR/val).

    Raises:
        DataError: There is no such source, or its files and folders are not laid out like this.
    """
    if spec == "digits":
        return _digits()
    kind, _, rest = spec.partition(":")
    if kind == "fashion-mnist":
        return _fashion_mnist(spec, Path(rest))
    return _folder(spec)


@dataclass(frozen=True, slots=True, eq=False)
class ArrayRaw:
    """Grey images in memory, (N, H, W), uint8."""

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, chosen: Tensor, size: tuple[int, int], channels: int) -> MemoryImages:
        """See :class:`Raw`."""
        pixels = self.pixels[chosen]
        if pixels.shape[1:] != size:
            resized = F.interpolate(pixels[:, None].float(), size=size, mode="bilinear", align_corners=False)
            pixels = resized[:, 0].round().clamp(0, 255).to(torch.uint8)
        return MemoryImages(pixels[..., None].expand(-1, -1, -1, channels).contiguous())

    def fingerprint(self) -> int:
        """See :class:`Raw`."""
        return zlib.crc32(self.pixels.numpy().tobytes())


@dataclass(frozen=True, slots=True, eq=False)
class FolderRaw:
    """Image files below one folder."""

    root: Path
    paths: tuple[Path, ...]
    small: bool

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, chosen: Tensor, size: tuple[int, int], channels: int) -> Images:
        """See :class:`Raw`."""
        paths = [self.paths[index] for index in chosen.tolist()]
        return MemoryImages(decode_all(paths, channels, size)) if self.small else FileImages(paths, size, channels)

    def fingerprint(self) -> int:
        """See :class:`Raw`."""
        return zlib.crc32("\n".join(path.relative_to(self.root).as_posix() for path in self.paths).encode())


def _digits() -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn", why=str(error), remedy="pip install scikit-learn"
        ) from error
    bunch = load_digits()
    # (N, 8, 8); scikit-learn's values are 0..16.
    pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    test = stratified(labels, DIGITS_TEST_SHARE)
    train = torch.ones(len(labels), dtype=torch.bool).index_fill(0, test, False).nonzero()[:, 0]
    return Source(
        spec="digits",
        classes=tuple(str(name) for name in bunch.target_names),
        train=Split(ArrayRaw(pixels[train]), labels[train]),
        test=Split(ArrayRaw(pixels[test]), labels[test]),
        native_size=(DIGITS_SIZE, DIGITS_SIZE),
        flip=False,
    )


def shuffled_by_class(labels: Tensor) -> list[Tensor]:
    """Return the image numbers of each class, in an order that is random but always the same."""
    generator = torch.Generator().manual_seed(0)
    members = [(labels == label).nonzero()[:, 0] for label in labels.unique().tolist()]
    return [member[torch.randperm(len(member), generator=generator)] for member in members]


def stratified(labels: Tensor, share: float) -> Tensor:
    """Return the image numbers of a fixed part of every class, in ascending order."""
    return torch.cat([member[: round(share * len(member))] for member in shuffled_by_class(labels)]).sort().values


def balanced_subset(labels: Tensor, limit: int) -> Tensor:
    """Return the numbers of at most ``limit`` images, ascending: always the same ones, equally many of every class.

    Classes differ by at most one image, unless one of them has too few to give.
    """
    by_class = shuffled_by_class(labels)
    rounds = max(len(member) for member in by_class)
    dealt = [member[turn] for turn in range(rounds) for member in by_class if turn < len(member)]
    return torch.stack(dealt[:limit]).sort().values


def _fashion_mnist(spec: str, folder: Path) -> Source:
    if not folder.is_dir():
        raise DataError(
            f"no folder {str(folder)!r} for the Fashion-MNIST files",
            remedy="Debian's package dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist",
        )
    train, size = _idx_split(folder, "train")
    test, _ = _idx_split(folder, "t10k")
    return Source(spec, FASHION_CLASSES, train, test, native_size=size, flip=True)


def _idx_split(folder: Path, prefix: str) -> tuple[Split, tuple[int, int]]:
    """Read images and labels; return them with the height and width of the images."""
    pixels = _read_idx(folder, f"{prefix}-images-idx3-ubyte", IDX_IMAGES)
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", IDX_LABELS).long()
    if len(pixels) != len(labels) or len(labels) == 0:
        raise DataError(f"{len(pixels)} images but {len(labels)} labels in {folder} ({prefix})")
    if int(labels.max()) >= len(FASHION_CLASSES):
        raise DataError(
            f"label {int(labels.max())} in {folder} ({prefix}); Fashion-MNIST has {len(FASHION_CLASSES)} classes"
        )
    return Split(ArrayRaw(pixels), labels), (pixels.shape[1], pixels.shape[2])


def _read_idx(folder: Path, name: str, magic: int) -> Tensor:
    """Read one idx file: magic number, dimensions as big-endian int32, then bytes."""
    path = next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)
    if path is None:
        raise DataError(f"no file {name} or {name}.gz in {folder}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        number, *shape = struct.unpack_from(f">{1 + (magic & 0xFF)}i", content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"cannot read {path}", why=str(error)) from error
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)[4 * (1 + len(shape)) :]
    if number != magic or values.numel() != torch.Size(shape).numel():
        raise DataError(f"{path} is not an idx file of the kind its name says")
    return values.view(shape)


def _folder(spec: str) -> Source:
    root = Path(spec)
    if not root.is_dir():
        raise DataError(f"no data source {spec!r}", remedy=f"Give digits, fashion-mnist:DIR, or a folder. {LAYOUT}")
    test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test_root is None:
        missing = "train" if not (root / "train").is_dir() else "test or val"
        raise DataError(f"no folder {missing} in {spec}", remedy=LAYOUT)
    classes = tuple(sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir()))
    if len(classes) < 2:
        raise DataError(f"{len(classes)} class folders in {root / 'train'}, at least 2 are needed", remedy=LAYOUT)
    unknown = sorted(entry.name for entry in test_root.iterdir() if entry.is_dir() and entry.name not in classes)
    if unknown:
        raise DataError(f"classes in {test_root} that {root / 'train'} lacks: {', '.join(unknown)}")
    size = _probe(root / "train", classes)
    small = size is not None
    return Source(
        spec,
        classes,
        train=_folder_split(root / "train", classes, small, every_class=True),
        test=_folder_split(test_root, classes, small, every_class=False),
        native_size=size,
        flip=True,
    )


def _folder_split(root: Path, classes: tuple[str, ...], small: bool, *, every_class: bool) -> Split:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = _image_files(root / name)
        if every_class and not files:
            raise DataError(f"no image in {root / name}", remedy=LAYOUT)
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"no image in {root}", remedy=LAYOUT)
    return Split(FolderRaw(root, tuple(paths), small), torch.tensor(labels))


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _probe(root: Path, classes: tuple[str, ...]) -> tuple[int, int] | None:
    """Return height and width of small images, judged by the first image of each class; ``None`` if one is large."""
    from PIL import Image, UnidentifiedImageError

    sizes: list[tuple[int, int]] = []
    for name in classes:
        for path in _image_files(root / name)[:1]:
            try:
                with Image.open(path) as image:
                    sizes.append((image.height, image.width))
            except (UnidentifiedImageError, OSError) as error:
                raise DataError(f"cannot read image {path}", why=str(error)) from error
    if not sizes or max(max(size) for size in sizes) > SMALL:
        return None
    return max(size[0] for size in sizes), max(size[1] for size in sizes)
