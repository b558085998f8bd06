"""AugLocal's options on whole networks: selection, plain convolutions, and what plans say."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from localize import Plan, localize
from localize.methods.auglocal.selection import pyramid, repetitive, sequential
from localize.models import cifar_resnet
from tests.tools.auglocal import assert_trains, auxiliaries, resnet

PLAIN = ["conv1x1", "conv3x3"]


class Tokens(nn.Module):
    """Patches, then token layers, NLC; or the same on images with channels last, NHWC."""

    def __init__(self, images: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(5))
        self.head = nn.Linear(8, 5)
        self.images = images

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x.permute(0, 2, 3, 1) if self.images else x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        result: torch.Tensor = self.head(x.mean((1, 2) if self.images else 1))
        return result


# Selection ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["joint", "single"])
@pytest.mark.parametrize("d", [2, 4])
@pytest.mark.parametrize(("name", "choose"), [("sequential", sequential), ("repetitive", repetitive)])
def test_strategies(name: str, choose: Any, d: int, last: str) -> None:
    local = resnet(d=d, selection=name, last=last)
    modules = local.plan.modules
    for module in modules[:-1]:
        layer = module.layers[-1]
        expected = choose(layer, pyramid(d - 1, module.index, len(modules), 0.5), 10)
        assert module.auxiliary is not None
        assert module.auxiliary.selected == expected
        assert module.auxiliary.depth == len(expected) + 1


def test_repetitive_copies_have_the_width_and_resolution_of_their_module() -> None:
    """AugLocal (ICLR 2024), table 10, "repe." without downsampling: 32R-32R-32R-32R."""
    (block, *_), plan = auxiliaries(resnet(d=5, tau=0.0, selection="repetitive"))[4].blocks, resnet(d=5, tau=0.0).plan
    assert plan.layers[4].output.channels == 32
    assert (block.source, block.in_channels, block.out_channels, block.stride, block.projection) == (
        4,
        32,
        32,
        1,
        False,
    )
    found = auxiliaries(resnet(d=5, tau=0.0, selection="repetitive"))[4].blocks
    assert found == (block,) * 4


@pytest.mark.parametrize("name", ["sequential", "repetitive"])
def test_strategies_train(name: str) -> None:
    assert_trains(localize(cifar_resnet(14, width=4), d=3, max_cut=1, selection=name, seed=0))


# Plain convolutions ---------------------------------------------------------------------------------------------------


def stack_macs(kind: str, channels: int, width: int, size: int, strides: list[int], classes: int) -> int:
    """By hand: square images, one width, a linear classifier."""
    total, kernel = 0, 9 if kind == "conv3x3" else 1
    for stride in strides:
        size = math.ceil(size / stride)
        total += kernel * channels * width * size * size
        channels = width
    return total + channels * classes


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("d", [2, 3, 6])
def test_plain_convolutions_cost_what_auglocals_do(kind: str, d: int) -> None:
    """As nearly as a whole number of channels allows, found by trying them all; they halve where AugLocal's do."""
    local = resnet(32, d=d, selection=kind)
    for module, plain, own in zip(local.plan.modules, auxiliaries(local), auxiliaries(resnet(32, d=d)), strict=False):
        assert plain.depth == own.depth
        assert plain.selected == ()
        strides = [block.stride for block in own.blocks]
        assert [(block.kind, block.source, block.stride) for block in plain.blocks] == [
            (kind, None, s) for s in strides
        ]
        (width,) = {block.out_channels for block in plain.blocks}
        output = local.plan.layers[module.layers[-1]].output

        def cost(width: int, output: Any = output, strides: list[int] = strides) -> int:
            return stack_macs(kind, output.channels, width, output.shape[2], strides, 10)

        assert plain.macs == cost(width)
        nearest = min(range(1, 3000), key=lambda c: abs(cost(c) - own.macs))
        assert width == nearest
        assert abs(plain.macs / own.macs - 1) < 0.03


@pytest.mark.parametrize(("width", "channels"), [(1, (16, 32)), (2.5, (40, 80)), (0.01, (1, 1))])
def test_a_width_of_ones_own(width: float, channels: tuple[int, int]) -> None:
    found = auxiliaries(resnet(d=3, selection="conv3x3", width=width))
    assert {block.out_channels for block in found[0].blocks} == {channels[0]}
    assert {block.out_channels for block in found[-1].blocks} == {channels[1]}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_convolutions_train_and_show(kind: str) -> None:
    local = localize(cifar_resnet(14, width=4), d=3, max_cut=1, selection=kind, width=2, seed=0)
    assert_trains(local)
    assert f"d=3: {kind}(8)/2 {kind}(8)/2 head" in str(local.plan)
    block = local.local_modules[0].get_submodule("auxiliary.block_0")
    pool = [nn.AvgPool2d] if kind == "conv1x1" else []
    assert [type(part) for part in block.children()] == [*pool, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


@pytest.mark.parametrize("images", [False, True])
def test_where_channels_come_last_they_are_linear_layers(images: bool) -> None:
    model, example = Tokens(images), torch.empty(2, 3, 16, 16)
    local = localize(model, d=3, selection="conv3x3", seed=0, example_inputs=example, tau=0.0)
    assert_trains(local)
    assert {block.kind for auxiliary in auxiliaries(local)[1:] for block in auxiliary.blocks} == {"linear"}
    assert "d=3: linear(" in str(local.plan)
    # Five linear layers of one size: as wide as the copies, at the same cost.
    own = localize(model, d=3, seed=0, example_inputs=example, tau=0.0)
    assert auxiliaries(local)[-1].macs == auxiliaries(own)[-1].macs


# What plans say -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["uniform", "sequential", "repetitive", "conv3x3"])
def test_fewer_layers_than_asked_for(selection: str) -> None:
    """As many hidden layers as follow, and the plan says so."""
    plan = resnet(d=5, tau=0.0, last="single", selection=selection).plan
    depths = {m.index: m.auxiliary.depth for m in plan.modules if m.auxiliary}
    assert depths == {layer: min(5, 10 - layer) for layer in range(9)}
    notes = [module.note for module in plan.modules]
    assert notes[:6] == [""] * 6
    assert notes[6:] == [
        "d=4 instead of 5, since only 3 layers follow",
        "d=3 instead of 5, since only 2 layers follow",
        "d=2 instead of 5, since only 1 layer follows",
        "",
    ]


@pytest.mark.parametrize(("d", "modules"), [(9, 2), (10, 1), (30, 1)])
def test_d_that_leaves_no_local_loss(d: int, modules: int) -> None:
    plan = resnet(d=d).plan
    assert len(plan.modules) == modules
    assert resnet(d=d, max_aux_macs=1.5).plan.modules == plan.modules
    note = f"the output loss trains all 10 layers, since d={d} leaves none to a local loss"
    assert plan.modules[-1].note == (note if modules == 1 else "")


def test_modules_asked_for_say_nothing_of_the_last() -> None:
    assert resnet(d=4, modules=1).plan.modules[0].note == ""


def test_options_are_in_the_plan() -> None:
    plan = resnet(d=3, selection="conv1x1", width=2, max_aux_macs=1.5, downsampling="match").plan
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert dict(again.options) | {"width": 2, "max_aux_macs": 1.5, "downsampling": "match"} == dict(again.options)
    first = str(plan).splitlines()[0]
    assert "selection=conv1x1, width=2, downsampling=match, max_aux_macs=1.5, aux_init=fresh" in first
    assert dataclasses.replace(plan, options={}) != plan


def test_a_plan_of_an_earlier_version_is_read() -> None:
    plan = resnet(d=3).plan
    assert Plan.from_json(plan.to_json().replace(',\n            "kind": "copy"', "")) == plan


def test_grouped_modules_take_every_option() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    choices: list[dict[str, Any]] = [
        {"selection": "conv1x1"},
        {"downsampling": "match"},
        {"max_aux_macs": 0.5},
        {"aux_init": "copy"},
    ]
    for options in choices:
        assert len(localize(model, d=3, modules=4, **options).plan.modules) == 4
