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
from passes.ir import Captured, TensorSpec
from passes.pipeline import analyse
from passes.shapes.infer import infer_shapes

EXAMPLE = torch.empty(2, 4, 8, 8)
SPEC = TensorSpec(tuple(EXAMPLE.shape))
Change = Callable[[Any, Any], Any]


class Part(nn.Module):
    """Two convolutions, and code of the test's own, given the module and its input (N, 4, H, W)."""

    table: torch.Tensor

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change
        self.conv, self.more = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("table", torch.randn(4, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.more(self.conv(self.change(self, x)))
        return result


class Root(Part):
    """The same code in a model's own forward."""

    def __init__(self, change: Change) -> None:
        super().__init__(change)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(super().forward(x).mean((2, 3)))
        return result


def net(part: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), part, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def by_size(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.shape[2] > 4 else x


def by_rank(m: Part, x: torch.Tensor) -> torch.Tensor:
    if x.ndim != 4 or len(x.shape) != 4 or x.dim() != 4:
        raise ValueError("no image")
    return x * 2


def loop(m: Part, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, i] * (i + 1) for i in range(x.shape[1])], 1)


def loop_over_parts(m: Part, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([part * i for i, part in enumerate(x.chunk(2, 1))], 1)


def star(m: Part, x: torch.Tensor) -> torch.Tensor:
    def total(*parts: torch.Tensor) -> torch.Tensor:
        found = parts[0]
        for part in parts[1:]:
            found = found + part
        return found

    return x + total(*x.split(1, 1))


def length(m: Part, x: torch.Tensor) -> torch.Tensor:
    batch, one = int(x.shape[0]), int.from_bytes(b"\1", "big")
    if not isinstance(one, int) or len([one]) != 1:
        raise TypeError("int is int")
    return x.reshape(len(x), -1).view(batch, 4, x.shape[2], -1) * one


def position_table(m: Part, x: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
    return x + rows[:, None] + torch.zeros(x.shape[0], 1, 1, 1)


def slice_of_buffer(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x + m.table[:, : x.shape[2], : x.shape[3]]


def own_drop_path(m: Part, x: torch.Tensor) -> torch.Tensor:
    kept = (torch.rand(x.shape[0], 1, 1, 1) < 0.5).to(x.dtype)
    return x * kept.div_(0.5)


def floats(m: Part, x: torch.Tensor) -> torch.Tensor:
    scale: float = float(x.shape[1]) ** -0.5
    return x * scale + max(x.shape[2], 3) % 5


def written_item(m: Part, x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 0] = 1.5
    y[:, 1:2] += m.scale[:1]
    return y


def assertion(m: Part, x: torch.Tensor) -> torch.Tensor:
    assert x.shape[2] % 2 == 0, "odd"
    torch._assert(x.shape[0] % 2 == 0, "batch must be even")
    return x


def made_in_forward(m: Part, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = nn.ReLU()(x)
    return result


CAPTURED: tuple[Change, ...] = (
    by_size, by_rank, loop, loop_over_parts, star, length, position_table, slice_of_buffer, own_drop_path, floats,
    written_item, assertion, made_in_forward,
)  # fmt: skip


def assert_agrees(captured: Captured, x: torch.Tensor) -> None:
    model = captured.model.train()
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert torch.equal(replay(captured, x)[0], expected)


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
    with pytest.raises(InputError, match=r"takes another path .*\(at test_control_flow.py:\d+\).*Give example_inputs"):
        replay(captured, torch.randn(2, 4, 4, 4))
    local = localize(net(Part(by_size)), d=2, max_cut=1, example_inputs=EXAMPLE)
    for size in (8, 6):
        local.loss(torch.randn(2, 4, size, size), torch.tensor([0, 1])).backward()


def by_value(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.mean() > 0 else x


def by_item(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * int(x.argmax())


def by_batch(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.shape[0] > 3 else x


def by_batch_loop(m: Part, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[i] for i in range(len(x))])


def by_type(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype == torch.float16 else x


def by_buffer(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if m.table.sum() > 0 else x


def own_buffer(m: Part, x: torch.Tensor) -> torch.Tensor:
    m.table.mul_(0.5)
    return x


REFUSED: dict[Change, str] = {
    by_value: "values of a tensor",
    by_item: "values of a tensor",
    by_batch: "batch size",
    by_batch_loop: "batch size",
    by_type: "dtype",
    by_buffer: "values of a tensor",
}


@pytest.mark.parametrize("change", [*REFUSED, own_buffer])
def test_what_does_not_is_kept_whole(change: Change) -> None:
    captured = capture_verified(net(Part(change)), None, None, SPEC)
    (leaf,) = captured.opaque
    assert leaf.path == "1"
    assert REFUSED.get(change, "in place") in leaf.reason
    assert leaf.source is not None
    assert leaf.source.startswith("test_control_flow.py:")
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
    assert error.value.source.startswith("test_control_flow.py:")
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
    before = torch.arange, nn.Module.__setattr__, torch.autograd.Function.apply, dict(globals())
    for change in (length, by_value):
        with contextlib.suppress(CaptureError):
            capture(Root(change), example=SPEC)
    assert (torch.arange, nn.Module.__setattr__, torch.autograd.Function.apply, dict(globals())) == before
