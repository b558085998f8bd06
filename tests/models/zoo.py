"""Real architectures, made small: what tests with one body run over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from localize import LocalGraphModule, localize
from localize.models import cifar_resnet

CLASSES = 10


@dataclass(frozen=True)
class Entry:
    """A network of ten classes and the size of the square images it is tested with."""

    name: str
    make: Callable[[], nn.Module]
    size: int

    def build(self) -> nn.Module:
        """Build the network with fresh weights, equal each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return self.make()

    def batch(self, samples: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
        """Random images and labels."""
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(samples, 3, self.size, self.size, generator=generator)
        return x, torch.randint(CLASSES, (samples,), generator=generator)

    def localize(self, method: str = "auglocal", **options: Any) -> LocalGraphModule:
        """Build and localize a new network, in train mode."""
        model = self.build()
        options = {"d": 2, "seed": 0, "example_inputs": self.batch()[0], **options}
        local = localize(model, method, **options)
        local.train()
        return local


def small_vgg() -> nn.Module:
    """VGG-13 whose hidden classifier layers are narrow: its convolutions, without their 120 million parameters."""
    with torch.device("meta"):
        model = torchvision.models.vgg13_bn(num_classes=CLASSES)
        model.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True), nn.Dropout(),
            nn.Linear(32, CLASSES),
        )  # fmt: skip
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model  # type: ignore[no-any-return]


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, num_classes=CLASSES)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


ACTIVE = {"drop_rate": 0.1, "drop_path_rate": 0.1}
"""Dropout before the classifier, and stochastic depth: what draws random numbers in train mode."""

ZOO = (
    Entry("resnet18", _torchvision("resnet18"), 48),
    Entry("resnet34", _torchvision("resnet34"), 48),
    Entry("vgg13_bn", small_vgg, 64),
    Entry("mobilenet_v2", _torchvision("mobilenet_v2"), 64),
    Entry("regnetx_004", _timm("regnetx_004"), 64),
    Entry("efficientnet_b0", _timm("efficientnet_b0"), 64),
    Entry("efficientnet_b0-drop", _timm("efficientnet_b0", **ACTIVE), 64),
    Entry("convnext_atto", _timm("convnext_atto"), 64),
    Entry("convnext_atto-drop", _timm("convnext_atto", **ACTIVE, depths=(1, 2, 2, 1)), 64),
    Entry("densenet121", _timm("densenet121", block_config=(2, 2, 3, 2), growth_rate=16), 64),
    Entry("resnetv2_50", _timm("resnetv2_50", layers=(1, 2, 2, 1), channels=(64, 128, 256, 512)), 64),
    Entry("vit_tiny-drop", _timm("vit_tiny_patch16_224", **ACTIVE, depth=4, img_size=64), 64),
    Entry("cifar_resnet20", lambda: cifar_resnet(20), 32),
)

every_model = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)


@cache
def localized(entry: Entry, method: str = "auglocal", modules: int | None = None) -> LocalGraphModule:
    """Return the network, localized once for all tests that only read it or compute gradients.

    Whoever takes it zeroes the gradients first; batch-norm statistics may have moved, weights never have.
    """
    return entry.localize(method, modules=modules)


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all gradients by parameter name."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Assert that names are the same, and tensors equal bit for bit."""
    assert sorted(found) == sorted(expected)
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []
