"""DGL, PredSim, InfoPro, and AugLocal with InfoPro's loss: features of any layout, and the networks behind them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from localize import localize
from localize.bench.sweep.isolation import reach
from localize.methods.networks.dense import ToGrid, grid_of_features
from localize.methods.networks.predsim_network import pool_kernel
from passes.ir import TensorSpec
from tests.tools.rules import OWN, RULES, assert_as_planned, images, small


class Shaped(nn.Module):
    """A stem, and three layers on values in some layout; tokens may have a class token in front."""

    def __init__(self, layout: str, channels: int, token: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        layer = nn.Conv2d if layout == "NCHW" else nn.Linear
        size = (1,) if layout == "NCHW" else ()
        self.layers = nn.ModuleList(nn.Sequential(layer(channels, channels, *size), nn.GELU()) for _ in range(3))
        self.token = nn.Parameter(torch.zeros(1, 1, channels)) if token else None
        self.head = nn.Linear(channels, 5)
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.layout == "NHWC":
            x = x.permute(0, 2, 3, 1)
        elif self.layout == "NLC":
            x = x.flatten(2).transpose(1, 2)
            if self.token is not None:
                x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        elif self.layout == "NC":
            x = x.mean((2, 3))
        for layer in self.layers:
            x = layer(x)
        dims = {"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,), "NC": ()}[self.layout]
        logits: torch.Tensor = self.head(x.mean(dims) if dims else x)
        return logits


AFTER = ["layers.0", "layers.1", "layers.2"]


@settings(deadline=None, max_examples=25)
@given(
    layout=st.sampled_from(["NCHW", "NHWC", "NLC", "NC"]),
    channels=st.integers(2, 6),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    token=st.booleans(),
    method=st.sampled_from(RULES),
)
def test_any_width_resolution_and_layout(
    layout: str, channels: int, size: tuple[int, int], token: bool, method: str
) -> None:
    token = token and layout == "NLC"
    x, y = images(size=size)
    model = Shaped(layout, channels, token)
    options: dict[str, Any] = {"last": "single"} if method == "auglocal+infopro" else {}
    local = localize(model, method, d=2, seed=0, granularity=AFTER, example_inputs=x, verify=False, **options)
    assert len(local.plan.modules) == 3
    assert_as_planned(local)
    found = reach(local, x, y)
    assert (found.violations, found.untrained) == ((), ())
    for out in local.steps(x, y):
        assert out.logits.shape == (4, 5)
        assert bool(out.loss.isfinite())


@pytest.mark.parametrize("method", OWN)
def test_class_tokens_are_added_to_every_position(method: str) -> None:
    """What the loss reads of them, it teaches."""
    x, y = images(size=(4, 4))
    local = localize(Shaped("NLC", 6, True), method, seed=0, example_inputs=x, granularity=AFTER)
    out = next(local.steps(x, y))
    out.loss.backward()
    token = local.primary.get_parameter("token")
    assert token.grad is not None
    assert bool((token.grad != 0).any())


def test_tokens_of_an_image_that_is_no_square() -> None:
    x, _ = images(size=(4, 12))
    model = Shaped("NLC", 4, True)
    local = localize(model, "predsim", pooled_width=48, example_inputs=x, granularity=AFTER)
    auxiliary = local.plan.modules[0].auxiliary
    assert auxiliary is not None
    assert auxiliary.head == "tokens as image > pool(2x2) > linear(48, 5)"


@pytest.mark.parametrize(
    ("tokens", "image", "grid", "prefix"),
    [
        (197, (224, 224), (14, 14), 1),
        (201, (224, 224), (14, 14), 5),
        (25, (16, 96), (2, 12), 1),
        (36, (32, 32), (6, 6), 0),
        (7, (32, 32), (2, 2), 3),
        (13, (30, 50), (13, 1), 0),
        (9, (), (3, 3), 0),
    ],
)
def test_tokens_are_laid_out(tokens: int, image: tuple[int, ...], grid: tuple[int, int], prefix: int) -> None:
    """Row by row in the proportions of the image, as a square, or as a column; those in front are added on average."""
    found = grid_of_features(TensorSpec((2, tokens, 3), layout="NLC"), image)
    assert (found.size, found.prefix) == (grid, prefix)
    x = torch.arange(2 * tokens * 3, dtype=torch.float64).view(2, tokens, 3)
    laid = ToGrid(found, added=True)(x)
    assert laid.shape == (2, 3, *grid)
    front = x[:, :prefix].mean(1) if prefix else torch.zeros(2, 3)
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = x[:, prefix + row * grid[1] + column] + front
            torch.testing.assert_close(laid[:, :, row, column], expected)


# Shapes of auxiliary networks -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    channels=st.integers(1, 300),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    width=st.integers(1, 3000),
)
def test_pooling_windows(channels: int, size: tuple[int, int], width: int) -> None:
    """The fewest doublings, by turns, that meet the width: one fewer does not; and torch gives as many values."""
    kernel = pool_kernel(channels, size, width)
    left = [math.ceil(side / window) for side, window in zip(size, kernel, strict=True)]
    pooled = F.avg_pool2d(torch.empty(1, 1, *size), kernel, ceil_mode=True)
    assert list(pooled.shape[2:]) == left
    assert channels * math.prod(left) <= width or left == [1, 1]
    if max(kernel) > 1:
        smaller = [
            (max(1, 2 ** (math.ceil(math.log2(kernel[0])) - 1)), kernel[1]),
            (kernel[0], max(1, 2 ** (math.ceil(math.log2(kernel[1])) - 1))),
        ]
        counts = [math.prod(math.ceil(s / w) for s, w in zip(size, each, strict=True)) for each in smaller]
        assert max(counts) * channels > width


@pytest.mark.parametrize(
    ("options", "depth", "blocks"),
    [
        ({}, 6, ["conv1x1(4)/4", "conv1x1(4)", "conv1x1(4)", "linear(16)/2", "linear(16)"]),
        ({"convolutions": 1, "hidden": 1, "hidden_width": 7}, 3, ["conv1x1(4)/4", "linear(7)/2"]),
        ({"convolutions": 0}, 3, ["linear(16)/8", "linear(16)"]),
        ({"hidden": 0}, 4, ["conv1x1(4)/4", "conv1x1(4)", "conv1x1(4)"]),
        ({"hidden": 0, "convolutions": 0}, 1, []),
    ],
    ids=str,
)
def test_dgls_options(options: dict[str, Any], depth: int, blocks: list[str]) -> None:
    local = small("dgl", **options)
    assert_as_planned(local)
    auxiliary = local.plan.modules[0].auxiliary
    assert auxiliary is not None
    assert auxiliary.depth == depth
    assert f"d={depth}: {' '.join([*blocks, 'head'])}" in str(local.plan)
    x, y = images()
    assert reach(local, x, y).violations == ()


def test_infopros_classifier_is_as_wide_as_what_halves_next() -> None:
    """4 channels in the stem and the first block, 8 in the second, 16 in the last."""
    blocks = [module.auxiliary.blocks[0] for module in small("infopro").plan.modules if module.auxiliary]
    assert [(b.in_channels, b.out_channels, b.stride) for b in blocks] == [(4, 8, 2), (4, 8, 2), (8, 16, 2)]
