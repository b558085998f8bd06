"""Criteria and targets: several classes a sample, soft labels, and what does not fit named clearly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localize import InputError, localize
from localize.methods.networks.losses import checked
from tests.models.dense_models import CLASSES, UNet
from tests.models.zoo import assert_same, gradients
from tests.tools.isolated import assert_isolated

SAMPLES, OUTPUTS = 4, 10
IMAGES = torch.randn(SAMPLES, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(SAMPLES)
MANY = torch.randint(2, (SAMPLES, OUTPUTS), generator=torch.Generator().manual_seed(1)).float()


def test_several_classes_a_sample(chain: nn.Sequential) -> None:
    local = localize(chain, d=2, last="single", example_inputs=IMAGES, criterion=nn.BCEWithLogitsLoss(), seed=0)
    outs = list(local.steps(IMAGES, MANY))
    assert len(outs) == 3
    for out in outs:
        by_hand = 0.0
        for row, targets in zip(out.logits.tolist(), MANY.tolist(), strict=True):
            for logit, target in zip(row, targets, strict=True):
                probability = 1 / (1 + math.exp(-logit))
                by_hand -= math.log(probability if target else 1 - probability)
        assert out.loss.item() == pytest.approx(by_hand / (SAMPLES * OUTPUTS), rel=1e-5)
    apart = assert_isolated(local, IMAGES, MANY)
    local.zero_grad()
    local.loss(IMAGES, MANY).backward()
    assert_same(gradients(local), apart)
    torch.optim.SGD(local.parameters(), lr=0.1).step()
    assert all(after.loss < out.loss for after, out in zip(local.steps(IMAGES, MANY), outs, strict=True))


def test_soft_labels_stay_what_they_are(chain: nn.Sequential) -> None:
    """Mixtures of two classes, also a mixture that is all of one class."""
    soft = 0.7 * F.one_hot(LABELS, OUTPUTS) + 0.3 * F.one_hot(LABELS.flip(0), OUTPUTS)
    local = localize(chain, d=2, example_inputs=IMAGES, seed=0)
    for target in (soft, F.one_hot(LABELS, OUTPUTS).float()):
        for out in local.steps(IMAGES, target):
            torch.testing.assert_close(out.loss, -(target * out.logits.log_softmax(1)).sum(1).mean())


VECTOR: dict[str, tuple[Any, Any, str]] = {
    "several classes, cross-entropy by default": (None, MANY, "several classes a sample.*BCEWithLogitsLoss"),
    "several classes, cross-entropy": (nn.CrossEntropyLoss(), MANY, "several classes a sample.*BCEWithLogitsLoss"),
    "several classes, its function": (F.cross_entropy, MANY, "several classes a sample.*BCEWithLogitsLoss"),
    "a class each, binary": (nn.BCEWithLogitsLoss(), LABELS, r"takes float targets of the logits' shape \(4, 10\)"),
    "integers of the shape, binary": (
        nn.BCEWithLogitsLoss(),
        MANY.long(),
        r"int64.*takes float targets of the logits' shape \(4, 10\)",
    ),
    "its function": (F.binary_cross_entropy_with_logits, LABELS, "takes float targets of the logits' shape"),
    "a label too many": (None, LABELS + 8, "with labels from 8 to 11 where the model knows 0 to 9"),
    "a map of labels": (None, torch.zeros(SAMPLES, 16, 16, dtype=torch.int64), r"a target of shape \(4, 16, 16\)"),
    "no tensor": (None, ["cat"] * SAMPLES, "a target of type list.*must be what your criterion expects"),
}
MAP = torch.zeros(SAMPLES, 16, 16, dtype=torch.int64)
DENSE: dict[str, tuple[Any, Any, str]] = {
    "a label each": (None, LABELS, r"predicts a map: labels must be class indices of shape \(4, 16, 16\)"),
    "another size": (None, MAP[:, ::2], r"predicts a map: labels must be class indices of shape \(4, 16, 16\)"),
    "void": (None, MAP + 255, "labels from 255 to 255 where .* 0 to 3.*255 marks pixels.*ignore_index"),
    "void below": (None, MAP - 1, "labels from -1 to -1 where .* 0 to 3.*-1 marks pixels.*ignore_index"),
    "maps of several classes": (None, torch.ones(SAMPLES, CLASSES, 16, 16), "several classes a sample.*BCEWithLogits"),
    "binary": (nn.BCEWithLogitsLoss(), MAP, r"takes float targets of the logits' shape \(4, 4, 16, 16\)"),
}


@pytest.mark.parametrize("way", ["steps", "loss"])
@pytest.mark.parametrize("case", [("vector", name) for name in VECTOR] + [("dense", name) for name in DENSE], ids=str)
def test_what_does_not_fit_is_named(case: tuple[str, str], way: str, chain: nn.Sequential) -> None:
    kind, name = case
    criterion, target, message = (VECTOR if kind == "vector" else DENSE)[name]
    model = chain if kind == "vector" else UNet(True)
    local = localize(model, d=2, example_inputs=IMAGES, criterion=criterion, seed=0)
    with pytest.raises(InputError, match=message) as error:
        list(local.steps(IMAGES, target)) if way == "steps" else local.loss(IMAGES, target)
    assert "\n" not in str(error.value)


def test_binary_maps_train() -> None:
    target = torch.randint(2, (SAMPLES, CLASSES, 16, 16)).float()
    local = localize(UNet(True), d=2, example_inputs=IMAGES, criterion=nn.BCEWithLogitsLoss(), seed=0)
    for out in local.steps(IMAGES, target):
        expected = F.softplus(out.logits) - target * out.logits
        torch.testing.assert_close(out.loss, expected.mean())


def test_a_criterion_that_gives_no_scalar_is_named() -> None:
    with pytest.raises(InputError, match=r"must return a scalar tensor; it returned shape \(4,\) \(in layer3\)"):
        checked(nn.CrossEntropyLoss(reduction="none"), torch.zeros(4, 3), LABELS % 3, "layer3")
