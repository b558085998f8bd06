"""Kinds of layers."""

from __future__ import annotations

import pytest
from torch import nn

from passes.common.layer_kinds import WEIGHTED, is_depthwise, is_norm, normalizes_last


class CustomNorm(nn.Module):
    pass


class ImageLayerNorm(nn.LayerNorm):
    def forward(self, x: object) -> object:  # type: ignore[override]
        return x


@pytest.mark.parametrize("module", [nn.BatchNorm2d(2), nn.InstanceNorm1d(2), nn.GroupNorm(1, 2), CustomNorm()], ids=str)
def test_norms(module: nn.Module) -> None:
    assert is_norm(module)


@pytest.mark.parametrize("module", [nn.Conv2d(2, 2, 1), nn.Linear(2, 2), nn.ReLU()], ids=str)
def test_other_layers(module: nn.Module) -> None:
    assert not is_norm(module)


def test_a_subclass_with_a_forward_of_its_own_may_normalize_elsewhere() -> None:
    assert normalizes_last(nn.LayerNorm(2))
    assert not normalizes_last(ImageLayerNorm(2))


def test_depthwise_needs_more_than_one_channel() -> None:
    assert is_depthwise(nn.Conv2d(4, 8, 3, groups=4))
    assert not is_depthwise(nn.Conv2d(4, 8, 3, groups=2))
    assert not is_depthwise(nn.Conv2d(1, 8, 3))


def test_recurrent_layers_are_weighted() -> None:
    assert isinstance(nn.LSTM(2, 2), WEIGHTED)
    assert not isinstance(nn.BatchNorm2d(2), WEIGHTED)
