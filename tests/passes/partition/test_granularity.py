"""Granularity: what stays whole, and cuts by name, on graphs built by hand."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from passes.errors import PartitionError
from passes.ir import Partition
from passes.partition.granularity import Granularity, Named, check_granularity, path_after
from passes.partition.partition import partition
from tests.tools.hand_graphs import HandGraph, chain, residual


def cut(granularity: Granularity, max_cut: int = 2) -> Partition:
    return partition(*residual(2), max_cut, granularity)


def test_minimal_layers_lie_inside_blocks() -> None:
    assert cut("minimal").cuts == ("stem", "blocks_0_a", "add_0", "blocks_1_a", "add_1")


def test_listed_blocks_stay_whole() -> None:
    assert cut("block").cuts == ("stem", "add_0", "add_1")


def test_modules_of_a_class_stay_whole() -> None:
    class Block(nn.Module):
        pass

    captured, shapes = residual(2)
    captured.model.set_submodule("blocks", nn.ModuleList([Block(), Block()]))
    for i in range(2):
        for name in "ab":
            captured.model.get_submodule(f"blocks.{i}").add_module(name, nn.Conv2d(4, 4, 1))
    assert partition(captured, shapes, 2, Block).cuts == ("stem", "add_0", "add_1")


def test_a_class_that_the_model_does_not_have() -> None:
    with pytest.raises(PartitionError, match="the model has no GRU"):
        cut(nn.GRU)


def test_the_refusal_says_what_keeps_a_block_whole() -> None:
    border = next(border for border in cut("block").candidates if border.after == "blocks_0_a")
    assert border.refusal is not None
    assert (border.refusal.kind, border.refusal.option) == ("granularity", "granularity='minimal'")
    assert border.refusal.reason == "granularity keeps blocks.0 whole"


def test_cuts_by_name() -> None:
    result = cut(["blocks.0", "stem"])
    assert [layer.name for layer in result.layers] == ["stem", "blocks.0"]


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        (["blocks.7"], "unknown module 'blocks.7' to cut after"),
        (["blocks.0.a"], "2 tensors cross there. Allow wider cuts: max_cut=2"),
        (["fc"], "leaves a layer without convolution"),
        (["stem", "x"], "leaves a layer without convolution"),
    ],
)
def test_names_that_cannot_be_cut_after(granularity: list[str], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        cut(granularity, max_cut=1)


def test_a_named_cut_between_two_uses_of_a_parameter() -> None:
    hand = HandGraph()
    value = hand.conv("twice", hand.conv("a", hand.conv("twice", hand.x)))
    graph = hand.finish(hand.linear("fc", hand.op("pool", value, shape=(2, 4))))
    with pytest.raises(PartitionError, match="between two uses of the same parameters"):
        partition(*graph, granularity=["a"])


@pytest.mark.parametrize("value", ["blocks", 3, [], [3], [nn.Conv2d, "a"]])
def test_what_no_granularity_is(value: Any) -> None:
    with pytest.raises(PartitionError, match="is unknown"):
        check_granularity(value)


def test_one_class_is_a_tuple_of_one() -> None:
    assert check_granularity(nn.Conv2d) == (nn.Conv2d,)
    assert check_granularity(("a", "b")) == Named(("a", "b"))


def test_the_name_after_a_node() -> None:
    captured, _ = residual(1)
    names = {node.name: path_after(captured, node) for node in captured.nodes[1:-1]}
    assert names == {
        "stem": "stem",
        "blocks_0_a": "blocks.0.a",
        "blocks_0_b": "blocks.0.b",
        "add_0": "blocks.0",
        "pool": "pool",
        "fc": "fc",
    }


def test_no_name_leads_to_the_first_of_two_calls() -> None:
    hand = HandGraph()
    first = hand.layer("relu", nn.ReLU(), hand.conv("a", hand.x))
    last = hand.layer("relu", nn.ReLU(), hand.conv("b", first))
    captured, _ = hand.finish(last)
    assert path_after(captured, first) is None
    assert path_after(captured, last) == "relu"


def test_a_chain_needs_no_granularity() -> None:
    assert partition(*chain(2), granularity="block").cuts == partition(*chain(2)).cuts
