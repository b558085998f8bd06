"""Capture: the graph is right, what cannot be traced is reported, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localize import LocalizeError, check, localize
from passes.capture.capture import capture
from passes.capture.leaf_policy import LeafPolicy
from passes.errors import CaptureError
from passes.shapes.infer import infer_shapes


class Stubborn(nn.Module):
    """A block whose forward looks at the size of the batch, which another batch may change."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 100:
            x = x * 2
        result: torch.Tensor = self.conv(x)
        return result


class ByValue(nn.Module):
    """A block whose forward looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(x) if float(x.detach().mean()) > -1e9 else x
        return result


def net(*blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def test_leaf_policy_is_an_argument() -> None:
    model = net(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
    opened = [n.target for n in capture(model).nodes if n.op == "call_module"]
    assert "2.0" in opened
    closed = capture(model, LeafPolicy(paths=frozenset({"2"})))
    assert "2" in [n.target for n in closed.nodes if n.op == "call_module"]
    assert not closed.opaque


def test_leaf_classes_stay_whole() -> None:
    class Block(nn.Sequential):
        pass

    captured = capture(net(Block(nn.Conv2d(4, 4, 1))), LeafPolicy(classes=frozenset({Block})))
    assert [n.target for n in captured.nodes if n.op == "call_module"][2] == "2"


@pytest.mark.parametrize("block", [Stubborn, ByValue])
def test_what_cannot_be_traced_becomes_a_reported_leaf_and_trains(block: type[nn.Module]) -> None:
    model = net(nn.Conv2d(4, 4, 3, padding=1), nn.Sequential(block(), nn.ReLU()), nn.Conv2d(4, 4, 1))
    captured = capture(model)
    (leaf,) = captured.opaque
    assert leaf.path == "3.0"
    assert leaf.source is not None
    assert leaf.source.startswith("test_capture.py:")
    example = torch.empty(2, 3, 8, 8)
    local = localize(model, d=2, example_inputs=example)
    assert local.plan.opaque == ("3.0",)
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 4])
    for out in local.steps(x, y):
        out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(local.eval()(x), model.eval()(x))
    (obstacle,) = check(model, example_inputs=example)
    assert (obstacle.path, obstacle.source) == ("3.0", leaf.source)
    assert obstacle.remedy


def test_a_root_that_cannot_be_traced_is_refused_by_class_and_line() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                x = -x
            result: torch.Tensor = self.conv(x)
            return result

    with pytest.raises(CaptureError, match=r"forward cannot be traced \(in Fickle, at test_capture.py:\d+\)") as error:
        capture(Fickle())
    assert "\n" not in str(error.value)
    assert error.value.remedy


def test_constants_made_in_forward_never_land_on_the_model() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.more = nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 5)
            self.plain = torch.tensor([2.0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) * self.plain
            result: torch.Tensor = self.fc(self.more(x).mean((2, 3)))
            return result

    model = Shifted()
    names = set(model.__dict__)
    captured = capture(model)
    assert len(captured.constants) == 1
    assert set(model.__dict__) == names
    local = localize(model, d=2, example_inputs=torch.empty(2, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(local.train()(x), model(x))


def test_further_arguments_keep_their_defaults() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(nn.Conv2d(4, 4, 1))

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, *, scale: float = 1.0) -> torch.Tensor:
            if mask is not None:
                x = x * mask
            result: torch.Tensor = self.body(x * scale)
            return result

    captured = capture(Masked())
    assert [n.op for n in captured.nodes].count("placeholder") == 1
    assert not captured.opaque


@pytest.mark.parametrize("arguments", ["x, y", "*xs", ""])
def test_a_forward_that_does_not_take_one_tensor_is_refused(arguments: str) -> None:
    scope: dict[str, Any] = {"nn": nn}
    exec(f"class Odd(nn.Module):\n    def forward(self, {arguments}):\n        return None", scope)
    with pytest.raises(CaptureError, match="must take one tensor"):
        capture(scope["Odd"]())


def test_a_tuple_is_refused_as_output() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.fc(x)
            return y, F.relu(y)

    with pytest.raises(CaptureError, match=r"it returns 2 values.*Give output=0 or output=1"):
        capture(Two())


@pytest.mark.parametrize("fails", [False, True])
def test_mode_attributes_and_hooks_are_put_back(fails: bool) -> None:
    class Counting(Stubborn):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1  # state that a forward writes
            if fails:
                raise RuntimeError("no")
            return super().forward(x)

    model = net(Counting(), nn.Conv2d(4, 4, 1)).eval()
    model[0].train()
    fired: list[str] = []
    model[0].register_forward_hook(lambda *_: fired.append("leaf"))
    modes = [m.training for m in model.modules()]
    attributes = [set(m.__dict__) for m in model.modules()]
    try:
        infer_shapes(capture(model), (2, 3, 8, 8))
    except LocalizeError:
        assert fails
    else:
        assert not fails
    assert [m.training for m in model.modules()] == modes
    assert [set(m.__dict__) for m in model.modules()] == attributes
    assert model[2].calls == 0
    assert not fired
    assert len(model[0]._forward_hooks) == 1


def test_source_lines_point_into_the_users_code() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(x)
            return y + 1

    captured = capture(Plain())
    lines = {n.op: captured.sources[n.name] for n in captured.nodes if n.name in captured.sources and n.op != "output"}
    first = Plain.forward.__code__.co_firstlineno
    assert lines["call_module"] == f"test_capture.py:{first + 1}"
    assert lines["call_function"] == f"test_capture.py:{first + 2}"


def test_a_wrong_input_size_names_module_and_reason() -> None:
    captured = capture(net(nn.Conv2d(4, 4, 1)))
    with pytest.raises(CaptureError, match="does not run on this input") as error:
        infer_shapes(captured, (2, 1, 8, 8))
    assert error.value.where == "0"


class Pooled(nn.Module):
    """No parameters; several values in, several out, as a feature pyramid's extra level."""

    def forward(self, levels: list[torch.Tensor], names: list[str]) -> tuple[list[torch.Tensor], list[str]]:
        return [*levels, F.max_pool2d(levels[-1], 2)], [*names, "pool"]


class Largest(nn.Module):
    """No parameters; several values in, and a decision on what they hold."""

    def forward(self, values: list[torch.Tensor]) -> torch.Tensor:
        return values[0] if bool(values[0].sum() > 0) else values[1]


class Levels(nn.Module):
    def __init__(self, extra: nn.Module) -> None:
        super().__init__()
        self.conv, self.fc, self.extra = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5), extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if isinstance(self.extra, Pooled):
            levels, names = self.extra([x, x + 1], ["0", "1"])
            assert names == ["0", "1", "pool"]
            x = levels[-1]
        else:
            x = self.extra([x, x + 1])
        result: torch.Tensor = self.fc(x.mean((2, 3)))
        return result


def test_a_module_without_parameters_that_takes_several_values_is_looked_into_if_it_can_be() -> None:
    captured = capture(Levels(Pooled()))
    assert "extra" not in {str(node.target) for node in captured.nodes}
    assert captured.opaque == ()
    captured = capture(Levels(Largest()))
    assert [str(node.target) for node in captured.nodes if node.op == "call_module"] == ["conv", "extra", "fc"]
    assert [opaque.path for opaque in captured.opaque] == ["extra"]
