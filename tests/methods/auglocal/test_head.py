"""Heads of AugLocal's auxiliary networks: copies of the model's own classifier, and weights in its scale."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from localize import LocalGraphModule, localize
from localize.models import cifar_resnet
from passes.errors import MethodError


def heads(local: LocalGraphModule) -> list[nn.Module]:
    found = []
    for module in local.local_modules[:-1]:
        assert isinstance(module.auxiliary, nn.Sequential)
        found.append(module.auxiliary.get_submodule("head"))
    return found


def on_meta(build: Any, **options: Any) -> LocalGraphModule:
    with torch.device("meta"):
        model = build()
    return localize(model, d=2, **options)


@pytest.mark.parametrize("width", [None, 256])
def test_vgg_with_its_own_classifier(width: int | None) -> None:
    local = on_meta(lambda: torchvision.models.vgg11(num_classes=10), head="classifier", head_width=width)
    hidden = width or 4096
    for module, head in zip(local.plan.modules, heads(local), strict=False):
        assert module.auxiliary is not None
        linears = [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]
        assert linears == [(512 * 49, hidden), (hidden, hidden), (hidden, 10)]
        assert module.auxiliary.head == "classifier(512, 10)"
        assert module.note == ""
        costs = sum(p.numel() for p in module_parameters(local, module.index))
        assert module.auxiliary.params == costs


def module_parameters(local: LocalGraphModule, index: int) -> list[nn.Parameter]:
    auxiliary = local.local_modules[index].auxiliary
    assert auxiliary is not None
    return list(auxiliary.parameters())


def test_a_transformers_class_token_and_norm() -> None:
    local = on_meta(lambda: timm.create_model("test_vit", num_classes=7), head="classifier")
    assert {m.auxiliary.head for m in local.plan.modules[1:-1] if m.auxiliary} == {"classifier(64, 7)"}
    for head in heads(local)[1:]:
        tokens = torch.randn(2, 101, 64, device="meta")
        assert tuple(head(tokens).shape) == (2, 7)


def test_the_steps_train_every_parameter_of_copied_classifiers() -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=5)
    local = localize(model, d=2, head="classifier", example_inputs=torch.empty(2, 3, 32, 32), seed=0)
    for out in local.steps(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])):
        out.loss.backward()
    assert all(p.grad is not None for module in local.local_modules for p in module.parameters())


@pytest.mark.parametrize("std", [2e-5, 3.0])
def test_linear_heads_are_drawn_as_the_output_layer_was(std: float) -> None:
    model = cifar_resnet(8, width=8)
    output = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.normal_(output.weight, std=std)
    nn.init.zeros_(output.bias)
    for head in heads(localize(model, d=2, seed=0)):
        linear = head.get_submodule("classifier")
        assert isinstance(linear, nn.Linear)
        assert float(linear.weight.detach().std()) == pytest.approx(std, rel=0.2)
        assert not linear.bias.detach().any()


def test_an_output_layer_of_zeros_is_not_imitated() -> None:
    model = cifar_resnet(8, width=8)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
    for head in heads(localize(model, d=2, seed=0)):
        assert head.get_parameter("classifier.weight").detach().any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mlp"}, "head must be 'linear' or 'classifier', got 'mlp'"),
        ({"head": "classifier", "head_width": 0}, "head_width must be an integer >= 1 or None, got 0"),
        ({"head": "classifier", "head_width": 2.5}, "head_width must be an integer >= 1 or None, got 2.5"),
        ({"head_width": 8}, "no effect with head='linear'"),
        ({"head": "classifier", "pool": "attention"}, "pool='attention' has no effect with head='classifier'"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        localize(cifar_resnet(8), **options)


def test_a_map_has_no_classifier_to_copy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
    with pytest.raises(MethodError, match="gives no vector of logits"):
        localize(model, d=1, head="classifier", example_inputs=torch.empty(2, 3, 8, 8))
