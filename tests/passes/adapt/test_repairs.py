"""Repairs of numbers, layouts, and parameters that a layer's graph reads itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from passes.adapt.adapter import Adapter
from passes.adapt.arguments import follow, leaves, replaced, split_again
from passes.adapt.copy_recipe import CopyRecipe
from passes.adapt.outside_shapes import measured, stand_in
from passes.adapt.rebuild import rebuild
from passes.common.initializer import Initializer
from passes.ir import Layout, TensorSpec
from passes.layers.adapters import Front, ToLayout, build_front, from_image, to_image
from passes.pipeline import analyse
from tests.tools.built import assert_built


class Net(nn.Module):
    """Stem, one block, a last convolution, classifier; the block may return tokens."""

    def __init__(self, block: nn.Module, before: int, after: int, tokens: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, before, 3, padding=1)
        self.block = block
        self.last = nn.Linear(after, after) if tokens else nn.Conv2d(after, after, 1)
        self.head = nn.Linear(after, 5)
        self.tokens = tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.block(self.stem(x).relu())).relu()
        result: torch.Tensor = self.head(x.mean(1) if self.tokens else x.mean((2, 3)))
        return result


def place(
    block: nn.Module, width: int, spec: TensorSpec, stride: int = 1, tokens: bool = False
) -> tuple[CopyRecipe, fx.GraphModule]:
    """Build the block of input and output ``width`` after ``spec``, run it, and check it against its recipe."""
    network = analyse(Net(block, width, width, tokens), (2, 3, 8, 8), max_cut=1, granularity=["stem", "block"])
    adapter = Adapter(network)
    recipe = adapter.adapt(1, spec, stride, "stride")
    module = rebuild(adapter, recipe, Initializer(torch.Generator().manual_seed(0)))
    assert_built(recipe, module)
    return recipe, module


def image(channels: int, height: int = 8, width: int = 8) -> TensorSpec:
    return TensorSpec((2, channels, height, width), layout="NCHW")


class Partial(nn.Module):
    """A convolution over some of the channels (FasterNet), split by numbers that are written down."""

    def __init__(self, sizes: Any, width: int) -> None:
        super().__init__()
        self.sizes = sizes
        first = sizes if isinstance(sizes, int) else sizes[0]
        self.spatial = nn.Conv2d(first, first, 3, padding=1, groups=first)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *rest = torch.split(x, self.sizes, dim=1)
        result: torch.Tensor = x + self.mix(torch.cat([self.spatial(first), *rest], 1))
        return result


class Attention(nn.Module):
    """Tokens of an image; the width is read off the input twice, and needed before and after the projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        n = tokens.shape[1]
        q, k, v = (
            self.qkv(self.norm(tokens))
            .reshape(samples, n, 3, self.heads, channels // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(samples, n, channels)
        tokens = tokens + self.proj(mixed)
        result: torch.Tensor = tokens.transpose(1, 2).reshape(samples, channels, height, width)
        return result


class Scaled(nn.Module):
    """A layer scale that is viewed by a number that is written down (MetaFormer)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(width))
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.scale.view(self.width, 1, 1) + self.pool(x)
        result: torch.Tensor = self.mix(x) + 0
        return result


class Functional(nn.Module):
    """A linear and a convolution whose weights the forward reads itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, width, 3, 3) / 10)
        self.weight = nn.Parameter(torch.randn(width, width) / 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, self.kernel, padding=1)
        return F.linear(y.permute(0, 2, 3, 1), self.weight).permute(0, 3, 1, 2)


class WithClassToken(nn.Module):
    """Puts a class token before the pixels, and mixes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.mix = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        result: torch.Tensor = self.mix(torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1))
        return result


class Unopened(nn.Module):
    """A module that torch.fx cannot look into, with layers inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(width, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.outer = nn.Conv2d(6, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):  # keeps torch.fx out
            result: torch.Tensor = self.outer(self.inner(x).relu())
        return result


class Aside(nn.Module):
    """A block whose only larger convolution feeds a gate: a stride there would not make the output smaller."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look, self.mix = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.mix(x) * self.look(x).mean((2, 3), keepdim=True).sigmoid()
        return result


class OverTokens(nn.Module):
    """Residual layers over the pixels of an image, as tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.first(x).relu()
        x = x + self.second(x).relu()
        result: torch.Tensor = self.head(x.mean(1))
        return result


@pytest.mark.parametrize(
    ("sizes", "channels", "first"), [([2, 6], 12, 3), ([2, 6], 4, 1), (4, 12, 6), (4, 6, 3), ([4, 2, 2], 16, 8)]
)
def test_a_split_keeps_its_proportions(sizes: Any, channels: int, first: int) -> None:
    recipe, module = place(Partial(sizes, 8), 8, image(channels))
    assert recipe.repaired
    spatial = next(m for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    assert spatial.in_channels == first


@pytest.mark.parametrize("spec", [image(8), image(6), image(16), image(6, 4, 6), image(12, 5, 3)])
def test_attention_keeps_its_own_width_behind_any_other(spec: TensorSpec) -> None:
    recipe, module = place(Attention(8, 2), 8, spec)
    assert recipe.repaired
    assert recipe.output.shape == (2, 8, *spec.spatial)
    linears = [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]
    assert linears[:2] == [(spec.channels, 24), (8, 8)]
    assert recipe.projection == (spec.channels != 8)


def test_attention_behind_a_halved_image() -> None:
    recipe, _ = place(Attention(8, 2), 8, image(6), stride=2)
    assert (recipe.repaired, recipe.stride, recipe.output.shape) == (True, 2, (2, 8, 4, 4))


def test_a_number_in_a_view_follows_the_parameter_it_is_of() -> None:
    recipe, module = place(Scaled(8), 8, image(6))
    assert recipe.repaired
    assert [tuple(p.shape) for name, p in module.named_parameters() if "scale" in name] == [(6,)]


def test_weights_of_functional_layers_take_the_channels() -> None:
    recipe, module = place(Functional(8), 8, image(5))
    assert recipe.repaired
    assert sorted(tuple(p.shape) for p in module.parameters()) == [(8, 5, 3, 3), (8, 8)]


def test_a_class_token_takes_the_channels() -> None:
    recipe, module = place(WithClassToken(8), 8, image(6), tokens=True)
    assert recipe.repaired
    assert recipe.output.shape == (2, 65, 8)
    assert [tuple(p.shape) for name, p in module.named_parameters() if "token" in name] == [(1, 1, 6)]


def test_layers_inside_an_unopened_module_take_the_channels() -> None:
    recipe, module = place(Unopened(8), 8, image(5))
    assert recipe.repaired
    convolutions = [(m.in_channels, m.out_channels) for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [(5, 6), (6, 8)]
    assert recipe.macs == (5 * 6 + 6 * 8) * 64


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec((2, 8, 8, 6), layout="NHWC"),
        TensorSpec((2, 64, 6), layout="NLC"),
        TensorSpec((2, 6, 4, 8), layout="NHWC"),
    ],
)
def test_another_layout_is_brought_into_the_layers_own(spec: TensorSpec) -> None:
    recipe, _ = place(Scaled(8), 8, spec)
    assert recipe.repaired
    assert recipe.front is not None
    assert recipe.front.to == "NCHW"
    assert recipe.output.layout == "NCHW"


def test_a_stride_that_the_output_does_not_feel_is_pooling_instead() -> None:
    recipe, module = place(Aside(8), 8, image(6), stride=2)
    assert recipe.front is not None
    assert (recipe.front.pool, recipe.stride, recipe.repaired) == ("avg_pool", 2, True)
    assert all(m.stride == (1, 1) for m in module.modules() if isinstance(m, nn.Conv2d))


def test_tokens_of_a_square_image_are_halved_as_the_image_is() -> None:
    adapter = Adapter(analyse(OverTokens(8), (2, 3, 8, 8), max_cut=1))
    recipe = adapter.adapt(1, TensorSpec((2, 64, 6), layout="NLC"), 2, "stride")
    assert (recipe.output.shape, recipe.stride, recipe.repaired) == ((2, 16, 8), 2, True)
    behind_an_image = adapter.adapt(1, image(6, 8, 10), 2, "stride")
    assert (behind_an_image.output.shape, behind_an_image.repaired) == ((2, 20, 8), True)
    assert behind_an_image.stride == 1  # nobody can tell from 20 tokens: they are no square's
    module = rebuild(adapter, recipe, Initializer())
    assert tuple(module(torch.randn(2, 64, 6)).shape) == (2, 16, 8)


@pytest.mark.parametrize("layout", ["NHWC", "NLC"])
def test_pooling_in_other_layouts_is_that_of_the_image(layout: Layout) -> None:
    x = torch.randn(2, 3, 6, 6)
    pooled = build_front(Front(3, 3, "max_pool", layout), Initializer())(from_image(x, layout))
    assert torch.equal(to_image(pooled, layout), nn.functional.max_pool2d(x, 2))


@given(height=st.integers(1, 6), width=st.integers(1, 6), channels=st.integers(1, 4))
def test_layouts_there_and_back(height: int, width: int, channels: int) -> None:
    x = torch.arange(2 * channels * height * width).reshape(2, channels, height, width)
    assert torch.equal(ToLayout("NHWC", "NCHW")(ToLayout("NCHW", "NHWC")(x)), x)
    tokens = ToLayout("NCHW", "NLC")(x)
    assert torch.equal(tokens[:, -1], x[:, :, -1, -1])
    if height == width:
        assert torch.equal(ToLayout("NLC", "NCHW")(tokens), x)
        assert torch.equal(ToLayout("NLC", "NHWC")(tokens), ToLayout("NCHW", "NHWC")(x))


LAYOUTS: tuple[Layout, ...] = ("NCHW", "NHWC", "NLC")


def spec_of(layout: Layout, height: int, width: int, channels: int) -> TensorSpec:
    shapes: dict[str, Callable[[], tuple[int, ...]]] = {
        "NCHW": lambda: (channels, height, width),
        "NHWC": lambda: (height, width, channels),
        "NLC": lambda: (height * width, channels),
    }
    return TensorSpec((2, *shapes[layout]()), layout=layout)


@given(
    st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3),
    st.integers(1, 4), st.booleans(),
)  # fmt: skip
def test_a_stand_in_has_the_shape_that_the_tensor_would_have(
    outside: Layout, entry: Layout, height: int, width: int, times: int, scale: int, follows: bool
) -> None:
    was = spec_of(outside, height * times, width * times, 4 if follows else 7)
    found = measured(was, spec_of(entry, height, width, 4))
    if outside == entry == "NLC":
        assert found is None
        return
    assert found is not None
    now = spec_of(entry, height * scale, width * scale, 9)
    stands = stand_in(torch.empty(now.shape), entry, *astuple(found))
    assert (
        tuple(stands.shape)
        == spec_of(outside, height * scale * times, width * scale * times, 9 if follows else 7).shape
    )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 64))
def test_parts_of_a_split_add_up(sizes: list[int], now: int) -> None:
    parts = split_again(sizes, sum(sizes), now)
    if parts is not None:
        assert isinstance(parts, list)
        assert (sum(parts), len(parts)) == (now, len(sizes))
        assert min(parts) > 0
    assert split_again(sizes, sum(sizes), 3 * sum(sizes)) == [3 * size for size in sizes]


@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 64))
def test_a_split_into_equal_parts_keeps_their_number(size: int, was: int, now: int) -> None:
    again = split_again(size, was, now)
    count = len(torch.empty(was).split(size))
    if again is not None:
        assert isinstance(again, int)
        assert len(torch.empty(now).split(again)) == count
    else:
        assert all(len(torch.empty(now).split(other)) != count for other in range(1, now + 1))


def test_numbers_of_a_reshape_follow() -> None:
    assert follow({(1,): 40, (2,): 1}, {40: 10}) == {(1,): 10}
    assert follow({(1,): 8, (2,): 5}, {40: 16}) == {(2,): 2}  # as many heads, narrower
    assert follow({(1,): 8, (2,): 5}, {40: 15}) == {(1,): 3}  # other heads, as wide
    assert follow({(1,): 7}, {40: 10}) == {}


def test_arguments_are_replaced_where_they_stand() -> None:
    args, kwargs = (1, [2, (3, 4)]), {"dim": 5}
    assert dict(leaves(args, kwargs)) == {(0,): 1, (1, 0): 2, (1, 1, 0): 3, (1, 1, 1): 4, ("dim",): 5}
    assert replaced(args, kwargs, {(1, 1, 0): 9, ("dim",): 8}) == ((1, [2, (9, 4)]), {"dim": 8})
