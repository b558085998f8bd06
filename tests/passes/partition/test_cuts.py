"""The choice of cuts, and the reason for every border that is none, on graphs built by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import fx, nn

from passes.errors import PartitionError
from passes.ir import Captured, CutCandidate, Layout, Shapes, TensorSpec
from passes.partition.cuts import Cutter, mergeable, parameter_spans
from passes.partition.flow import Flow
from passes.partition.granularity import check_granularity
from passes.partition.partition import partition
from tests.tools.hand_graphs import HandGraph, chain, network, residual


def borders(graph: tuple[Captured, Shapes], max_cut: int = 1) -> dict[str, CutCandidate]:
    return {border.after: border for border in network(graph, max_cut).partition.candidates}


def kinds(graph: tuple[Captured, Shapes], max_cut: int = 1) -> dict[str, str]:
    """Node before each border -> why it is no cut, or "cut"."""
    return {name: border.refusal.kind if border.refusal else "cut" for name, border in borders(graph, max_cut).items()}


def pooled(hand: HandGraph, value: fx.Node) -> tuple[Captured, Shapes]:
    return hand.finish(hand.linear("fc", hand.op("pool", value, shape=(2, 4))))


def test_norms_stay_with_the_convolution_before_them() -> None:
    assert kinds(chain(2)) == {"c0": "another", "n0": "cut", "c1": "another", "n1": "cut", "pool": "classifier"}


def test_the_option_for_another_border_names_its_module() -> None:
    refusal = borders(chain(2))["c0"].refusal
    assert refusal is not None
    assert refusal.option == "granularity=[..., 'c0']"
    assert "the cut after n0, which is better: it is the latest" in refusal.reason


def test_no_layer_begins_before_the_first_mixing_operation() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.layer("norm", nn.BatchNorm2d(4), hand.x))
    assert kinds(pooled(hand, hand.conv("b", first)))["norm"] == "start"


def test_a_border_that_too_much_crosses_names_the_max_cut() -> None:
    refusal = borders(residual(1))["blocks_0_a"].refusal
    assert refusal is not None
    assert (refusal.kind, refusal.option) == ("wide", "max_cut=2")
    assert refusal.reason == "2 tensors cross it, and at most 1 may"


def test_wider_cuts_are_taken_where_they_are_allowed() -> None:
    assert kinds(residual(1), max_cut=2)["blocks_0_a"] == "cut"


def test_a_value_that_is_no_tensor_bars_a_cut() -> None:
    hand = HandGraph()
    pair = hand.op("chunk", hand.conv("a", hand.x), shape=None)
    graph = pooled(hand, hand.conv("b", hand.op("item", pair)))
    assert kinds(graph)["chunk"] == "no tensor"


def test_a_depthwise_convolution_goes_with_the_pointwise_one_after_it() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.x)
    deep = hand.layer("norm", nn.BatchNorm2d(4), hand.conv("deep", first, depthwise=True))
    assert kinds(pooled(hand, hand.conv("b", deep))) == {
        "a": "cut",
        "deep": "depthwise",
        "norm": "depthwise",
        "b": "cut",
        "pool": "classifier",
    }


def test_two_uses_of_one_parameter_lie_in_one_layer() -> None:
    hand = HandGraph()
    first = hand.conv("twice", hand.conv("a", hand.x))
    again = hand.conv("twice", hand.conv("b", first))
    found = borders(pooled(hand, hand.conv("c", again)))
    refusal = found["b"].refusal
    assert refusal is not None
    assert (refusal.kind, refusal.reason) == ("tied", "twice.weight is used before and after it")


def test_what_is_overwritten_later_is_no_cut_if_there_is_a_better_one() -> None:
    hand = HandGraph()
    first = hand.layer("relu", nn.ReLU(inplace=True), hand.conv("a", hand.x))
    refusal = borders(pooled(hand, hand.conv("b", first)))["a"].refusal
    assert refusal is not None
    assert refusal.kind == "overwritten"
    assert refusal.reason.startswith("relu overwrites in place what crosses")


def test_a_border_where_modules_end_is_better_than_a_later_one() -> None:
    hand = HandGraph()
    first = hand.conv("block.a", hand.x)
    norm = hand.layer("norm", nn.BatchNorm2d(4), first)
    graph = pooled(hand, hand.conv("b", hand.layer("last", nn.BatchNorm2d(4), norm)))
    hand.call("block", [first])
    captured = dataclasses.replace(graph[0], calls=tuple(hand.calls))
    assert kinds((captured, graph[1]))["block_a"] == "cut"


def test_values_without_known_channels_cannot_be_read() -> None:
    hand = HandGraph()
    first = hand.op("shuffle", hand.conv("a", hand.x))
    graph = pooled(hand, hand.conv("b", first))
    hand.specs["shuffle"] = TensorSpec((2, 2, 2, 8, 8), layout="other")
    refusal = borders(graph)["shuffle"].refusal
    assert refusal is not None
    assert refusal.kind == "unreadable"


def test_a_parameter_that_reaches_windows_alone_bars_a_cut() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.x)
    windows = hand.conv("b", first)
    image = hand.op("image", first)
    graph = pooled(hand, hand.conv("c", hand.op("join", image, windows, function=torch.add)))
    hand.specs["b"] = TensorSpec((8, 4, 4, 4), layout="NCHW")
    assert kinds(graph, max_cut=2)["image"] == "unreached"


def test_the_classifier_begins_where_height_and_width_are_gone() -> None:
    hand = HandGraph()
    pool = hand.op("pool", hand.conv("b", hand.conv("a", hand.x)), shape=(2, 4))
    hidden = hand.linear("hidden", pool, outputs=4)
    graph = hand.finish(hand.linear("fc", hidden))
    assert kinds(graph) == {"a": "cut", "b": "cut", "pool": "classifier", "hidden": "classifier"}


def test_without_images_the_last_mixing_operation_is_the_classifier() -> None:
    hand = HandGraph((2, 4))
    graph = hand.finish(hand.linear("fc", hand.linear("b", hand.linear("a", hand.x, 4), 4)))
    assert kinds(graph) == {"a": "cut", "b": "cut"}


def test_every_border_is_a_cut_or_has_a_reason() -> None:
    for graph in (chain(3), residual(2)):
        candidates = partition(*graph).candidates
        assert all((border.layer is None) == (border.refusal is not None) for border in candidates)
        assert [border.layer for border in candidates if border.refusal is None] == [
            *range(len(partition(*graph).cuts))
        ]


def test_a_candidate_says_where_it_is() -> None:
    border = borders(residual(1))["add_0"]
    assert (border.place, border.path, border.before, border.next_place) == (
        "add_0 in blocks.0",
        "blocks.0",
        "pool",
        "pool",
    )
    assert str(border) == "after add_0 in blocks.0 (1 tensor): cut, layer 1 ends here"
    assert str(borders(residual(1))["blocks_0_a"]).endswith("at most 1 may (max_cut=2 lifts this)")


def test_the_better_of_two_cuts_with_equal_modules_is_the_narrow_one() -> None:
    hand = HandGraph()
    first = hand.conv("a", hand.x)
    left, right = hand.op("left", first), hand.op("right", first)
    graph = pooled(hand, hand.conv("b", hand.op("join", left, right, function=torch.add)))
    assert kinds(graph, max_cut=2)["left"] == "another"
    assert kinds(graph, max_cut=2)["join"] == "cut"


def test_spans_of_parameters_name_them() -> None:
    hand = HandGraph()
    again = hand.conv("twice", hand.conv("a", hand.conv("twice", hand.x)))
    captured, shapes = pooled(hand, again)
    spans = parameter_spans(captured, Flow(captured, shapes).segments(1))
    assert {(span.subject, span.start, span.stop) for span in spans} == {("twice.weight", 1, 3), ("twice.bias", 1, 3)}


def test_only_floats_with_a_row_for_each_sample_are_read() -> None:
    layout: Layout = "NC"
    _, shapes = chain(1)
    specs = {
        "rows": TensorSpec((2, 3), layout=layout),
        "windows": TensorSpec((8, 3), layout=layout),
        "indices": TensorSpec((2, 3), torch.int64, layout),
        "tuple": None,
    }
    changed = Shapes(specs, shapes.costs, shapes.numbers, shapes.input, shapes.output)
    assert [name for name in specs if mergeable(changed, name)] == ["rows"]


def test_no_cut_without_two_mixing_operations() -> None:
    captured, shapes = chain(0)
    choice = Cutter(Flow(captured, shapes), 1, "minimal").choose()
    assert choice.cuts == ()


def test_named_cuts_refuse_all_others() -> None:
    captured, shapes = chain(3)
    result = partition(captured, shapes, granularity=["c1"])
    found = {border.after: border.refusal.kind if border.refusal else "cut" for border in result.candidates}
    assert found == {
        "c0": "not named",
        "n0": "not named",
        "c1": "cut",
        "n1": "not named",
        "c2": "not named",
        "n2": "not named",
        "pool": "not named",
    }
    assert check_granularity(["c1"]) == check_granularity(("c1",))


def test_the_error_of_a_model_without_cuts_says_why() -> None:
    hand = HandGraph()
    last = hand.conv("twice", hand.conv("a", hand.conv("twice", hand.x)))
    message = "of 2 borders between two operations, 2 cannot be cut because twice.weight is used before and after it"
    with pytest.raises(PartitionError, match=f"{message}. Train it with method='bp'"):
        partition(*hand.finish(last), max_cut=1)
