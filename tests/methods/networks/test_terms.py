"""Similarity matching and reconstruction against slow NumPy versions, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localize.methods.networks.terms import (
    denormalized,
    one_hot,
    reconstruction_loss,
    similarity_loss,
    similarity_matrix,
)

SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(2, 7)),
    st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4)).filter(
        lambda shape: math.prod(shape[1:]) > 1
    ),
)
SEEDS = st.integers(0, 2**20)


def values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_rows(features: np.ndarray[Any, Any]) -> list[list[float]]:
    """One row a sample: standard deviations of channels over space, or all values where those would say nothing."""
    found = []
    for sample in features:
        if sample.ndim == 1 or sample.shape[0] <= 3 or sample[0].size == 1:
            found.append([float(value) for value in sample.ravel()])
            continue
        row = []
        for channel in sample:
            numbers = [float(value) for value in channel.ravel()]
            mean = sum(numbers) / len(numbers)
            row.append(math.sqrt(sum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1)))
        found.append(row)
    return found


def slow_matrix(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows = [np.array(row) - sum(row) / len(row) for row in slow_rows(features)]
    count = len(rows)
    matrix = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            lengths = math.sqrt(sum(rows[i] ** 2)) * math.sqrt(sum(rows[j] ** 2))
            matrix[i, j] = sum(rows[i] * rows[j]) / lengths if lengths > 1e-12 else 0.0
    return matrix


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, seed=SEEDS)
def test_similarity_matrix(shape: tuple[int, ...], seed: int) -> None:
    features = values(shape, seed)
    found = similarity_matrix(features)
    np.testing.assert_allclose(found.numpy(), slow_matrix(features.numpy()), atol=1e-9)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, seed=SEEDS, classes=st.integers(2, 6), soft=st.booleans())
def test_similarity_loss(shape: tuple[int, ...], seed: int, classes: int, soft: bool) -> None:
    features, samples = values(shape, seed), shape[0]
    labels = torch.arange(samples) * 7 % classes
    target = values((samples, classes), seed + 1).softmax(1) if soft else one_hot(labels, classes)
    difference = slow_matrix(features.numpy()) - slow_matrix(target.double().numpy())
    expected = sum(float(d) ** 2 for d in difference.ravel()) / samples**2
    assert float(similarity_loss(features, target)) == pytest.approx(expected, abs=1e-7)


def test_similarity_of_labels_is_1_or_less_by_the_other_classes() -> None:
    """Centred one-hot rows of C classes: 1 for the same class, -1/(C - 1) for another."""
    found = similarity_matrix(one_hot(torch.tensor([0, 3, 0]), 5))
    expected = torch.tensor([[1, -0.25, 1], [-0.25, 1, -0.25], [1, -0.25, 1]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(4, 5), (3, 6, 2, 3), (3, 2, 2, 2), (4, 6, 1, 1)])
def test_gradient_of_similarity(shape: tuple[int, ...]) -> None:
    features = values(shape, 0).requires_grad_()
    labels = one_hot(torch.arange(shape[0]) % 2, 3).double()
    assert torch.autograd.gradcheck(lambda x: similarity_loss(x, labels), features)


@pytest.mark.parametrize("shape", [(3, 5), (3, 6, 2, 2)])
def test_constant_features_are_similar_to_nothing(shape: tuple[int, ...]) -> None:
    features = torch.zeros(shape).requires_grad_()
    assert torch.equal(similarity_matrix(features), torch.zeros(3, 3))
    similarity_loss(features, one_hot(torch.arange(3), 3)).backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros(shape))


def test_labels_of_no_class_are_rows_of_zeros() -> None:
    expected = [[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert one_hot(torch.tensor([1, -100, 3, 0]), 3).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left(dtype: torch.dtype) -> None:
    features = values((4, 6, 3, 3), 0).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(similarity_matrix(features), similarity_matrix(features.float()))
        image = torch.rand(4, 6, 3, 3)
        assert torch.equal(reconstruction_loss(features, image), reconstruction_loss(features.float(), image))
    assert similarity_matrix(features).dtype == torch.float32


IMAGES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


@settings(deadline=None, max_examples=40)
@given(shape=IMAGES, seed=SEEDS)
def test_reconstruction_loss(shape: tuple[int, ...], seed: int) -> None:
    logits, image = values(shape, seed), values(shape, seed + 1).sigmoid()
    total = 0.0
    for logit, t in zip(logits.flatten().tolist(), image.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    assert float(reconstruction_loss(logits, image)) == pytest.approx(total / logits.numel(), abs=1e-9)


def test_gradient_of_reconstruction() -> None:
    logits = values((2, 3, 2, 2), 0).requires_grad_()
    image = values((2, 3, 2, 2), 1).sigmoid()
    assert torch.autograd.gradcheck(lambda x: reconstruction_loss(x, image), logits)


def test_reconstruction_is_least_at_the_image() -> None:
    image = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1)
    logits = image.logit().requires_grad_()
    reconstruction_loss(logits, image).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-7, rtol=0)


@settings(deadline=None, max_examples=30)
@given(shape=IMAGES, seed=SEEDS, channelwise=st.booleans())
def test_normalization_is_undone(shape: tuple[int, ...], seed: int, channelwise: bool) -> None:
    images, count = values(shape, seed), shape[1] if channelwise else 1
    mean, std = (tuple((abs(values((count,), seed + i)) + 0.1).tolist()) for i in (1, 2))
    expected = np.empty(shape)
    for position in np.ndindex(*shape):
        c = position[1] if channelwise else 0
        expected[position] = min(1.0, max(0.0, float(images[position]) * std[c] + mean[c]))
    np.testing.assert_allclose(denormalized(images, mean, std).numpy(), expected, atol=1e-12)
