"""Benchmarks: contenders take turns, and their work is held against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localize import localize
from localize.bench.flops import step_macs
from localize.bench.timing import Timing, take_turns
from localize.models import cifar_resnet
from passes.errors import LocalizeError

# Turns


class Machine:
    """A clock that each contender moves on by its own seconds, times what the machine is slowed down by."""

    def __init__(self) -> None:
        self.now, self.slowness = 0.0, 1.0
        self.ran: list[str] = []

    def contender(self, name: str, seconds: float) -> None:
        self.ran.append(name)
        self.now += seconds * self.slowness

    def drift(self, done: int, total: int) -> None:
        self.slowness *= 1.5


def raced(machine: Machine, seed: int = 0, warmup: int = 1) -> dict[str, Timing]:
    contenders = {"a": lambda: machine.contender("a", 1.0), "b": lambda: machine.contender("b", 3.0)}
    return take_turns(contenders, 6, warmup=warmup, seed=seed, on_round=machine.drift, clock=lambda: machine.now)


def test_each_runs_once_a_round_in_an_order_that_the_seed_says() -> None:
    machine = Machine()
    raced(machine)
    pairs = [machine.ran[i : i + 2] for i in range(0, 14, 2)]
    assert [sorted(pair) for pair in pairs] == [["a", "b"]] * 7
    assert len({tuple(pair) for pair in pairs}) == 2
    again, other = Machine(), Machine()
    raced(again)
    raced(other, seed=1)
    assert machine.ran == again.ran != other.ran


def test_a_ratio_is_free_of_the_machine_s_drift() -> None:
    found = raced(Machine())
    assert found["b"].over(found["a"]) == pytest.approx(3.0)
    assert found["a"].samples == pytest.approx([1.5**k for k in range(1, 7)])
    assert found["a"].median == pytest.approx((1.5**3 + 1.5**4) / 2)


def test_the_warm_up_is_left_out() -> None:
    assert [len(timing.samples) for timing in raced(Machine(), warmup=4).values()] == [6, 6]


def test_the_spread_is_the_interquartile_range() -> None:
    assert Timing((1.0, 2.0, 3.0, 4.0, 100.0)).spread == 2.0
    assert Timing((7.0,)).spread == 0.0


def test_the_device_has_finished_before_the_clock_is_read() -> None:
    log: list[str] = []

    def clock() -> float:
        log.append("read")
        return 0.0

    take_turns({"a": lambda: log.append("run")}, 1, wait=lambda: log.append("wait"), clock=clock)
    assert log == ["wait", "read", "run", "wait", "read"]


@pytest.mark.parametrize("rounds", [0, -1])
def test_no_rounds_are_refused(rounds: int) -> None:
    with pytest.raises(LocalizeError, match="nothing to measure"):
        take_turns({"a": lambda: None}, rounds)
    with pytest.raises(LocalizeError, match="0 contenders"):
        take_turns({}, 1)


# Work


def test_work_of_a_convolution_and_a_linear_layer() -> None:
    """Forward, gradient of the weights, and gradient of the input, which the first layer does not need."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))
    convolution, linear = 16 * 8 * 3 * 9, 8 * 16 * 10
    assert step_macs(model, image_shape=(3, 4, 4)) == 2 * convolution + 3 * linear


def test_work_of_local_modules_leaves_out_gradients_of_cuts() -> None:
    """Each module's first convolution owes nobody a gradient of its input."""
    model = nn.Sequential(
        *[nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(3)], nn.Flatten(), nn.Linear(48, 4)
    )
    convolution, classifier = 16 * 3 * 3 * 9, 48 * 4
    local = localize(model, "predsim", example_inputs=torch.empty(2, 3, 4, 4))
    plan = local.plan
    assert len(plan.modules) == 3
    bp = localize(model, "bp", example_inputs=torch.empty(2, 3, 4, 4))
    assert step_macs(bp, image_shape=(3, 4, 4)) == (2 + 3 + 3) * convolution + 3 * classifier
    found = step_macs(local, image_shape=(3, 4, 4))
    auxiliary = plan.auxiliary_macs
    # Similarity matrices of the batch are products too: 2 x 2 of rows of 3 values (and of 4 labels), few.
    assert 3 * 2 * convolution + 3 * classifier + 3 * auxiliary <= found
    assert found < (3 * 2 * convolution + 3 * classifier + 3 * auxiliary) * 1.05


def test_work_that_is_done_twice_counts_twice() -> None:
    """Checkpointing runs every layer once more in the backward pass; the classifier is no layer of its own."""
    model = cifar_resnet(8, width=4)
    bp, checkpoint = (step_macs(localize(model, method)) for method in ("bp", "checkpoint"))
    plan = localize(model, "bp").plan
    assert bp < checkpoint <= bp + plan.macs
    assert checkpoint >= bp + plan.macs - plan.classifier_macs
