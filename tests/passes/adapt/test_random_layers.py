"""Random layers behind random inputs: repair or an adapter always gives the channels and the resolution asked for."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from passes.adapt.adapter import Adapter
from passes.adapt.copy_recipe import CopyRecipe
from passes.adapt.rebuild import rebuild
from passes.common.initializer import Initializer
from passes.ir import Layout, TensorSpec
from passes.pipeline import analyse
from tests.models.graphs import bounded
from tests.tools.built import assert_built

WIDTH = 8
"""Channels that random blocks read and give in their own network."""
SLOW = bounded(30)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.body(x)
        return result


class Branches(nn.Module):
    """Branches side by side, concatenated, mixed."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.mix = nn.Conv2d(WIDTH * len(branches), WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.mix(torch.cat([branch(x) for branch in self.branches], 1))
        return result


class Gate(nn.Module):
    """Squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(WIDTH, 2, 1), nn.Conv2d(2, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate: torch.Tensor = self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu())
        return x * gate.sigmoid()


class Shuffle(nn.Module):
    """Channel shuffle in two groups, its numbers read off the tensor (ShuffleNet)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, channels, height, width = x.shape
        grouped = x.view(samples, 2, channels // 2, height, width).transpose(1, 2)
        return grouped.reshape(samples, channels, height, width)


class Halves(nn.Module):
    """A convolution on half of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH // 2, WIDTH // 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.split(WIDTH // 2, dim=1)
        return torch.cat([self.conv(first), second], 1)


class Last(nn.Module):
    """Layer norm and linear over channels, with a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.gamma * self.linear(self.norm(x.permute(0, 2, 3, 1)))
        return result.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Two heads over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(samples, height * width, 3, 2, channels // 2).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(samples, height * width, channels)
        result: torch.Tensor = self.proj(mixed)
        return result.transpose(1, 2).reshape(samples, channels, height, width)


def conv(size: int = 3, groups: int = 1) -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, size, padding=size // 2, groups=groups, bias=False)


@st.composite
def pieces(draw: st.DrawFn, depth: int = 2) -> nn.Module:
    """Draw a block of :data:`WIDTH` channels in and out that keeps the resolution."""
    kinds: dict[str, Any] = {
        "conv": lambda: conv(draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 2, 4, WIDTH]))),
        "batch norm": lambda: nn.BatchNorm2d(WIDTH),
        "group norm": lambda: nn.GroupNorm(4, WIDTH),
        "instance norm": lambda: nn.InstanceNorm2d(WIDTH, affine=True),
        "prelu": lambda: nn.PReLU(WIDTH),
        "pool": lambda: nn.AvgPool2d(3, 1, 1),
        "gate": Gate,
        "halves": Halves,
        "last": Last,
        "attention": Attention,
    }
    if depth:
        kinds |= {
            "residual": lambda: Residual(draw(pieces(depth=depth - 1))),
            "branches": lambda: Branches(draw(pieces(depth=depth - 1)), draw(pieces(depth=depth - 1))),
            "chain": lambda: nn.Sequential(draw(pieces(depth=depth - 1)), nn.ReLU(), draw(pieces(depth=depth - 1))),
        }
    made: nn.Module = kinds[draw(st.sampled_from(sorted(kinds)))]()
    return made


class Net(nn.Module):
    """A stem, the block, and a classifier."""

    def __init__(self, block: nn.Module, before: int, after: int) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, before, 3, padding=1), block
        self.last, self.head = nn.Conv2d(after, after, 1), nn.Linear(after, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.last(self.block(self.stem(x))).mean((2, 3)))
        return result


def place(
    block: nn.Module, before: int, after: int, spec: TensorSpec, stride: int
) -> tuple[CopyRecipe, fx.GraphModule]:
    """Build the block after ``spec``, as layer 1 of a network, and run it forward and backward."""
    network = analyse(Net(block, before, after), (2, 3, 16, 16), max_cut=1, granularity=["stem", "block"], verify=False)
    assert [network.layers[1].input.channels, network.layers[1].output.channels] == [before, after]
    adapter = Adapter(network)
    recipe = adapter.adapt(1, spec, stride, "stride")
    module = rebuild(adapter, recipe, Initializer(torch.Generator().manual_seed(0)))
    assert_built(recipe, module)
    assert recipe.stride == stride
    return recipe, module


def inputs(layout: Layout, channels: int, height: int, width: int) -> TensorSpec:
    shape = (2, channels, height, width) if layout == "NCHW" else (2, height, width, channels)
    return TensorSpec(shape, layout=layout)


@given(
    block=pieces(),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    channels=st.integers(1, 64),
    sizes=st.tuples(st.integers(4, 13), st.integers(4, 13)),
    stride=st.sampled_from([1, 2]),
)
@SLOW
def test_any_block_behind_any_input(
    block: nn.Module, layout: Layout, channels: int, sizes: tuple[int, int], stride: int
) -> None:
    body = nn.Sequential(block, conv(1))
    recipe, _ = place(body, WIDTH, WIDTH, inputs(layout, channels, *sizes), stride)
    assert recipe.output.shape == (2, WIDTH, *(math.ceil(size / stride) for size in sizes))


LAYERS = st.lists(
    st.tuples(st.integers(1, 64), st.sampled_from([1, 3, 5]), st.booleans(), st.booleans()), min_size=1, max_size=4
)


@given(LAYERS, st.integers(1, 64), st.tuples(st.integers(5, 17), st.integers(5, 17)), st.sampled_from([1, 2]))
@SLOW
def test_convolution_chains_cost_what_a_rule_by_hand_says(
    layers: list[tuple[int, int, bool, bool]], channels: int, sizes: tuple[int, int], stride: int
) -> None:
    """The first convolution takes the channels; the first one larger than a pixel the stride, or pooling goes first."""
    parts: list[nn.Module] = []
    before, params, macs = WIDTH, 0, 0
    positions = math.prod(sizes)
    halved = math.prod(math.ceil(size / 2) for size in sizes)
    spatial = next((k for k, layer in enumerate(layers) if layer[1] > 1), None)
    for k, (width, size, bias, norm) in enumerate(layers):
        parts += [nn.Conv2d(before, width, size, padding=size // 2, bias=bias), nn.ReLU()]
        parts += [nn.BatchNorm2d(width)] if norm else []
        weights = (channels if k == 0 else before) * width * size * size
        params += weights + bias * width + norm * 2 * width
        macs += weights * (halved if stride == 2 and (spatial is None or k >= spatial) else positions)
        before = width
    recipe, module = place(nn.Sequential(*parts), WIDTH, before, inputs("NCHW", channels, *sizes), stride)
    assert recipe.repaired
    assert (recipe.params, recipe.macs) == (params, macs)
    strides = [m.stride[0] for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert math.prod(strides) == (stride if spatial is not None else 1)
