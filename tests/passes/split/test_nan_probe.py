"""What NaN tells of dependence, held against derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passes.ir import TensorSpec
from passes.split.nan_probe import dependence, holders_of, marked, runnable, values_of

SPEC = TensorSpec((2, 4, 4, 4), layout="NCHW")
OWNERS = (0, 0, 1, 1)

APART: dict[str, Callable[[torch.Tensor], Any]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "clamp": lambda x: x.clamp(0, 1),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 1),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "batch_norm": nn.BatchNorm2d(4),
    "group_norm": nn.GroupNorm(2, 4),
    "dropout": nn.Dropout(0.5),
    "prelu": nn.PReLU(4),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "normalize": lambda x: F.normalize(x, dim=3),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "chunk": lambda x: x.chunk(2, 1),
    "attention of heads": lambda x: F.scaled_dot_product_attention(x, x, x),
}
MIXING: dict[str, Callable[[torch.Tensor], Any]] = {
    "layer_norm": lambda x: F.layer_norm(x, (4, 4, 4)),
    "one group norm": nn.GroupNorm(1, 4),
    "softmax": lambda x: x.softmax(1),
    "mean": lambda x: x.mean(1),
    "amax": lambda x: x.amax(1),
    "matmul": lambda x: x.flatten(2).transpose(1, 2) @ x.flatten(2),
    "response norm": nn.LocalResponseNorm(3),
    "shifted sum": lambda x: x + x.roll(1, 1),
}


def _worlds(run: Callable[[torch.Tensor], Any]) -> list[Any]:
    with torch.no_grad():
        return [run(marked(SPEC, OWNERS, 1, group)) for group in range(2)]


@pytest.mark.parametrize("name", APART)
def test_groups_stay_apart(name: str) -> None:
    assert dependence(_worlds(APART[name])) == 1


@pytest.mark.parametrize("name", MIXING)
def test_groups_meet(name: str) -> None:
    assert dependence(_worlds(MIXING[name])) == 2


def test_holders_of_channels() -> None:
    def mixed(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1], torch.ones(2, 1, 4, 4), x[:, 1:2] + x[:, 2:3], x[:, 3:]], 1)

    assert holders_of(_worlds(mixed), 1) == [(0,), (), (0, 1), (1,)]
    assert holders_of(_worlds(mixed)[:1], 1) == [()] * 4


def test_what_shows_no_nan_is_not_judged() -> None:
    assert dependence(_worlds(lambda x: x > 0)) is None
    assert dependence(_worlds(lambda x: x.shape)) == 0


def test_layers_without_values_run() -> None:
    with torch.device("meta"):
        norm = nn.BatchNorm2d(4)
    assert runnable(norm)(torch.randn(SPEC.shape)).isfinite().all()
    assert norm.weight.is_meta
    assert torch.equal(values_of(norm.weight), torch.ones(4))
    real = nn.BatchNorm2d(4)
    assert runnable(real) is real
