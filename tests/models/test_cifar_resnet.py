"""The networks under localize/models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from localize.models import cifar_resnet
from passes.errors import LocalizeError


@pytest.mark.parametrize(("depth", "parameters"), [(32, 466_906), (110, 1_730_714)])
def test_parameter_counts(depth: int, parameters: int) -> None:
    assert sum(p.numel() for p in cifar_resnet(depth).parameters()) == parameters


@pytest.mark.parametrize("depth", [8, 14, 20, 32])
def test_depth_counts_the_layers_with_weights(depth: int) -> None:
    model = cifar_resnet(depth, width=2)
    weighted = [
        name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "downsample" not in name
    ]
    assert len(weighted) == depth


def test_names_are_torchvisions() -> None:
    names = set(cifar_resnet(14).state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer1.1.bn2.bias",
        "fc.weight",
        "fc.bias",
    } <= names
    assert {"layer2.0.downsample.0.weight", "layer3.0.downsample.1.weight"} <= names
    # Projections only where the shape changes.
    assert {name.split(".downsample")[0] for name in names if "downsample" in name} == {"layer2.0", "layer3.0"}


@pytest.mark.parametrize("size", [8, 9, 32, 50])
def test_any_input_size(size: int) -> None:
    model = cifar_resnet(8, num_classes=7, in_channels=1, width=4).eval()
    assert model(torch.randn(2, 1, size, size)).shape == (2, 7)


def test_stages_halve_resolution_and_double_width() -> None:
    model = cifar_resnet(8)
    shapes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda _module, _input, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(2, 3, 32, 32))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_convolutions_start_at_he_scale() -> None:
    model = cifar_resnet(20)
    for convolution in (model.conv1, *(block.conv2 for block in model.layer3)):
        expected = math.sqrt(2 / (9 * convolution.out_channels))
        measured = float(convolution.weight.detach().std())
        # Four standard errors of a standard deviation estimated from n normal draws.
        assert measured == pytest.approx(expected, rel=4 / math.sqrt(2 * convolution.weight.numel()))


def test_in_place_operations_leave_the_gradients_right() -> None:
    """Against the same network without any in-place operation."""
    model = cifar_resnet(8, width=4).double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    given = x.detach().clone()
    found = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    expected = torch.autograd.grad(_forward_out_of_place(model, x).square().sum(), [x, *model.parameters()])
    assert torch.equal(x, given)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def _forward_out_of_place(model: Any, x: torch.Tensor) -> torch.Tensor:
    x = torch.relu(model.bn1(model.conv1(x)))
    for block in (*model.layer1, *model.layer2, *model.layer3):
        shortcut = x if block.downsample is None else block.downsample(x)
        hidden = torch.relu(block.bn1(block.conv1(x)))
        x = torch.relu(block.bn2(block.conv2(hidden)) + shortcut)
    logits: torch.Tensor = model.fc(x.mean((2, 3)))
    return logits


@pytest.mark.parametrize("depth", [-4, 2, 7, 18, 34])
def test_refuses_a_depth_that_is_not_6n_plus_2(depth: int) -> None:
    with pytest.raises(LocalizeError, match=rf"depth must be 6n \+ 2, got {depth}\. Take 8, 14"):
        cifar_resnet(depth)


@pytest.mark.parametrize("argument", ["num_classes", "in_channels", "width"])
def test_refuses_an_argument_below_1(argument: str) -> None:
    with pytest.raises(LocalizeError, match=f"{argument} must be at least 1, got 0"):
        cifar_resnet(8, **{argument: 0})
