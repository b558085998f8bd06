"""Python in a forward: what follows from sizes is captured, what does not is kept whole or refused by line."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from localize import CaptureError, InputError, LocalizeError, check, localize
from passes.capture.capture import capture
from passes.capture.fidelity import capture_verified
from passes.capture.replay import replay
from passes.pipeline import analyse
from passes.shapes.infer import infer_shapes
from tests.models import control_flow
from tests.models.control_flow import (
    CAPTURED,
    EXAMPLE,
    REFUSED,
    SPEC,
    Change,
    Part,
    Root,
    by_batch,
    by_size,
    by_value,
    length,
    net,
    own_buffer,
)
from tests.tools.agreement import assert_agrees


@pytest.mark.parametrize("change", CAPTURED)
def test_what_follows_from_sizes_is_captured(change: Change) -> None:
    for model in (Root(change), net(Part(change))):
        captured = capture_verified(model, None, None, SPEC)
        assert captured.opaque == ()
        # Of batches larger and smaller than the example, too.
        for batch in (2, 6):
            assert_agrees(captured, torch.randn(batch, 4, 8, 8))


def test_another_size_that_takes_another_path_is_an_error_and_no_wrong_result() -> None:
    captured = capture_verified(Root(by_size), None, None, SPEC)
    assert_agrees(captured, torch.randn(2, 4, 6, 6))
    with pytest.raises(InputError, match=r"takes another path .*\(at control_flow.py:\d+\).*Give example_inputs"):
        replay(captured, torch.randn(2, 4, 4, 4))
    local = localize(net(Part(by_size)), d=2, max_cut=1, example_inputs=EXAMPLE)
    for size in (8, 6):
        local.loss(torch.randn(2, 4, size, size), torch.tensor([0, 1])).backward()


@pytest.mark.parametrize("change", [*REFUSED, own_buffer])
def test_what_does_not_is_kept_whole(change: Change) -> None:
    captured = capture_verified(net(Part(change)), None, None, SPEC)
    (leaf,) = captured.opaque
    assert leaf.path == "1"
    assert REFUSED.get(change, "in place") in leaf.reason
    assert leaf.source is not None
    assert leaf.source.startswith("control_flow.py:")
    for batch in (2, 6):
        # Its buffer moves with every pass.
        captured.model.get_buffer("1.table").fill_(1.0)
        expected = captured.model.train()(torch.ones(batch, 4, 8, 8))
        captured.model.get_buffer("1.table").fill_(1.0)
        assert torch.equal(replay(captured, torch.ones(batch, 4, 8, 8))[0], expected)


@pytest.mark.parametrize("change", REFUSED)
def test_in_the_models_own_forward_it_is_refused_by_line(change: Change) -> None:
    with pytest.raises(CaptureError, match=REFUSED[change]) as error:
        localize(Root(change), d=2, example_inputs=EXAMPLE)
    assert error.value.where == "Root"
    assert error.value.source is not None
    assert error.value.source.startswith("control_flow.py:")
    assert "submodule" in str(error.value.remedy)


def test_without_an_example_no_decision_is_taken() -> None:
    with pytest.raises(CaptureError, match="depends on a tensor"):
        capture(Root(by_size))


ASSERTIONS = ("assert x.shape[0] % 2 == 0, 'odd'", "assert not (x > 9).any()", "assert (x < 9).all(), x")


@pytest.mark.parametrize("code", ASSERTIONS)
def test_assertions_stay_in_the_graph(code: str) -> None:
    scope: dict[str, Any] = {}
    # Not written out: pytest rewrites the assertions of tests.
    exec(f"def change(m, x):\n    {code}\n    return x", scope)
    for model in (Root(scope["change"]), net(Part(scope["change"]))):
        captured = capture_verified(model, None, None, SPEC)
        assert captured.opaque == ()
        assert infer_shapes(captured, SPEC.shape).output.shape == (2, 5)
        assert_agrees(captured, torch.randn(4, 4, 8, 8))
        with pytest.raises(AssertionError, match="assertion at"):
            replay(captured, torch.full((3, 4, 8, 8), 10.0))


def test_a_branch_on_the_batch_holds_in_the_graph() -> None:
    def even(m: Part, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] % 2:
            raise ValueError("batch must be even")
        return x

    captured = capture_verified(Root(even), None, None, SPEC)
    assert_agrees(captured, torch.randn(4, 4, 8, 8))
    with pytest.raises(InputError, match="takes another path"):
        replay(captured, torch.randn(3, 4, 8, 8))


def test_keyword_arguments_of_forward_are_left_out() -> None:
    class Open(Root):
        def forward(self, x: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
            if options or more:
                x = x * 2
            return super().forward(x)

    captured = capture_verified(Open(lambda m, x: x), None, None, SPEC)
    assert [n.op for n in captured.nodes].count("placeholder") == 1


def test_what_hides_the_layers_is_named_when_nothing_can_be_cut() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(Part(lambda m, x: x))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.body(x) if x.mean() < 1e9 else x
            return result

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Wrapped()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner(x)
            return result

    with pytest.raises(LocalizeError, match=r"inner \(test_control_flow.py:\d+\) is kept whole: its path depends on"):
        analyse(Outer(), EXAMPLE.shape)


def test_check_lists_several_obstacles() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Part(by_value), Part(by_batch)
            self.fc = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> Any:
            x = self.second(self.first(x)).mean((2, 3))
            return (self.fc(x) if x.sum() > 0 else x), x

    found = check(Three().requires_grad_(False), example_inputs=EXAMPLE)
    assert [obstacle.path for obstacle in found] == ["Three", "first", "second", "Three"]
    assert all(obstacle.remedy for obstacle in found)
    assert [bool(obstacle.source) for obstacle in found] == [False, True, True, True]


def test_a_leaf_that_looks_at_what_its_own_weights_compute_is_measured() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.more = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            result: torch.Tensor = self.more(y[:, :2].repeat(1, 2, 1, 1) if y.mean() > 1e9 else y)
            return result

    network = analyse(net(Late()), EXAMPLE.shape)
    late = network.shapes.specs["_1"]
    assert late is not None
    assert late.shape == (2, 4, 8, 8)


def test_a_decorated_forward_keeps_its_input() -> None:
    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            return function(*args, **options)

        return run

    class Decorated(Root):
        forward = traced(Root.forward)

    captured = capture_verified(Decorated(lambda m, x: x), None, None, SPEC)
    assert captured.input == "x"


def test_nothing_of_the_tracer_is_left_behind() -> None:
    before = torch.arange, nn.Module.__setattr__, torch.autograd.Function.apply, dict(vars(control_flow))
    for change in (length, by_value):
        with contextlib.suppress(CaptureError):
            capture(Root(change), example=SPEC)
    assert (torch.arange, nn.Module.__setattr__, torch.autograd.Function.apply, dict(vars(control_flow))) == before
