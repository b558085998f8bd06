"""One attempt to fit a layer to another input, on graphs built by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from passes.adapt.arguments import Numbers
from passes.adapt.copy_recipe import CopyRecipe, Edits, body_of
from passes.adapt.repairs import Unreachable
from passes.adapt.trial import Attempt, Trial
from passes.ir import Cost, Network, TensorSpec
from passes.layers.adapters import Front, Projection
from tests.tools.hand_graphs import HandGraph, network

MIXING = Cost(macs=100, mixing=True)
HALF = (2, 4, 4, 4)
AS_IT_IS = Attempt("native", None, 1)


def image(channels: int = 8, size: int = 8) -> TensorSpec:
    return TensorSpec((2, channels, size, size), layout="NCHW")


def net(layer: Callable[[HandGraph, fx.Node], fx.Node]) -> Network:
    """Build a stem, one layer with index 1, and a classifier."""
    hand = HandGraph()
    value = layer(hand, hand.conv("stem", hand.x))
    return network(hand.finish(hand.linear("fc", hand.op("pool", value, shape=(2, 4)))))


def fit(network: Network, spec: TensorSpec, attempt: Attempt = AS_IT_IS, edits: Edits | None = None) -> CopyRecipe:
    numbers = Numbers(network.captured, network.shapes)
    return Trial(network, numbers, body_of(network, 1), 1, spec, attempt, edits).run()


def spatial(hand: HandGraph, value: fx.Node, stride: int = 1) -> fx.Node:
    """Build a 3x3 convolution and a norm."""
    shape = HALF if stride == 2 else (2, 4, 8, 8)
    conv = hand.layer("c", nn.Conv2d(4, 4, 3, stride, 1), value, shape=shape, cost=MIXING)
    return hand.layer("n", nn.BatchNorm2d(4), conv, shape=shape)


def residual(hand: HandGraph, value: fx.Node) -> fx.Node:
    conv = hand.layer("c", nn.Conv2d(4, 4, 3, padding=1), value, cost=MIXING)
    return hand.op("add", value, conv, function=torch.add)


def projected(hand: HandGraph, value: fx.Node) -> fx.Node:
    shortcut = hand.conv("shortcut", value)
    conv = hand.layer("c", nn.Conv2d(4, 4, 3, padding=1), value, cost=MIXING)
    return hand.op("add", shortcut, conv, function=torch.add)


def test_nothing_changes_on_the_layers_own_input() -> None:
    recipe = fit(net(spatial), image(4))
    assert recipe.edits == Edits()
    assert (recipe.params, recipe.front, recipe.repaired) == (4 * 4 * 9 + 4 + 8, None, True)


def test_a_convolution_takes_the_channels() -> None:
    recipe = fit(net(spatial), image(8))
    assert recipe.edits.changes == {0: {"in_channels": 8}}
    assert str(recipe.output) == "4x8x8"


def test_the_first_spatial_convolution_takes_the_stride() -> None:
    recipe = fit(net(spatial), image(4), Attempt("strided", None, 2))
    assert recipe.edits.changes == {0: {"stride": (2, 2)}}
    assert (recipe.stride, str(recipe.output)) == (2, "4x4x4")


def test_a_stride_is_taken_out() -> None:
    recipe = fit(net(lambda hand, value: spatial(hand, value, 2)), image(4), Attempt("unit", None, 1))
    assert recipe.edits.changes == {0: {"stride": (1, 1)}}
    assert str(recipe.output) == "4x8x8"


def test_pooling_comes_in_front() -> None:
    recipe = fit(net(spatial), image(4), Attempt("unit", Front(4, 4, "max_pool", "NCHW"), 2))
    assert (recipe.edits, str(recipe.output)) == (Edits(), "4x4x4")


def test_a_pooling_layer_of_its_own_is_left_out() -> None:
    def pooling(hand: HandGraph, value: fx.Node) -> fx.Node:
        return hand.layer("p", nn.MaxPool2d(2), spatial(hand, value), shape=HALF)

    recipe = fit(net(pooling), image(4), Attempt("unit", None, 1))
    assert recipe.edits.bypassed == {2}


def test_an_identity_shortcut_is_projected_where_the_width_changes() -> None:
    recipe = fit(net(residual), image(8))
    assert recipe.edits.projections == {(1, 0): Projection(8, 4, 1, "NCHW")}
    assert recipe.projection


def test_a_projected_shortcut_takes_the_stride() -> None:
    recipe = fit(net(projected), image(8), Attempt("strided", None, 2))
    assert recipe.edits.changes == {0: {"in_channels": 8, "stride": (2, 2)}, 1: {"stride": (2, 2), "in_channels": 8}}


def test_a_projection_that_is_not_needed_is_left_out() -> None:
    recipe = fit(net(projected), image(4))
    assert recipe.edits.bypassed == {0}
    assert not recipe.projection


def test_an_adapter_leaves_the_layer_as_it_is() -> None:
    recipe = fit(net(residual), image(8), Attempt("adapter", Front(8, 4, None, "NCHW"), 1))
    assert (recipe.edits, recipe.repaired) == (Edits(), False)


def test_tokens_are_laid_out_as_an_image() -> None:
    recipe = fit(net(spatial), TensorSpec((2, 64, 4), layout="NLC"))
    assert recipe.front is not None
    assert (recipe.front.to, str(recipe.output)) == ("NCHW", "4x8x8")


class Unknown(nn.Module):
    """A leaf layer of a class that nothing is known of."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@pytest.mark.parametrize(
    ("layer", "spec", "attempt", "reason"),
    [
        (spatial, TensorSpec((2, 4), layout="NC"), AS_IT_IS, "it reads NCHW, not NC"),
        (lambda hand, value: hand.conv("c", value), image(), Attempt("strided", None, 2), "no spatial convolution"),
        (spatial, image(), Attempt("native", None, 2), "it does not downsample"),
        (
            lambda hand, value: hand.conv("c", hand.layer("u", Unknown(), hand.conv("d", value, depthwise=True))),
            image(),
            AS_IT_IS,
            "nothing is known of how Unknown depends on its input",
        ),
        (residual, image(), Attempt("adapter", Front(8, 8, None, "NCHW"), 1), "4 channels"),
    ],
    ids=["layout", "stride", "size", "class", "adapter"],
)
def test_what_cannot_be_reached(
    layer: Callable[[HandGraph, fx.Node], fx.Node], spec: TensorSpec, attempt: Attempt, reason: str
) -> None:
    with pytest.raises(Unreachable, match=reason):
        fit(net(layer), spec, attempt)
