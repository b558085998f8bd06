"""Fake tensors: modules whose parameters have no values for a while."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from passes.common.fake_tensors import device_of, fake_mode, faked, has_values, quiet


def test_parameters_are_fake_inside_and_real_afterwards() -> None:
    model = nn.Linear(2, 3)
    weight = model.weight
    with fake_mode() as mode, faked(model, mode):
        assert isinstance(model.weight.data, FakeTensor)
    assert model.weight is weight


def test_the_real_tensor_of_a_fake_one_is_known() -> None:
    model = nn.BatchNorm1d(3)
    mean = model.running_mean
    with fake_mode() as mode, faked(model, mode) as real:
        assert real[id(model.running_mean)] is mean


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with fake_mode() as mode, faked(model, mode):
        assert model[0].weight is model[1].weight


def test_a_frozen_parameter_stays_frozen() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with fake_mode() as mode, faked(model, mode):
        assert not model.weight.requires_grad


def test_strides_are_kept() -> None:
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    strides = model.weight.stride()
    with fake_mode() as mode, faked(model, mode):
        assert model.weight.stride() == strides


def test_uninitialized_parameters_are_left() -> None:
    model = nn.LazyLinear(2)
    weight = model.weight
    with fake_mode() as mode, faked(model, mode):
        assert model.weight is weight


def test_parameters_come_back_after_an_error() -> None:
    model = nn.Linear(2, 3)
    weight = model.weight
    with pytest.raises(KeyError), fake_mode() as mode, faked(model, mode):
        raise KeyError
    assert model.weight is weight


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(1), True),
        (torch.zeros(1, device="meta"), False),
        (nn.LazyLinear(2).weight, False),
    ],
    ids=["real", "meta", "uninitialized"],
)
def test_what_has_values(tensor: torch.Tensor, expected: bool) -> None:
    assert has_values(tensor) is expected


def test_a_fake_tensor_has_no_values() -> None:
    with fake_mode():
        assert not has_values(torch.zeros(1))


def test_the_device_is_that_of_the_first_parameter() -> None:
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"


def test_the_log_is_silent_inside_alone() -> None:
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    with quiet():
        assert logger.disabled
    assert logger.disabled is before
