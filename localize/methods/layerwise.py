"""What methods share whose auxiliary networks follow from the features alone: modules, and features as images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from localize.methods.base import Context, group_name, trained_layers
from localize.methods.networks.blocks import Blocks
from localize.methods.networks.dense import Grid, ToGrid, grid_of_features
from localize.methods.networks.pooling import build_pool, describe_pool
from localize.plan.group import join_untrained
from localize.plan.plan import Auxiliary, AuxiliaryBlock, LocalModulePlan
from passes.common.initializer import Initializer, bare
from passes.errors import MethodError
from passes.ir import TensorSpec
from passes.layers.plain_blocks import Plain, build_plain


@dataclass(frozen=True, slots=True)
class Place:
    """Where an auxiliary network stands."""

    index: int
    """Of its local module."""
    modules: int
    """How many local modules there are, K."""
    layer: int
    """Index of the local layer whose output it reads."""


def plan_modules(context: Context, auxiliary: Callable[[Place], Auxiliary]) -> tuple[LocalModulePlan, ...]:
    """Local modules: the user's groups, or one a layer, but for frozen layers, which go with the next that learns.

    Args:
        context: What to plan on.
        auxiliary: Plans the auxiliary network of each module but the last.
    """
    network = context.network
    groups = context.groups or tuple((layer,) for layer in range(len(network.layers)))
    if context.groups is None:
        groups = join_untrained(groups, trained_layers(network))
    planned = []
    for index, layers in enumerate(groups):
        last = index == len(groups) - 1
        made = None if last else auxiliary(Place(index, len(groups), layers[-1]))
        planned.append(LocalModulePlan(index, group_name(network, layers), layers, made, ()))
    return tuple(planned)


def ramp(first: float, last: float, place: Place) -> float:
    """A weight that is linear in the index of the module: ``first`` in the first one, ``last`` in the last but one."""
    steps = place.modules - 2
    return first + (last - first) * place.index / steps if steps > 0 else first


@dataclass(frozen=True, slots=True)
class Features:
    """What an auxiliary network reads, as an image (N, C, H, W); or (N, C), where it has no positions."""

    spec: TensorSpec
    grid: Grid

    @property
    def flat(self) -> bool:
        """Whether there are no positions."""
        return self.spec.layout == "NC"

    def words(self) -> list[str]:
        """What makes an image of it, in words."""
        return [] if self.grid.plain or self.flat else ["tokens as image" if self.grid.layout == "NLC" else "as NCHW"]

    def build(self) -> list[nn.Module]:
        """The module that makes an image of it, if it takes one."""
        return [] if self.grid.plain or self.flat else [ToGrid(self.grid, added=True)]


def features_of(context: Context, layer: int) -> Features:
    """The output of a local layer, as an image.

    Images with channels last and tokens are rearranged; the mean of class tokens and registers is added at every
    position, so that what the network does with them learns too.

    Raises:
        MethodError: It is no image, and holds neither tokens nor plain features.
    """
    found, image = context.network.layers[layer].output, context.network.shapes.input
    grid = grid_of_features(found, image.spatial if len(image.spatial) == 2 else ())
    if found.layout == "NC":
        return Features(found, grid)
    return Features(replace(found, shape=(found.shape[0], found.channels, *grid.size), layout="NCHW"), grid)


def require_vector(context: Context, method: str, why: str) -> None:
    """Refuses maps of logits.

    Raises:
        MethodError: Local losses are on maps.
    """
    if context.prediction.kind == "dense":
        raise MethodError(
            f"method {method!r} is for networks that classify images, and this one predicts {context.prediction}",
            why=why,
            remedy="Use method='auglocal', 'auglocal+infopro', 'infopro' or 'bp'",
        )


def build_linear(context: Context, inputs: int, draw: Initializer) -> nn.Module:
    """The last linear layer, whose weights are drawn as those of the primary network's own output layer."""
    layer = bare(nn.Linear, inputs, context.prediction.outputs)
    if not draw.imitate_(layer, context.adapter.output_layer()):
        draw.plain_(layer)
    return layer


def describe_two_linear(block: Plain, width: int, outputs: int) -> Auxiliary:
    """A block, pooling, a linear layer + ReLU and the classifier, in the plan.

    Args:
        block: The first.
        width: Of the hidden linear layer.
        outputs: Of the classifier.
    """
    weights = block.out_channels * width + width * outputs
    linear = [f"linear({block.out_channels}, {width})", "relu", f"linear({width}, {outputs})"]
    return Auxiliary(
        selected=(),
        depth=3,
        params=block.params + weights + width + outputs,
        macs=block.macs + weights,
        blocks=(described(block),),
        head=" > ".join([*describe_pool(block.output, "average"), *linear]),
    )


def described(block: Plain) -> AuxiliaryBlock:
    """A plain block in the plan."""
    return AuxiliaryBlock(None, block.input.channels, block.out_channels, block.stride, False, None, block.kind)


def build_two_linear(
    context: Context, features: Features, block: Plain, width: int, draw: Initializer
) -> nn.Sequential:
    """What :func:`describe_two_linear` says, from features to (N, outputs)."""
    made = build_block(features, block, draw)
    pool = build_pool(block.output, "average")
    if pool is not None:
        made.add_module("pool", pool)
    made.add_module("hidden", draw.plain_(bare(nn.Linear, block.out_channels, width)))
    made.add_module("relu", nn.ReLU())
    made.add_module("classifier", build_linear(context, width, draw))
    return made


def build_block(features: Features, block: Plain, draw: Initializer) -> nn.Sequential:
    """A plain block behind features."""
    made = Blocks()
    for part in features.build():
        made.add_module("grid", part)
    made.add_module("block", build_plain(block, draw))
    return made
