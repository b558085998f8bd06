"""Data sources, augmentation, and batches that depend on (seed, epoch, step) alone."""

from __future__ import annotations

import gzip
import itertools
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from localize.training.data.batches import Data, derived_generator, load_data
from localize.training.data.images import (
    ASPECT_RANGE,
    CROP_PADDING,
    CROP_TRIES,
    DataError,
    FileImages,
    MemoryImages,
    random_box,
    random_crop_and_flip,
    reflect,
)
from localize.training.data.sources import balanced_subset, open_source


def write_folder(
    root: Path, *, classes: tuple[str, ...] = ("ant", "bee"), count: int = 5, size: tuple[int, int] = (12, 10)
) -> Path:
    """Write an image folder; image i of class c has one colour: red 20 * i, green 100 * c."""
    for part, images in (("train", count), ("test", 2)):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for index in range(images):
                image = Image.new("RGB", (size[1], size[0]), (20 * index, 100 * label, 7))
                image.save(root / part / name / f"{index}.png")
    return root


def write_idx(folder: Path, *, gzipped: bool = True, labels: list[int] | None = None) -> Path:
    """Write the four files of Fashion-MNIST, with 12 training and 4 test images of 4 x 3 pixels."""
    folder.mkdir(exist_ok=True)
    for prefix, count in (("train", 12), ("t10k", 4)):
        pixels = bytes(value % 256 for value in range(count * 12))
        targets = bytes(labels if labels is not None else [index % 10 for index in range(count)])
        contents = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">4i", 0x803, count, 4, 3) + pixels,
            f"{prefix}-labels-idx1-ubyte": struct.pack(">2i", 0x801, len(targets)) + targets,
        }
        for name, content in contents.items():
            if gzipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", limit=60, image_size=16)


# Sources


def test_digits_are_split_by_class_and_always_alike() -> None:
    data = load_data("digits")
    assert data.image_shape == (3, 32, 32)
    assert len(data.train_labels) + len(data.test_labels) == 1797
    everything = torch.cat([data.train_labels, data.test_labels]).bincount()
    share = data.test_labels.bincount() / everything
    assert share.min() > 0.19
    assert share.max() < 0.21
    assert not data.flip
    assert load_data("digits").fingerprint == data.fingerprint
    train = {
        bytes(image.numpy().tobytes()) for image in data.train_images.test_batch(torch.arange(len(data.train_labels)))
    }
    test = [image.numpy().tobytes() for image in data.test_images.test_batch(torch.arange(len(data.test_labels)))]
    assert not any(image in train for image in test)


def test_digits_in_grey_at_another_size() -> None:
    assert load_data("digits", image_size=16, channels=1, limit=10).image_shape == (1, 16, 16)


@pytest.mark.parametrize("gzipped", [True, False])
def test_fashion_mnist_files(tmp_path: Path, gzipped: bool) -> None:
    data = load_data(f"fashion-mnist:{write_idx(tmp_path, gzipped=gzipped)}")
    assert data.image_shape == (3, 4, 3)
    assert data.train_labels.tolist() == [index % 10 for index in range(12)]
    assert data.classes[9] == "ankle boot"
    second = data.train_images.test_batch(torch.tensor([1]))[0]
    assert second.tolist() == [[[12 + 3 * row + column for column in range(3)] for row in range(4)]] * 3


def test_small_folder_is_decoded_once(tmp_path: Path) -> None:
    data = load_data(str(write_folder(tmp_path)))
    assert isinstance(data.train_images, MemoryImages)
    assert data.classes == ("ant", "bee")
    assert data.image_shape == (3, 12, 10)
    assert data.train_labels.tolist() == [0] * 5 + [1] * 5
    colours = data.train_images.test_batch(torch.tensor([3, 6]))[:, :, 0, 0]
    assert colours.tolist() == [[60, 0, 7], [20, 100, 7]]


def test_val_folder_and_class_without_test_image(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    shutil.rmtree(tmp_path / "val" / "ant")
    assert load_data(str(tmp_path)).test_labels.tolist() == [1, 1]


def test_large_folder_is_decoded_on_the_way(tmp_path: Path) -> None:
    data = load_data(str(write_folder(tmp_path, size=(90, 120))), image_size=48)
    assert isinstance(data.train_images, FileImages)
    images, labels = next(data.train_batches(0, 4, seed=0))
    assert images.shape == (4, 3, 48, 48)
    # One colour an image: cropping and resizing must not change it.
    pixels = (images * data.std[:, None, None] + data.mean[:, None, None]) * 255
    assert torch.allclose(pixels[:, 1], labels[:, None, None] * 100.0, atol=0.6)
    assert load_data(str(tmp_path)).image_shape == (3, 224, 224)


def test_central_crop_keeps_the_middle(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (100, 1))  # 100 x 200, dark to light from left to right
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    pixels = FileImages([tmp_path / "ramp.png"], (40, 40), 1).test_batch(torch.tensor([0]))[0, 0].float()
    assert pixels.mean() == pytest.approx(99.5, abs=1)
    assert pixels.max() - pixels.min() == pytest.approx(0.875 * 100, abs=4)


def test_small_images_are_enlarged_for_a_model_that_wants_it() -> None:
    data = load_data("digits", limit=20, image_size=96)
    images, _ = next(data.train_batches(0, 5, seed=0))
    assert images.shape == (5, 3, 96, 96)
    assert data.train_images.test_batch(torch.tensor([0])).shape[-1] == 32  # kept small in memory


def _with_class(root: Path, part: str, name: str) -> Path:
    (write_folder(root) / part / name).mkdir()
    return root


def _without_test(root: Path) -> Path:
    (root / "train").mkdir()
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "none", "no data source"),
        (lambda root: "digit", "no data source 'digit'"),
        (lambda root: root, "no folder train"),
        (_without_test, "no folder test or val"),
        (lambda root: write_folder(root, classes=("one",)), "1 class folders"),
        (lambda root: _with_class(root, "test", "wasp"), "lacks: wasp"),
        (lambda root: _with_class(root, "train", "asp"), "no image in .*asp"),
        (lambda root: f"fashion-mnist:{root / 'none'}", "no folder"),
        (lambda root: f"fashion-mnist:{root}", "no file train-images-idx3-ubyte"),
        (lambda root: f"fashion-mnist:{write_idx(root, labels=[1, 2])}", "12 images but 2 labels"),
        (lambda root: f"fashion-mnist:{write_idx(root, labels=[11] * 12)}", "label 11"),
    ],
)
def test_a_wrong_source_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(str(make(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x01\0\0", struct.pack(">4i", 0x803, 100, 4, 3)])
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    write_idx(tmp_path, gzipped=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        load_data(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize("size", [(12, 10), (100, 100)])
def test_a_damaged_image_is_named(tmp_path: Path, size: tuple[int, int]) -> None:
    root = write_folder(tmp_path, size=size)
    (root / "train" / "bee" / "4.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"cannot read image .*bee.4\.png"):
        load_data(str(root), image_size=16)


def test_opening_decodes_nothing(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train" / "bee" / "4.png").write_bytes(b"\x89PNG nothing")
    assert len(open_source(str(root)).train) == 10


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match="image size"):
        load_data("digits", image_size=0)
    with pytest.raises(DataError, match="channels must be 1 or 3, got"):
        load_data("digits", channels=4)
    with pytest.raises(DataError, match="limit of 9 images for 10 classes"):
        load_data("digits", limit=9)
    with pytest.raises(DataError, match="test limit of 3 images"):
        load_data("digits", test_limit=3)


# Limits


def test_limit_takes_equally_of_each_class() -> None:
    data = load_data("digits", limit=104)
    assert sorted(data.train_labels.bincount().tolist()) == [10] * 6 + [11] * 4
    assert data.test_labels.bincount().tolist() == [2] * 10
    assert (
        load_data("digits", limit=20).test_labels.bincount().tolist() == [1] * 10
    )  # 20 // 5 is too few for ten classes
    assert len(load_data("digits", limit=50, test_limit=300).test_labels) == 300
    assert len(load_data("digits", limit=10**9).train_labels) == 1438


def test_limit_fills_up_where_a_class_is_rare() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3)
    chosen = balanced_subset(labels, 20)
    assert labels[chosen].bincount().tolist() == [17, 3]
    assert chosen.equal(balanced_subset(labels, 20))
    assert chosen.equal(chosen.unique())


def test_fingerprint_follows_the_images_and_not_their_place(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    fingerprint = load_data(str(first)).fingerprint
    assert load_data(str(tmp_path / "b")).fingerprint == fingerprint
    assert load_data(str(first), limit=4).fingerprint != fingerprint
    (tmp_path / "b" / "train" / "ant" / "0.png").rename(tmp_path / "b" / "train" / "ant" / "9.png")
    assert load_data(str(tmp_path / "b")).fingerprint != fingerprint


# Augmentation


@given(size=st.integers(1, 12), padding=st.integers(0, 30))
def test_reflect_is_numpys_padding(size: int, padding: int) -> None:
    expected = np.pad(np.arange(size), padding, mode="reflect")
    assert reflect(torch.arange(-padding, size + padding), size).tolist() == expected.tolist()


@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_is_pad_slice_mirror(flip: bool) -> None:
    pixels = torch.randint(256, (6, 9, 11, 3), dtype=torch.uint8)
    indices = torch.tensor([5, 0, 0, 3] * 8)
    result = random_crop_and_flip(pixels, indices, derived_generator("x"), flip)
    padded = F.pad(pixels.permute(0, 3, 1, 2).float(), [CROP_PADDING] * 4, mode="reflect").byte()
    seen = set()
    for image, index in zip(result, indices.tolist(), strict=True):
        found = [
            (top, left, mirrored)
            for top, left, mirrored in itertools.product(range(9), range(9), (False, True))
            if torch.equal(image.flip(2) if mirrored else image, padded[index, :, top : top + 9, left : left + 11])
        ]
        assert found
        seen.add(found[0])
    assert len({place[:2] for place in seen}) > 10
    assert {place[2] for place in seen} == ({False, True} if flip else {False})


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    draws=st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=CROP_TRIES, max_size=CROP_TRIES),
)
def test_random_box_lies_inside(width: int, height: int, draws: list[list[float]]) -> None:
    left, top, right, bottom = random_box(width, height, draws)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_box_falls_back_to_the_middle() -> None:
    whole = [[1.0, 0.5, 0.0, 0.0]] * CROP_TRIES  # all of the area, square: does not fit into a strip
    left, top, right, bottom = random_box(300, 30, whole)
    assert (top, bottom) == (0, 30)
    assert (right - left) / 30 == pytest.approx(ASPECT_RANGE[1])
    assert left == (300 - (right - left)) // 2


# Batches


def test_an_epoch_shows_every_image_once(digits: Data) -> None:
    batches = list(digits.train_batches(0, 16, seed=0))
    assert len(batches) == digits.steps_per_epoch(16) == 4
    assert [len(labels) for _, labels in batches] == [15, 15, 15, 15]
    shown = torch.cat([labels for _, labels in batches])
    assert shown.sort().values.equal(digits.train_labels.sort().values)
    assert not shown.equal(digits.train_labels)  # shuffled


def test_images_fit_their_labels(tmp_path: Path) -> None:
    data = load_data(str(write_folder(tmp_path)))
    for images, labels in data.train_batches(0, 4, seed=0):
        green = (images[:, 1] * data.std[1] + data.mean[1]) * 255
        assert torch.allclose(green, labels[:, None, None] * 100.0, atol=0.1)


def test_training_images_are_normalised(digits: Data) -> None:
    images = digits._delivered(digits.train_images.test_batch(torch.arange(60)), torch.device("cpu"))
    assert images.dtype == torch.float32
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("lazy", [False, True])
def test_a_batch_depends_on_seed_epoch_and_step_alone(tmp_path: Path, digits: Data, lazy: bool) -> None:
    data = load_data(str(write_folder(tmp_path, size=(80, 80), count=9)), image_size=16) if lazy else digits
    whole = list(data.train_batches(2, 5, seed=7))
    torch.manual_seed(99)
    resumed = list(data.train_batches(2, 5, seed=7, start=2))
    assert len(resumed) == len(whole) - 2
    for (images, labels), (again, labels_again) in zip(whole[2:], resumed, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    assert not torch.equal(whole[0][0], next(data.train_batches(3, 5, seed=7))[0])
    assert not torch.equal(whole[0][0], next(data.train_batches(2, 5, seed=8))[0])


def test_drawing_batches_leaves_the_global_generator_alone(digits: Data) -> None:
    before = torch.get_rng_state()
    list(digits.train_batches(0, 20, seed=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_test_batches_are_all_images_in_order(digits: Data) -> None:
    batches = list(digits.test_batches(4))
    assert torch.cat([labels for _, labels in batches]).equal(digits.test_labels)
    pixels = torch.cat([images for images, _ in batches]) * digits.std[:, None, None] + digits.mean[:, None, None]
    expected = digits.test_images.test_batch(torch.arange(len(digits.test_labels))) / 255
    assert torch.allclose(pixels, expected, atol=1e-5)
