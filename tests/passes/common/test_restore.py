"""A model and the random number generators are put back as they were."""

from __future__ import annotations

import random

import torch
from torch import nn

from passes.common.restore import is_hook_table, same_randomness, set_mode, untouched


def test_an_attribute_is_put_back() -> None:
    model = nn.Linear(2, 2)
    with untouched(model):
        setattr(model, "note", "changed")  # noqa: B010
    assert not hasattr(model, "note")


def test_a_buffer_keeps_tensor_and_values() -> None:
    model = nn.BatchNorm1d(3)
    before, values = model.running_mean, model.get_buffer("running_mean").clone()
    with untouched(model):
        model(torch.randn(4, 3))
    assert model.running_mean is before
    assert torch.equal(model.get_buffer("running_mean"), values)


def test_a_shared_buffer_stays_shared_inside() -> None:
    first, second, count = nn.Module(), nn.Module(), torch.zeros(1)
    first.register_buffer("count", count)
    second.register_buffer("count", count)
    model = nn.Sequential(first, second)
    with untouched(model):
        assert first.count is second.count


def test_a_submodule_that_was_added_is_removed() -> None:
    model = nn.Sequential(nn.ReLU())
    with untouched(model):
        model.append(nn.ReLU())
    assert len(model) == 1


def test_hooks_are_silent_inside_and_back_afterwards() -> None:
    model, calls = nn.ReLU(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    with untouched(model):
        model(torch.ones(1))
    assert calls == []
    model(torch.ones(1))
    assert calls == [1]


def test_hooks_may_run_inside() -> None:
    model, calls = nn.ReLU(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    with untouched(model, hooks=True):
        model(torch.ones(1))
    assert calls == [1]


def test_the_mode_is_put_back_after_an_error() -> None:
    model = nn.Dropout()
    try:
        with untouched(model):
            set_mode(model, False)
            raise KeyError
    except KeyError:
        pass
    assert model.training


def test_a_mode_is_set_where_a_class_refuses() -> None:
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Frozen:
            return self

    model = nn.Sequential(Frozen(2))
    set_mode(model, False)
    assert not model[0].training


def test_generators_continue_as_if_nothing_had_been_drawn() -> None:
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(1), random.random()
    torch.manual_seed(0)
    random.seed(0)
    with same_randomness():
        torch.rand(3)
        random.random()
    assert (torch.rand(1), random.random()) == expected


def test_a_seed_gives_the_same_numbers() -> None:
    drawn = []
    for _ in range(2):
        with same_randomness(7):
            drawn.append((torch.rand(1).item(), random.random()))
    assert drawn[0] == drawn[1]


def test_tables_of_hooks_are_known_by_their_names() -> None:
    tables = {name for name in nn.ReLU().__dict__ if is_hook_table(name)}
    assert {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks"} <= tables
    assert not tables & {"_parameters", "_buffers", "_state_dict_hooks"}
