"""Layouts of values, on graphs built by hand."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from passes.ir import Layout, TensorSpec
from passes.shapes.layouts import with_layouts
from tests.tools.hand_graphs import HandGraph


def layout_of(hand: HandGraph, node: fx.Node) -> Layout | None:
    captured, shapes = hand.finish(node)
    spec = with_layouts(captured, shapes.specs)[node.name]
    return None if spec is None else spec.layout


@pytest.mark.parametrize(("rank", "layout"), [(2, "NC"), (3, "NLC"), (4, "NCHW")])
def test_the_number_of_dimensions_decides(rank: int, layout: Layout) -> None:
    hand = HandGraph((2, 4, 8, 8)[:rank])
    assert layout_of(hand, hand.x) == layout


def permuted(hand: HandGraph, of: fx.Node, order: tuple[int, ...]) -> fx.Node:
    node = hand.op("permuted", of, function="permute")
    node.args = (of, order)
    return node


def test_a_permutation_moves_channels_to_the_end() -> None:
    hand = HandGraph()
    assert layout_of(hand, permuted(hand, hand.x, (0, 2, 3, 1))) == "NHWC"


def test_another_permutation_moves_them_back() -> None:
    hand = HandGraph()
    last = permuted(hand, hand.x, (0, 2, 3, 1))
    back = hand.op("back", last, function="permute")
    back.args = (last, 0, 3, 1, 2)
    assert layout_of(hand, back) == "NCHW"


def test_other_operations_keep_the_layout() -> None:
    hand = HandGraph()
    assert layout_of(hand, hand.op("same", permuted(hand, hand.x, (0, 2, 3, 1)))) == "NHWC"


def test_a_linear_layer_reads_channels_last() -> None:
    hand = HandGraph()
    assert layout_of(hand, hand.layer("fc", nn.Linear(8, 8), hand.x)) == "NHWC"


def test_a_convolution_gives_channels_first() -> None:
    hand = HandGraph()
    assert layout_of(hand, hand.conv("a", permuted(hand, hand.x, (0, 2, 3, 1)))) == "NCHW"


def test_tokens_folded_into_an_image_keep_their_channels_where_they_were() -> None:
    hand = HandGraph((2, 64, 4))
    assert layout_of(hand, hand.op("image", hand.x, shape=(2, 8, 8, 4), function="view")) == "NHWC"


def test_the_shape_of_a_tensor_has_no_layout() -> None:
    hand = HandGraph()
    size = hand.number("size", hand.x)
    captured, shapes = hand.finish(hand.x)
    assert with_layouts(captured, shapes.specs)[size.name] is None


def test_a_turned_volume_is_unknown() -> None:
    hand = HandGraph()
    hand.specs["x"] = TensorSpec((2, 3, 4, 8, 8))
    turned = hand.op("turned", hand.x, function=torch.transpose)
    hand.specs["turned"] = TensorSpec((2, 4, 3, 8, 8))
    assert layout_of(hand, turned) == "other"
