"""Plain blocks: what is planned of them is what is built, and their width meets a cost."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from passes.common.initializer import Initializer
from passes.ir import Layout, TensorSpec
from passes.layers.plain_blocks import Kind, build_plain, nearest_width, stack

SHAPES: dict[Layout, int] = {"NCHW": 3, "NHWC": 3, "NLC": 2, "NC": 1}


@st.composite
def specs(draw: st.DrawFn) -> TensorSpec:
    layout = draw(st.sampled_from(sorted(SHAPES)))
    sizes = draw(st.lists(st.integers(1, 9), min_size=SHAPES[layout], max_size=SHAPES[layout]))
    return TensorSpec((2, *sizes), layout=layout)


@given(
    st.sampled_from(["conv1x1", "conv3x3"]),
    specs(),
    st.lists(st.sampled_from([1, 2, 4]), max_size=3),
    st.integers(1, 9),
)
def test_what_is_planned_is_built(kind: Kind, spec: TensorSpec, strides: list[int], channels: int) -> None:
    x: torch.Tensor = torch.empty(spec.shape, device="meta")
    blocks = stack(kind, spec, strides, channels)
    assert len(blocks) == len(strides)
    for block, stride in zip(blocks, strides, strict=True):
        assert block.input.shape == tuple(x.shape)
        assert block.kind == (kind if spec.layout == "NCHW" else "linear")
        assert block.stride == (stride if spec.layout == "NCHW" else 1)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module = build_plain(block, Initializer())
            x = module.eval()(x)
        assert tuple(x.shape) == block.output.shape
        assert x.shape[block.output.channel_dim] == channels
        assert sum(p.numel() for p in module.parameters()) == block.params
        assert counter.get_total_flops() == 2 * 2 * block.macs  # two samples


def test_volumes() -> None:
    spec = TensorSpec((2, 4, 3, 6, 6), layout="NCDHW")
    (block,) = stack("conv3x3", spec, [1], 5)
    module = build_plain(block, Initializer())
    assert tuple(module(torch.randn(spec.shape)).shape) == block.output.shape == (2, 5, 3, 6, 6)
    assert block.macs == 27 * 4 * 5 * 3 * 6 * 6


def test_a_halving_1x1_convolution_reads_every_value() -> None:
    (block,) = stack("conv1x1", TensorSpec((1, 2, 5, 5), layout="NCHW"), [2], 3)
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    build_plain(block, Initializer())[:2](x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 20_000))
def test_nearest_width(square: int, linear: int, target: int) -> None:
    def cost(channels: int) -> int:
        return square * channels**2 + linear * channels

    found = nearest_width(cost, target)
    expected = min(range(1, 200), key=lambda channels: (abs(cost(channels) - target), channels))
    assert found == expected


@pytest.mark.parametrize("kind", ["conv1x1", "conv3x3"])
def test_weights_are_drawn_as_appendix_a2_says(kind: Kind) -> None:
    (block,) = stack(kind, TensorSpec((1, 64, 8, 8), layout="NCHW"), [1], 96)
    convolution = build_plain(block, Initializer(torch.Generator().manual_seed(0)))[0]
    assert isinstance(convolution, nn.Conv2d)
    deviation = math.sqrt(2 / (96 * math.prod(convolution.kernel_size)))
    assert float(convolution.weight.detach().std()) == pytest.approx(deviation, rel=0.03)
