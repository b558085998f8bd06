"""DGL, PredSim, InfoPro, and AugLocal with InfoPro's loss: what is refused, and how."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from localize import InputError, MethodError, Plan, localize
from localize.models import cifar_resnet
from tests.tools.rules import DECODING, images, small


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dgl", {"convolutions": -1}, "convolutions must be an integer >= 0, got -1"),
        ("dgl", {"hidden": 1.5}, "hidden must be an integer >= 0, got 1.5"),
        ("dgl", {"hidden_width": 0}, "hidden_width must be an integer >= 1 or None, got 0"),
        ("dgl", {"beta": 1}, "method 'dgl' has no option 'beta'. Its options: convolutions, hidden, hidden_width"),
        ("predsim", {"beta": 1.5}, "beta must be a number from 0 to 1, got 1.5"),
        ("predsim", {"pooled_width": True}, "pooled_width must be an integer >= 1, got True"),
        ("predsim", {"zero_init": 1}, "zero_init must be True or False, got 1"),
        ("infopro", {"alpha_first": -1}, "alpha_first must be a number >= 0, got -1"),
        ("infopro", {"beta_last": math.nan}, "beta_last must be a number >= 0, got nan"),
        ("infopro", {"std": 0}, "std must be a number > 0, or one for each channel, got 0"),
        ("infopro", {"mean": ()}, r"mean must be a number, or one for each channel, got \(\)"),
        ("infopro", {"mean": (0.1, 0.2)}, "has 2 numbers, and images have 3 channels"),
        ("infopro", {"hidden_width": 0}, "hidden_width must be an integer >= 1, got 0"),
        ("auglocal+infopro", {"decoder_width": 0}, "decoder_width must be an integer >= 1, got 0"),
        ("auglocal+infopro", {"tau": 2}, r"tau must be a number from 0 to 1, got 2"),
    ],
)
def test_options_are_checked(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        small(method, **options)


@pytest.mark.parametrize(
    ("target", "got"),
    [
        (torch.rand(4), r"float32, of shape \(4,\)"),
        (torch.zeros(4, 1, dtype=torch.int64), r"int64, of shape \(4, 1\)"),
        (torch.rand(4, 3), r"float32, of shape \(4, 3\)"),
        ({"labels": torch.zeros(4)}, "a dict"),
    ],
    ids=["floats", "column", "rows that do not sum to 1", "dict"],
)
def test_predsim_needs_class_labels(target: Any, got: str) -> None:
    local = small("predsim", criterion=lambda logits, y: logits.square().mean())
    message = rf"similarity loss of PredSim needs class labels \(in conv1\): the target is {got}. Give class indices"
    with pytest.raises(InputError, match=message):
        next(local.steps(images()[0], target))


def test_predsim_needs_two_classes() -> None:
    model = cifar_resnet(8, num_classes=1, width=4)
    with pytest.raises(MethodError, match="at least two classes"):
        localize(model, "predsim", example_inputs=images()[0])


@pytest.mark.parametrize("method", DECODING)
def test_images_must_be_where_they_are_said_to_be(method: str) -> None:
    """Images that were normalized, and the option forgotten; and the same, undone."""
    x, y = images()
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    normalized = (x - shift) / scale
    with pytest.raises(
        InputError, match=r"% of the images' values are outside \[0, 1\].*goes from -.*Give the mean= and"
    ):
        next(small(method).steps(normalized, y))
    undone = small(method, mean=list(mean), std=std)
    assert undone.plan.options["mean"] == mean
    plain = next(small(method).steps(x, y)).loss
    assert bool(plain.isfinite())
    assert bool(next(undone.steps(normalized, y)).loss.isfinite())
    assert Plan.from_json(undone.plan.to_json()) == undone.plan
    assert undone.plan.modules[0].auxiliary is not None
    assert "images * (0.25, 0.2, 0.3) + (0.5, 0.4, 0.3)" in undone.plan.modules[0].auxiliary.terms[0].network


def test_a_little_noise_is_cut_off() -> None:
    x, y = images()
    x[0, :, :2, :2] = 3.0
    out = next(small("infopro").steps(x, y))
    assert bool(out.loss.isfinite())


def test_only_images_are_reconstructed() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))
    with pytest.raises(MethodError, match=r"reconstructs images \(N, C, H, W\), and the model's input is 6"):
        localize(model, "infopro", example_inputs=torch.empty(2, 6))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("dgl", r"a value of shape 4x4x8x8 \(NCDHW\) must be an image, tokens or features without positions"),
        ("predsim", r"a value of shape 4x4x8x8 \(NCDHW\) must be an image, tokens or features without positions"),
        ("infopro", r"reconstructs images \(N, C, H, W\), and the model's input is 1x4x8x8"),
        ("auglocal+infopro", r"reconstructs images \(N, C, H, W\), and the model's input is 1x4x8x8"),
    ],
)
def test_volumes_are_refused(method: str, message: str) -> None:
    units = [nn.Sequential(nn.Conv3d(a, 4, 3, 1, 1), nn.BatchNorm3d(4), nn.ReLU()) for a in (1, 4, 4)]
    model = nn.Sequential(*units, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(MethodError, match=message):
        localize(model, method, example_inputs=torch.empty(2, 1, 4, 8, 8))
