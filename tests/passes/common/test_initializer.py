"""Fresh weights: in the scale of the layer's own initializer, from an explicit generator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from localize import localize
from localize.models import cifar_resnet
from passes.adapt.adapter import Adapter
from passes.adapt.rebuild import rebuild
from passes.adapt.retype import clone
from passes.common.initializer import Initializer
from passes.ir import TensorSpec
from passes.pipeline import analyse


def draw(seed: int = 0) -> Initializer:
    return Initializer(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("constant", [0.0, 1.0, 1e-6])
def test_constants_stay_and_are_widened(constant: float) -> None:
    fresh = draw().like(nn.Parameter(torch.full((8,), constant)), (12,))
    assert torch.equal(fresh, torch.full((12,), constant))


def test_a_zero_initialized_norm_stays_zero_and_a_trained_one_starts_anew() -> None:
    norm = nn.BatchNorm2d(8)
    nn.init.zeros_(norm.weight)
    assert torch.equal(clone(norm, {"num_features": 6}, draw()).get_parameter("weight"), torch.zeros(6))
    nn.init.normal_(norm.weight)
    norm.get_buffer("running_mean").fill_(3.0)
    fresh = clone(norm, {}, draw())
    assert isinstance(fresh, nn.BatchNorm2d)
    assert torch.equal(fresh.weight, torch.ones(8))
    assert torch.equal(fresh.get_buffer("running_mean"), torch.zeros(8))


@pytest.mark.parametrize("std", [0.02, 0.3])
def test_a_normal_keeps_its_deviation_whatever_the_fan_in(std: float) -> None:
    layer = nn.Conv2d(64, 64, 3)
    nn.init.normal_(layer.weight, std=std)
    fresh = clone(layer, {"in_channels": 16}, draw()).get_parameter("weight")
    assert tuple(fresh.shape) == (64, 16, 3, 3)
    assert float(fresh.detach().std()) == pytest.approx(std, rel=0.03)
    assert not torch.equal(fresh, layer.weight[:, :16])


@pytest.mark.parametrize(("inputs", "changed"), [(64, 16), (16, 64)])
def test_torchs_default_is_recognised_and_scaled_to_the_new_fan_in(inputs: int, changed: int) -> None:
    fresh = clone(nn.Linear(inputs, 256), {"in_features": changed}, draw())
    assert isinstance(fresh, nn.Linear)
    bound = 1 / math.sqrt(changed)
    assert bound * 0.98 < float(fresh.weight.detach().abs().max()) <= bound
    assert bound * 0.9 < float(fresh.bias.detach().abs().max()) <= bound


KINDS = {
    "he, fan out": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "he, fan in": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "glorot, uniform": nn.init.xavier_uniform_,
    "glorot, normal": nn.init.xavier_normal_,
    "lecun": lambda w: nn.init.normal_(w, std=w.shape[1] ** -0.5),
    "constant, cut off": lambda w: nn.init.trunc_normal_(w, std=0.05, a=-0.1, b=0.1),
    "constant, uniform": lambda w: nn.init.uniform_(w, -0.2, 0.2),
}


@pytest.mark.parametrize("inputs", [32, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_of_fans_holds_for_the_new_fans(kind: str, inputs: int) -> None:
    layer, expected = nn.Linear(128, 96), torch.empty(96, inputs)
    KINDS[kind](layer.weight)
    KINDS[kind](expected)
    fresh = clone(layer, {"in_features": inputs}, draw()).get_parameter("weight").detach()
    assert float(fresh.std()) == pytest.approx(float(expected.std()), rel=0.06)
    if "normal" not in kind and "he" not in kind and kind != "lecun":
        assert float(fresh.abs().max()) == pytest.approx(float(expected.abs().max()), rel=0.02)
    else:
        assert float(fresh.abs().max()) > 2.6 * float(fresh.std())


class Branch(nn.Module):
    """x + branch(x), whose branch starts as nothing in one of three ways; or the branch alone."""

    def __init__(self, way: str, shortcut: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(8))
        self.layer_scale = LayerScale(1e-6 if way == "layer scale" else 1.0)
        self.shortcut = shortcut
        if way != "layer scale":
            nn.init.zeros_(self.norm.weight if way == "norm" else self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer_scale(self.norm(self.conv(x)) * self.scale.view(1, 8, 1, 1))
        return x + y if self.shortcut else y


class LayerScale(nn.Module):
    """As a module that torch.fx leaves whole."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((8, 1, 1), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("way", ["norm", "scale", "layer scale"])
def test_a_branch_starts_as_nothing_only_beside_its_shortcut(way: str, shortcut: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Branch(way, shortcut), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    adapter = Adapter(analyse(model, (2, 3, 8, 8), max_cut=1, verify=False))
    assert adapter.network.layers[1].name == "1"
    recipe = adapter.adapt(1, TensorSpec((2, 8, 8, 8), layout="NCHW"), 1, "stride")
    x = torch.randn(2, 8, 8, 8)
    out = rebuild(adapter, recipe, draw())(x)
    assert torch.allclose(out, x, atol=1e-4) == shortcut
    assert float(out.detach().std()) > 0.1


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_generator_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        local = localize(cifar_resnet(8, width=4), d=2, seed=seed)
        return torch.cat([p.flatten() for m in local.local_modules for p in m.parameters()])

    cifar_resnet(8, width=4)
    torch.manual_seed(5)
    model = cifar_resnet(8, width=4)
    before = torch.get_rng_state()
    one = localize(model, d=2, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    two = localize(model, d=2, seed=7)
    other = localize(model, d=2, seed=8)
    first, second, third = (
        torch.cat([p.flatten() for m in local.local_modules for p in m.parameters()]) for local in (one, two, other)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert weights(1).numel() == first.numel()


def test_without_a_seed_torchs_generator_decides() -> None:
    model = cifar_resnet(8, width=4)
    torch.manual_seed(1)
    one = localize(model, d=2).state_dict()
    torch.manual_seed(1)
    two = localize(model, d=2).state_dict()
    three = localize(model, d=2).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_a_clone_has_no_hooks_and_shares_no_tensor() -> None:
    layer = nn.BatchNorm2d(4)
    layer.register_forward_hook(lambda *_: None)
    twin = clone(layer, {}, draw())
    assert not twin._forward_hooks
    assert len(layer._forward_hooks) == 1
    mine = {t.data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    assert not mine & {t.data_ptr() for t in (*twin.parameters(), *twin.buffers())}
