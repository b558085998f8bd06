"""Backpropagation with activation checkpointing: the same gradients and statistics, bit for bit, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from localize import MethodError, localize
from localize.memory.peak import peak_step_bytes
from localize.models import cifar_resnet
from localize.plan.records import Recompute
from tests.models.graphs import FourLayers
from tests.models.zoo import small_vgg


class Overwriting(FourLayers):
    """Layers that change what they read in place; the norms and the dropout would show a change made twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if i:
                x = x.mul_(1.5).add_(0.1)
            x = F.dropout(norm(conv(x)), 0.2, self.training)
        result: torch.Tensor = self.fc(x.mean((2, 3)))
        return result


SMALL_DENSENET: dict[str, Any] = {"num_classes": 10, "block_config": (2, 2, 3, 2), "growth_rate": 16}
SMALL_VIT: dict[str, Any] = {"num_classes": 10, "img_size": 32, "depth": 4}
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (lambda: cifar_resnet(20), 16),
    "resnet18, a stem with a pool": (lambda: torchvision.models.resnet18(num_classes=10), 32),
    "vgg, in place": (small_vgg, 32),
    "densenet, wide cuts": (lambda: timm.create_model("densenet121", **SMALL_DENSENET, drop_rate=0.2), 32),
    "efficientnet, drop path": (lambda: timm.create_model("efficientnet_b0", num_classes=10, drop_path_rate=0.3), 64),
    "overwriting": (Overwriting, 8),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", **SMALL_VIT, drop_path_rate=0.2), 32),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_statistics_are_those_of_backpropagation(name: str) -> None:
    make, side = MODELS[name]
    x, y = torch.randn(2, 3, side, side), torch.tensor([1, 3])
    found: list[tuple[torch.Tensor, dict[str, torch.Tensor | None], dict[str, torch.Tensor | None]]] = []
    for method in ("bp", "checkpoint"):
        torch.manual_seed(0)
        model = make()
        local = localize(model, method, example_inputs=x)
        torch.manual_seed(1)
        (out,) = local.steps(x, y)
        out.loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        found.append((out.loss.detach(), gradients, {n: b.clone() for n, b in model.named_buffers()}))
    assert torch.equal(found[0][0], found[1][0])
    for before, after in zip(found[0][1:], found[1][1:], strict=True):
        assert before.keys() == after.keys()
        for key in before:
            a, b = before[key], after[key]
            assert a is b is None or (a is not None and b is not None and torch.equal(a, b)), key


WAYS: tuple[tuple[Recompute, ...], ...] = (("layers",), ("norms",), ("layers", "norms"), ("layers", "blocks"))


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "auglocal") for name in MODELS), ("resnet", "dgl"), ("resnet", "mlaan")]
)
def test_recomputed_activations_change_nothing(name: str, method: str) -> None:
    make, side = MODELS[name]
    x, y = torch.randn(2, 3, side, side), torch.tensor([1, 3])
    found: list[dict[str, torch.Tensor | None]] = []
    for recompute in ((), *WAYS):
        torch.manual_seed(0)
        local = localize(make(), method, modules=3, recompute=recompute, seed=0, example_inputs=x)
        assert local.plan.modules[0].recompute == recompute
        torch.manual_seed(1)
        losses = []
        for out in local.steps(x, y):
            out.loss.backward()
            losses.append(out.loss.detach())
        gradients = {n: p.grad for n, p in local.named_parameters()}
        found.append({"losses": torch.stack(losses), **gradients, **dict(local.named_buffers())})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, before in found[0].items():
            after = other[key]
            assert before is after is None or (before is not None and after is not None and torch.equal(before, after))


@pytest.mark.slow
def test_auxiliary_networks_take_less_memory() -> None:
    peaks = {
        recompute: peak_step_bytes(
            localize(cifar_resnet(32), d=6, recompute=recompute, example_inputs=torch.empty(2, 3, 32, 32)), 1024
        )
        for recompute in ((), *WAYS)
    }
    map_bytes = 1024 * 16 * 32 * 32 * 4
    assert peaks["layers", "blocks"] < 7.6 * map_bytes
    assert peaks["layers", "blocks"] < peaks["layers", "norms"] < peaks["norms",] < peaks[()]
    assert peaks["layers", "blocks"] < peaks["layers",] < peaks[()]


def test_what_cannot_be_computed_anew_is_refused() -> None:
    x = torch.empty(2, 3, 8, 8)
    with pytest.raises(MethodError, match=r"recompute='stem' is unknown. .*'layers', 'blocks', 'norms'"):
        localize(cifar_resnet(8), recompute="stem", example_inputs=x)
    with pytest.raises(MethodError, match="'norms' is a part of recompute='blocks'"):
        localize(cifar_resnet(8), recompute=["norms", "blocks"], example_inputs=x)
    plan = localize(cifar_resnet(8), recompute=True, d=2, example_inputs=x).plan
    assert [m.recompute for m in plan.modules] == [("layers", "blocks")] * (len(plan.modules) - 1) + [("layers",)]
    assert "recomputes layers and blocks" in str(plan)


def test_only_what_crosses_between_layers_is_kept() -> None:
    model = cifar_resnet(32)
    x = torch.empty(2, 3, 32, 32)
    plain = peak_step_bytes(localize(model, "bp", example_inputs=x), 1024)
    found = peak_step_bytes(localize(model, "checkpoint", max_cut=1, example_inputs=x), 1024)
    assert plain == pytest.approx(2.58e9, rel=0.01)
    # Checkpointing each residual block by hand takes 0.82 GB; here the stem, one more full map of 16 channels, too.
    assert found == pytest.approx(0.82e9 - 1024 * 16 * 32 * 32 * 4, rel=0.01)


def test_the_plan_says_so() -> None:
    local = localize(cifar_resnet(8), "checkpoint", example_inputs=torch.empty(2, 3, 8, 8))
    assert "recomputes layers" in str(local.plan)
    assert type(local.plan).from_json(local.plan.to_json()) == local.plan


def test_modules_are_refused() -> None:
    with pytest.raises(MethodError, match="'checkpoint' trains one module, and 2 were asked for"):
        localize(cifar_resnet(8), "checkpoint", modules=2, example_inputs=torch.empty(2, 3, 8, 8))
