"""Local layers of well-known networks, found without a hint, at their default input size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from localize import Plan, localize
from localize.models import cifar_resnet

aten = torch.ops.aten


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name)


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name)


# Name -> constructor, L, names of the first and the last layer, and the module whose parameters are the classifier's.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, str, str, str]] = {
    "resnet34": (_torchvision("resnet34"), 17, "conv1", "layer4.2", "fc"),
    "resnet101": (_torchvision("resnet101"), 34, "conv1", "layer4.2", "fc"),
    "vgg13_bn": (_torchvision("vgg13_bn"), 10, "features.0", "features.31", "classifier"),
    "vgg19_bn": (_torchvision("vgg19_bn"), 16, "features.0", "features.49", "classifier"),
    "mobilenet_v2": (_torchvision("mobilenet_v2"), 19, "features.0", "features.18", "classifier"),
    "cifar_resnet32": (lambda: cifar_resnet(32), 16, "conv1", "layer3.4", "fc"),
    "cifar_resnet110": (lambda: cifar_resnet(110), 55, "conv1", "layer3.17", "fc"),
    "regnetx_004": (_timm("regnetx_004"), 23, "stem", "s4.b12", "head"),
    "efficientnet_b0": (_timm("efficientnet_b0"), 18, "conv_stem", "conv_head", "classifier"),
    "convnext_tiny": (_timm("convnext_tiny"), 22, "stem", "stages.3.blocks.2", "head"),
}


def analyse(name: str) -> tuple[nn.Module, Plan]:
    with torch.device("meta"):
        model = NETWORKS[name][0]()
    return model, localize(model, "bp").plan


def macs(model: nn.Module, plan: Plan) -> int:
    """As torch counts them: half the floating-point operations of convolutions and linear layers at batch 1."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, *plan.input.shape[1:]))
    counts = counter.get_flop_counts()["Global"]
    assert set(counts) <= {aten.convolution, aten.addmm, aten.mm}
    return int(sum(counts.values()) // 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers(name: str) -> None:
    _, count, first, last, classifier = NETWORKS[name]
    model, plan = analyse(name)
    layers = plan.layers
    assert len(layers) == count
    assert [layer.index for layer in layers] == list(range(count))
    assert len({layer.name for layer in layers}) == count
    assert (layers[0].name, layers[-1].name) == (first, last)
    assert plan.classifier_params == sum(p.numel() for p in model.get_submodule(classifier).parameters())
    assert plan.params == sum(layer.params for layer in layers) + plan.classifier_params
    assert plan.params == sum(p.numel() for p in model.parameters())
    assert plan.macs == macs(model, plan)
    assert all(layer.params > 0 and layer.macs > 0 and layer.activation_bytes > 0 for layer in layers)
    assert [layer.input for layer in layers] == [plan.input, *(layer.output for layer in layers[:-1])]


def test_vggs_linear_layers_are_the_classifiers() -> None:
    model, plan = analyse("vgg13_bn")
    assert isinstance(model, torchvision.models.VGG)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 3
    assert plan.classifier_params == sum(m.weight.numel() + m.bias.numel() for m in linear)
    assert plan.classifier_macs == sum(m.weight.numel() for m in linear)
    assert [str(layer.output) for layer in plan.layers[-2:]] == ["512x14x14", "512x7x7"]


def test_a_layer_is_what_belongs_to_its_convolution() -> None:
    """A stage of VGG: norm, activation and pooling go with the convolution before them."""
    model, plan = analyse("vgg13_bn")
    first, second, third = plan.layers[:3]
    assert (str(first.output), str(second.output), str(third.output)) == ("64x224x224", "64x112x112", "128x112x112")
    assert second.params == sum(p.numel() for i in (3, 4) for p in model.get_submodule(f"features.{i}").parameters())


def test_activation_bytes_of_the_smallest_net(resnet: nn.Module) -> None:
    plan = localize(resnet, "bp", max_cut=1, example_inputs=torch.empty(2, 3, 32, 32)).plan
    size = 4 * 32 * 32 * 4
    # Convolution, norm, activation in the stem; two of each and an addition in the block.
    assert [layer.activation_bytes for layer in plan.layers[:2]] == [3 * size, 7 * size]


@pytest.mark.parametrize("size", [192, 256])
def test_layers_do_not_depend_on_the_input_size(size: int) -> None:
    with torch.device("meta"):
        model = torchvision.models.mobilenet_v2()
    plan = localize(model, "bp", example_inputs=torch.empty(1, 3, size, size)).plan
    _, expected = analyse("mobilenet_v2")
    assert [(layer.name, layer.params) for layer in plan.layers] == [
        (layer.name, layer.params) for layer in expected.layers
    ]
