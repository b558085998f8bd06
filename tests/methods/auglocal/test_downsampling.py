"""When copies halve resolution: the four policies, against hand-computed channels, strides and parameters."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from localize import AuxiliaryBlock, LocalGraphModule, localize
from localize.methods.auglocal.selection import uniform
from passes.adapt.adapter import Adapter
from passes.adapt.placement import place
from passes.adapt.resolution import Policy, base_width, doublings, owed_halvings, reduction
from passes.ir import Network
from passes.pipeline import analyse


@cache
def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = torchvision.models.get_model(name)
        return model


@cache
def network(name: str, size: int) -> Network:
    return analyse(meta(name), (2, 3, size, size))


@cache
def local(name: str, **options: Any) -> LocalGraphModule:
    return localize(meta(name), last="single", tau=0.0, head_norm=False, **options)


def blocks(name: str, layer: int, **options: Any) -> tuple[AuxiliaryBlock, ...]:
    auxiliary = local(name, **options).plan.modules[layer].auxiliary
    assert auxiliary is not None
    assert all(block.adapter is None for block in auxiliary.blocks)
    return auxiliary.blocks


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_doublings(before: int, after: int) -> None:
    """AugLocal (ICLR 2024), section 3.2, as released: floor(log2(C_beta // C_previous))."""
    assert doublings(before, after) == (math.floor(math.log2(after // before)) if after >= before else 0)


# Bottlenecks ----------------------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """Of ResNet-101 at 224x224: the layers of a stage, the width of their 3x3 convolutions, their resolution."""

    layers: range
    width: int
    size: int


RESNET101 = (Stage(range(1, 4), 64, 56), Stage(range(4, 8), 128, 28), Stage(range(8, 31), 256, 14),
             Stage(range(31, 34), 512, 7))  # fmt: skip


def stage_of(layer: int) -> Stage:
    return next(stage for stage in RESNET101 if layer in stage.layers)


def bottleneck(inputs: int, width: int, stride: int) -> int:
    """Parameters of 1x1, 3x3 and 1x1 convolutions with norms, and of the projection where shape changes."""
    main = inputs * width + 9 * width * width + width * 4 * width + 2 * (width + width + 4 * width)
    projected = stride > 1 or inputs != 4 * width
    return main + projected * (inputs * 4 * width + 2 * 4 * width)


def test_c_of_a_bottleneck_is_its_base_width() -> None:
    found = network("resnet101", 224)
    assert [base_width(found, i) for i in range(34)] == [64, *(stage_of(i).width for i in range(1, 34))]
    for name in ("resnet34", "vgg13_bn", "mobilenet_v2"):
        other = network(name, 64)
        assert [base_width(other, layer.index) for layer in other.layers] == [
            layer.output.channels for layer in other.layers
        ]
    # ResNeXt's grouped convolution is spatial, a depthwise one is not.
    assert base_width(network("resnext50_32x4d", 64), 1) == 128


@pytest.mark.parametrize("downsampling", ["deferred", "channels"])
@pytest.mark.parametrize("d", [2, 3])
def test_bottlenecks(d: int, downsampling: str) -> None:
    """ResNet-101 of torchvision, every auxiliary network: halvings owed, at most one a block, debts carried."""
    net = local("resnet101", d=d, downsampling=downsampling)
    assert len(net.plan.layers) == len(net.plan.modules) == 34
    for layer in range(33):
        channels, size = (64, 56) if layer == 0 else (4 * stage_of(layer).width, stage_of(layer).size)
        selected = uniform(layer, d - 1, 34)
        found = blocks("resnet101", layer, d=d, downsampling=downsampling)
        params = 0
        for index, block in zip(selected, found, strict=True):
            stage = stage_of(index)
            stride = 2 if size > stage.size else 1
            assert (block.source, block.in_channels, block.out_channels) == (index, channels, 4 * stage.width)
            assert (block.stride, block.projection) == (stride, stride > 1 or channels != 4 * stage.width)
            params += bottleneck(channels, stage.width, stride)
            channels, size = block.out_channels, size // stride
        auxiliary = net.local_modules[layer].auxiliary
        assert auxiliary is not None
        assert sum(p.numel() for p in auxiliary.parameters()) == params + channels * 1000 + 1000


def test_a_bottleneck_as_emitted() -> None:
    """ResNet-101, d=2: the last block behind the stem, 64 -> 2048 channels, the stride on the 3x3 convolution."""
    auxiliary = local("resnet101", d=2).local_modules[0].auxiliary
    assert isinstance(auxiliary, nn.Sequential)
    found = [m for m in auxiliary[0].modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in found] == [
        (64, 512, 1, 1), (512, 512, 3, 2), (512, 2048, 1, 1), (64, 2048, 1, 2),
    ]  # fmt: skip
    with torch.device("meta"):
        assert tuple(auxiliary[0](torch.empty(2, 64, 56, 56)).shape) == (2, 2048, 28, 28)


@pytest.mark.parametrize(("name", "d"), [("resnet34", 2), ("resnet34", 4), ("resnet101", 3)])
def test_width_and_resolution_owe_the_same_on_resnets(name: str, d: int) -> None:
    assert local(name, d=d).plan.modules == local(name, d=d, downsampling="channels").plan.modules


# VGG ------------------------------------------------------------------------------------------------------------------

VGG13 = (64, 64, 128, 128, 256, 256, 512, 512, 512, 512)
SIZES = (224, 112, 112, 56, 56, 28, 28, 14, 14, 7)
"""Output of each layer of VGG-13: a pooling belongs to the convolution before it."""

# Layer, d -> layers copied, strides under "deferred" and under "channels".
VGG: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    (0, 2): ((9,), (2,), (2,)),
    (0, 3): ((4, 9), (2, 2), (2, 2)),
    (0, 4): ((3, 6, 9), (2, 2, 2), (2, 2, 2)),  # 64 -> 128 -> 512 -> 512: the last pays what the second left
    (1, 3): ((5, 9), (2, 2), (2, 2)),
    (2, 2): ((9,), (2,), (2,)),
    (3, 4): ((5, 7, 9), (2, 2, 2), (2, 2, 1)),
    (4, 3): ((6, 9), (2, 2), (2, 1)),  # 256 -> 512 -> 512
    (5, 4): ((6, 8, 9), (1, 2, 2), (2, 1, 1)),  # width doubles one layer before resolution halves
    (6, 3): ((8, 9), (2, 2), (1, 1)),  # 512 -> 512, while the primary halves twice
    (7, 2): ((9,), (2,), (1,)),
    (8, 4): ((9,), (2,), (1,)),  # one layer follows
}


@pytest.mark.parametrize("downsampling", ["deferred", "channels"])
@pytest.mark.parametrize(("layer", "d"), VGG)
def test_vgg13(layer: int, d: int, downsampling: Policy) -> None:
    """Max-pool before the convolution; 3x3 convolution with bias and norm; halvings owed as each policy counts."""
    selected, deferred, by_width = VGG[layer, d]
    strides = deferred if downsampling == "deferred" else by_width
    found = blocks("vgg13_bn", layer, d=d, downsampling=downsampling)
    auxiliary = local("vgg13_bn", d=d, downsampling=downsampling).local_modules[layer].auxiliary
    assert isinstance(auxiliary, nn.Sequential)
    assert tuple(block.source for block in found) == selected
    assert tuple(block.stride for block in found) == strides
    channels, size = VGG13[layer], SIZES[layer]
    for block, module, index in zip(found, auxiliary, selected, strict=False):
        assert (block.in_channels, block.out_channels, block.projection) == (channels, VGG13[index], False)
        assert sum(p.numel() for p in module.parameters()) == 9 * channels * VGG13[index] + 3 * VGG13[index]
        kinds = [type(m) for m in module.modules() if not list(m.children())]
        pooled = [nn.MaxPool2d] * (block.stride - 1)
        assert kinds == [*pooled, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
        channels, size = VGG13[index], size // block.stride
        with torch.device("meta"):
            assert tuple(module(torch.empty(2, block.in_channels, size * block.stride, size * block.stride)).shape) == (
                2, channels, size, size,
            )  # fmt: skip


# All policies ---------------------------------------------------------------------------------------------------------

NETWORKS = ["resnet34", "vgg13_bn", "mobilenet_v2"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("hidden", [1, 3])
def test_match_restores_each_layers_resolution_at_once(name: str, hidden: int) -> None:
    found = network(name, 64)
    adapter = Adapter(found)
    halvings = []
    for layer in range(len(found.layers) - 1):
        selected = uniform(layer, hidden, len(found.layers))
        recipes, notes = place(adapter, layer, selected, "match")
        assert not notes
        for recipe, source in zip(recipes, selected, strict=True):
            assert recipe.repaired
            assert recipe.output.shape == found.layers[source].output.shape
            halvings.append(recipe.stride)
    assert max(halvings) >= (8 if hidden == 1 else 2)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_match_trains(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5) if name == "resnet18" else _vgg()
    net = localize(model, d=2, downsampling="match", last="single", example_inputs=torch.empty(2, 3, 64, 64), seed=0)
    planned = net.plan.modules[0].auxiliary
    assert planned is not None
    assert planned.blocks[0].stride == reduction(net.plan.layers[0].output, net.plan.layers[-1].output) >= 8
    assert "/8 head" in str(net.plan)
    for out in net.steps(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])):
        out.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def _vgg() -> nn.Module:
    widths = (3, 4, 4, 8, 8)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.parametrize("name", NETWORKS)
def test_none_never_halves(name: str) -> None:
    found = network(name, 64)
    for layer in range(len(found.layers) - 1):
        recipes, notes = place(Adapter(found), layer, uniform(layer, 2, len(found.layers)), "none")
        assert not notes
        assert {recipe.output.spatial for recipe in recipes} == {found.layers[layer].output.spatial}


@pytest.mark.parametrize("policy", get_args(Policy))
@pytest.mark.parametrize("name", NETWORKS)
def test_at_most_one_halving_a_block_but_under_match(name: str, policy: Policy) -> None:
    found = network(name, 64)
    adapter = Adapter(found)
    for layer in range(0, len(found.layers) - 1, 3):
        now = found.layers[layer].output
        for recipe in place(adapter, layer, uniform(layer, 3, len(found.layers)), policy)[0]:
            due = 2 ** owed_halvings(now, found.layers[recipe.source].output)
            expected = {"deferred": min(2, due), "match": due, "none": 1}.get(policy)
            assert recipe.stride == expected if expected else recipe.stride in (1, 2)
            now = recipe.output
