"""Models that return more than one tensor: which is the output, and the user's own containers made anew."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import nn

from passes.capture.capture import capture
from passes.capture.replay import replay
from passes.errors import CaptureError
from passes.ir import Captured
from passes.shapes.infer import infer_shapes
from passes.structure import Structure


class Pair(NamedTuple):
    logits: Any
    extra: Any


@dataclasses.dataclass(frozen=True)
class Result:
    extra: Any
    logits: Any
    note: str = "none"
    count: int = dataclasses.field(init=False, default=3)


@dataclasses.dataclass(slots=True)
class Nested:
    parts: Any
    pair: Pair


Make = Callable[[Any, Any], Any]


class Net(nn.Module):
    """Logits (N, 5) and a vector (N, 4), returned as ``make(logits, vector)``."""

    def __init__(self, make: Make, in_eval: Make | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.make, self.in_eval = make, in_eval

    def forward(self, x: torch.Tensor) -> Any:
        x = self.norm(self.conv(x)).mean((2, 3))
        make = self.make if self.training or self.in_eval is None else self.in_eval
        return make(self.fc(x), x)


CONTAINERS: dict[str, tuple[Make, Any]] = {
    "tuple": (lambda a, b: (b, a), 1),
    "from the end": (lambda a, b: (b, a), -1),
    "list": (lambda a, b: [a, b], 0),
    "dict": (lambda a, b: {"logits": a, "extra": b}, "logits"),
    "ordered dict": (lambda a, b: collections.OrderedDict(extra=b, logits=a), "logits"),
    "named tuple by name": (Pair, "logits"),
    "named tuple by index": (lambda a, b: Pair(b, a), 1),
    "dataclass": (lambda a, b: Result(b, a), "logits"),
    "nested": (lambda a, b: Nested({"x": [b, None, 1.5]}, Pair(a, "text")), ("pair", "logits")),
    "the only one there": (lambda a, b: {"deep": ([b], {"logits": a})}, ("deep", 1)),
    "twice the same": (lambda a, b: {"a": a, "b": b, "again": a}, "again"),
}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def values_of(result: Any) -> list[torch.Tensor]:
    """All tensors of nested containers, by a walk of the test's own."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        items = list(result.values())
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        items = [getattr(result, field.name) for field in dataclasses.fields(result)]
    else:
        items = list(result) if isinstance(result, (tuple, list)) else []
    return [tensor for item in items for tensor in values_of(item)]


def assert_rebuilds(captured: Captured, x: torch.Tensor = X) -> None:
    """Check that running the graph gives the model's own train-mode result, containers included."""
    model = captured.model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    expected = model(x)
    model.load_state_dict(state)
    torch.manual_seed(1)
    rebuilt = captured.structure.rebuild(replay(captured, x))
    assert type(rebuilt) is type(expected)
    assert repr(rebuilt) == repr(expected)
    found, wanted = values_of(rebuilt), values_of(expected)
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("case", CONTAINERS)
def test_output_selects_the_primary(case: str) -> None:
    make, output = CONTAINERS[case]
    captured = capture(Net(make), output=output)
    assert captured.result.target == "fc"
    assert len(captured.heads) == 1
    assert not captured.structure.bare
    assert infer_shapes(captured, (2, 3, 8, 8)).output.shape == (2, 5)
    assert_rebuilds(captured)


@pytest.mark.parametrize("make", [lambda a, b: a, lambda a, b: (a, None), lambda a, b: {"y": [a, 3]}, Result])
def test_one_tensor_needs_no_selection(make: Make) -> None:
    captured = capture(Net((lambda a, b: Result(None, a)) if make is Result else make))
    assert (captured.result.target, captured.heads) == ("fc", ())
    assert_rebuilds(captured)


@pytest.mark.parametrize(
    ("train", "evaluate"),
    [
        (lambda a, b: (a, b), lambda a, b: a),
        (lambda a, b: Pair(b, a), lambda a, b: a),  # the one that eval computes likewise
        (lambda a, b: {"first": a, "second": b}, lambda a, b: (a + 1,)),
    ],
)
def test_auxiliary_outputs_in_train_mode_only(train: Make, evaluate: Make) -> None:
    captured = capture(Net(train, evaluate))
    assert captured.result.target == "fc"
    assert len(captured.heads) == 1
    assert_rebuilds(captured)


def test_what_cannot_be_decided_lists_the_choices() -> None:
    with pytest.raises(CaptureError, match=r"returns 2 values.*output=\('pair', 'logits'\) or output=\('parts', 0\)"):
        capture(Net(lambda a, b: {"pair": Pair(a, None), "parts": [b]}))


REFUSED: dict[str, tuple[Make, Any, str]] = {
    "no such key": (lambda a, b: {"x": a, "y": b}, "z", r"leads to no tensor.*Give output='x' or output='y'"),
    "out of range": (lambda a, b: (a, b), 2, r"leads to no tensor.*Give output=0 or output=1"),
    "no container": (lambda a, b: a, "x", "leads to no tensor.*Leave output out"),
    "a plain value": (lambda a, b: (a, b, None), 2, "leads to no tensor"),
    "several": (lambda a, b: {"x": (a, b)}, "x", r"leads to 2 values.*output=\('x', 0\) or output=\('x', 1\)"),
    "nothing": (lambda a, b: None, None, "in train mode it returns none"),
    "an object": (lambda a, b: (a, object()), None, "returns a object, which cannot be looked into"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    make, output, message = REFUSED[case]
    with pytest.raises(CaptureError, match=message) as error:
        capture(Net(make), output=output)
    assert error.value.where == "Net"
    assert error.value.remedy


def test_a_whole_leaf_that_returns_several_values_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return (x, self.fc(x)) if x.shape[0] > 1 else x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: torch.Tensor) -> Any:
            return self.two(x)

    with pytest.raises(CaptureError, match=r"two returns several values.*a, b = self\.part\(x\)"):
        infer_shapes(capture(Outer()), (2, 3))


def test_values_are_read_back_from_an_equal_structure_only() -> None:
    structure = capture(Net(lambda a, b: Nested({"x": [b]}, Pair(a, "text"))), output=("pair", 0)).structure
    assert structure.read(Nested({"x": ["b"]}, Pair("a", "text"))) == ["a", "b"]
    for other in (Nested({"x": ["b"]}, Pair("a", "other")), Nested({"y": ["b"]}, Pair("a", "text")), ("a", "b")):
        with pytest.raises(ValueError, match=r"where the model returns|other keys"):
            structure.read(other)
    assert Structure().read("anything") == ["anything"]


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_auxiliary_logits(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=10, init_weights=False)
    captured = capture(model)
    size = 299 if name == "inception_v3" else 224
    assert captured.result.target == "fc"
    assert [str(head.target) for head in captured.heads] == (
        ["AuxLogits.fc"] if size == 299 else ["aux2.fc2", "aux1.fc2"]
    )
    assert infer_shapes(captured, (2, 3, size, size)).output.shape == (2, 10)
