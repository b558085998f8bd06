"""Cuts of several tensors: densely connected networks, U-shaped ones, and what the user asks for."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from localize import LocalGraphModule, PartitionError, Plan, localize
from localize.compiler.inputs import input_of, leaf_policy
from localize.methods.networks.merge import Merged
from passes.ir import Network
from passes.pipeline import analyse
from tests.models.wide import CLASSES, EXAMPLE, MAKERS, TwoWays, UNet, conv
from tests.tools.isolated import assert_isolated
from tests.tools.oracle import assert_equals_oracle

X, Y = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)


@pytest.mark.parametrize("modules", [None, 2, 4])
@pytest.mark.parametrize("max_cut", [2, 3, 5])
@pytest.mark.parametrize("name", MAKERS)
def test_wide_cuts_equal_the_oracle(name: str, max_cut: int, modules: int | None) -> None:
    model = MAKERS[name]()
    size = 32 if name == "densenet" else 16
    x = torch.randn(4, 3, size, size)
    options: dict[str, Any] = {"d": 3, "last": "single", "max_cut": max_cut, "modules": modules}
    local = localize(model, seed=0, example_inputs=x, **options)
    assert max(layer.width for layer in local.plan.layers) <= max_cut
    with torch.no_grad():
        assert torch.equal(local.eval()(x), model.eval()(x))
    local.train()
    assert_isolated(local, x, Y)
    assert_equals_oracle(local, x, Y, max_cut)
    assert Plan.from_json(local.plan.to_json()) == local.plan


def test_a_u_net_trains() -> None:
    torch.manual_seed(0)
    model = UNet()
    local = localize(model, d=3, max_cut=3, seed=0, example_inputs=EXAMPLE)
    # On the way down each resolution leaves a skip behind; on the way up they are used, the last made first.
    assert [layer.width for layer in local.plan.layers] == [1, 2, 3, 3, 2, 1, 1]
    optimizer = torch.optim.Adam(local.parameters(), lr=0.01)
    prototypes = torch.randn(CLASSES, 3, 16, 16)
    y = torch.arange(CLASSES).repeat(4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(20):
        x = prototypes[y] + 0.3 * torch.randn(len(y), 3, 16, 16)
        for out in local.steps(x, y):
            out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    x = prototypes[y] + 0.3 * torch.randn(len(y), 3, 16, 16)
    assert float((model.eval()(x).argmax(1) == y).float().mean()) > 0.9


def test_what_the_newest_does_not_reach_is_merged_in() -> None:
    local = localize(TwoWays(), d=2, last="single", modules=2, max_cut=2, seed=0, example_inputs=EXAMPLE)
    first = local.plan.modules[0]
    assert first.auxiliary is not None
    assert len(first.auxiliary.merged) == 1
    assert isinstance(local.local_modules[0].auxiliary, Merged)
    assert_isolated(local, X, Y)
    assert "+1 " in str(local.plan)


def network(name: str, **options: Any) -> Network:
    with torch.device("meta"):
        model = timm.create_model(name)
    return analyse(model, *input_of(model, None), leaf_policy(), **options)


@pytest.mark.parametrize(
    ("name", "max_cut"),
    [("crossvit_tiny_240", 2), ("tnt_s_patch16_224", 2), ("dla34", 2), ("efficientvim_m4", 3), ("hrnet_w18_small", 6)],
)
def test_pieces_of_an_eighth(name: str, max_cut: int) -> None:
    """With a few live tensors, no layer holds more than an eighth of the operations that have weights."""
    found = network(name, max_cut=max_cut)
    weighted = [sum(found.shapes.costs[n].macs > 0 for n in names) for names in found.partition.nodes]
    total = sum(cost.macs > 0 for cost in found.shapes.costs.values())
    assert max(weighted) <= total / 8


def test_densenet_121() -> None:
    assert len(network("densenet121", max_cut=32).layers) >= 58
    assert len(network("densenet121").layers) >= 8


def test_one_tensor_where_that_gives_eight_layers() -> None:
    assert {layer.width for layer in network("resnet18").layers} == {1}
    widths = [layer.width for layer in network("test_resnet").layers]
    assert max(widths) == 2
    assert len(widths) >= 8


@pytest.mark.parametrize(("granularity", "expected"), [("minimal", 25), ("block", 13)])
def test_granularity_of_a_vision_transformer(granularity: str, expected: int) -> None:
    found = network("vit_tiny_patch16_224", granularity=granularity)
    assert len(found.layers) == expected


def test_granularity_by_class() -> None:
    from timm.models.vision_transformer import Block

    found = network("vit_tiny_patch16_224", granularity=Block)
    assert [layer.name for layer in found.layers] == ["patch_embed", *(f"blocks.{i}" for i in range(12))]


def test_granularity_by_names() -> None:
    found = network("resnet18", granularity=["layer3.1", "maxpool", "layer1"])
    assert [layer.name for layer in found.layers] == ["maxpool", "layer1", "layer3.1"]
    assert [layer.output.channels for layer in found.layers] == [64, 64, 256]


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        ("blocks", "is unknown"),
        (nn.LSTM, "has no LSTM"),
        ([], "is unknown"),
        (["layer9"], "unknown module 'layer9'"),
        (["layer1.0.conv1"], "2 tensors cross there.*max_cut=2"),
        (["fc"], "leaves a layer without"),
        (["conv1", "bn1"], "leaves a layer without"),
    ],
)
def test_granularity_that_cannot_be(granularity: Any, message: str) -> None:
    with pytest.raises(PartitionError, match=message) as caught:
        network("resnet18", granularity=granularity, max_cut=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("max_cut", [0, -1, 1.5, True, "2"])
def test_max_cut_that_is_none(max_cut: Any) -> None:
    with pytest.raises(PartitionError, match=r"max_cut must be an integer >= 1, got"):
        network("resnet18", max_cut=max_cut)


class Twice(nn.Module):
    """One module called in two places, with work between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.last = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(self.stem(x)))
        logits: torch.Tensor = self.head(self.last(self.first(x)).mean((2, 3)))
        return logits


def test_a_module_called_twice_stays_in_one_layer_whatever_the_width() -> None:
    for max_cut in (None, 1, 4):
        local = localize(Twice(), d=2, last="single", max_cut=max_cut, seed=0, example_inputs=EXAMPLE)
        owners = [m.index for m in local.plan.modules if "first.0.weight" in m.parameters]
        assert len(owners) == 1
        assert "second.0.weight" in local.plan.modules[owners[0]].parameters
        assert_isolated(local, X, Y)
    with pytest.raises(PartitionError, match="between two uses of the same parameters"):
        localize(Twice(), d=2, granularity=["stem", "second"], example_inputs=EXAMPLE)


def test_a_deep_copy_has_the_same_cuts() -> None:
    import copy

    local: LocalGraphModule = localize(TwoWays(), d=2, max_cut=3, seed=0, example_inputs=EXAMPLE)
    twin = copy.deepcopy(local)
    assert_isolated(twin, X, Y)
    for a, b in zip(local.steps(X, Y), twin.steps(X, Y), strict=True):
        assert torch.equal(a.loss, b.loss)


def test_a_copy_whose_shortcut_is_another_tensor_of_the_cut_keeps_its_width() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_byobnet")
    plan = localize(model, d=3).plan
    assert max(layer.width for layer in plan.layers) > 1
    for module in plan.modules[:-1]:
        assert module.auxiliary is not None
        for block in module.auxiliary.blocks:
            assert block.source is not None
            assert block.out_channels == plan.layers[block.source].output.channels
            # Layers 7, 11 and 16 end in a pooled shortcut that none of their own weights lies on: nothing to copy.
            assert block.source not in (7, 11, 16)


def test_a_plan_shows_why_it_is_cut_where_it_is(resnet: nn.Module) -> None:
    plan = localize(resnet, "bp", max_cut=1, example_inputs=EXAMPLE).plan
    assert [border.layer for border in plan.borders if border.refusal is None] == [0, 1, 2, 3]
    assert str(plan.borders[3]).startswith("after layer1.0.conv1 (2 tensors): not cut: 2 tensors cross it")
    read = Plan.from_json(plan.to_json())
    assert read == plan
    assert read.borders == ()
