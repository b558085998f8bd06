"""In-place operations and views, one node each."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from passes.capture.proxies import set_item, store
from passes.common.inplace import hands_on_memory, is_size, is_view, mutates_input, overwritten
from tests.tools.hand_graphs import HandGraph


class Code:
    """A graph with one input, and the modules that its nodes call."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.x = self.graph.placeholder("x")
        self.modules: dict[str, nn.Module] = {}

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def call(self, what: nn.Module | Callable[..., object] | str, *args: Any, **kwargs: Any) -> fx.Node:
        arguments = (self.x, *args)
        if isinstance(what, nn.Module):
            self.modules[f"m{len(self.modules)}"] = what
            return self.graph.call_module(f"m{len(self.modules) - 1}", arguments, kwargs)
        kind = "call_method" if isinstance(what, str) else "call_function"
        return self.graph.create_node(kind, what, arguments, kwargs)


IN_PLACE = ["add_", "relu_", operator.iadd, operator.imul, operator.ipow, set_item, store, nn.ReLU(inplace=True)]
OUT_OF_PLACE = ["add", "__iadd__x__", operator.add, torch.relu, F.relu, nn.ReLU(), nn.Conv2d(3, 3, 1)]
VIEWS = ["view", "permute", "contiguous", "unbind", torch.flatten, torch.split, operator.getitem]
COPIES = ["clone", "repeat", torch.relu, torch.cat, operator.add]


def named(what: object) -> str:
    """Name a parameter: a method by its name, a function too, without the address that its text holds."""
    return what if isinstance(what, str) else f"{getattr(what, '__module__', '')}.{getattr(what, '__name__', what)}"


@pytest.mark.parametrize("what", IN_PLACE, ids=named)
def test_what_changes_its_first_argument(what: str) -> None:
    code = Code()
    assert mutates_input(code, code.call(what))


@pytest.mark.parametrize("what", OUT_OF_PLACE, ids=named)
def test_what_does_not(what: str) -> None:
    code = Code()
    assert not mutates_input(code, code.call(what))


def test_a_function_may_be_told_to_work_in_place() -> None:
    code = Code()
    assert mutates_input(code, code.call(F.relu, inplace=True))


def test_a_dunder_method_does_not_end_in_the_mark_of_in_place_methods() -> None:
    code = Code()
    assert not mutates_input(code, code.call("__len__"))


@pytest.mark.parametrize("what", VIEWS, ids=named)
def test_what_may_share_memory(what: str) -> None:
    assert is_view(Code().call(what))


@pytest.mark.parametrize("what", COPIES, ids=named)
def test_what_has_memory_of_its_own(what: str) -> None:
    assert not is_view(Code().call(what))


@pytest.mark.parametrize(("attribute", "shares"), [("T", True), ("data", True), ("shape", False), ("ndim", False)])
def test_an_attribute_shares_memory_unless_it_is_a_size(attribute: str, shares: bool) -> None:
    assert is_view(Code().call(getattr, attribute)) is shares


@pytest.mark.parametrize("module", [nn.Identity(), nn.Flatten(), nn.Dropout()], ids=named)
def test_a_module_may_hand_its_input_on(module: nn.Module) -> None:
    code = Code()
    assert hands_on_memory(code, code.call(module))


def test_a_size_is_read_off_a_shape_or_computed_from_one() -> None:
    code = Code()
    size = code.call("size", 1)
    half = code.graph.call_function(operator.floordiv, (size, 2))
    assert is_size(size)
    assert is_size(half)
    assert not is_size(code.call(operator.floordiv, 2))


def test_an_input_that_is_overwritten_through_a_view() -> None:
    hand = HandGraph()
    flat = hand.op("flat", hand.x, function="flatten")
    hand.op("change", flat, function="relu_")
    captured, _ = hand.finish(hand.conv("a", hand.x))
    assert overwritten(captured, ["x"], captured.nodes[1:]) == {"x"}


def test_a_copy_may_be_overwritten() -> None:
    hand = HandGraph()
    hand.op("change", hand.conv("a", hand.x), function="relu_")
    captured, _ = hand.finish(hand.conv("b", hand.x))
    assert overwritten(captured, ["x"], captured.nodes[1:]) == set()
