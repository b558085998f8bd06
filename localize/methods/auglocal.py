"""AugLocal: auxiliary networks made of the architecture of later layers.

Ma, Wu, Si, Tan: "Scaling Supervised Local Learning with Augmented Auxiliary Networks", ICLR 2024.
Selection: section 3.2. Pyramid: section 3.3, equation 3. Classifier: section 3.2.

Deviations, and choices the paper leaves open:

- A halving is owed by the primary's true resolution, not by its width (:func:`passes.resolution.owed_halvings`); on
  ResNets the two agree. A network that halves by pooling (VGG) halves by pooling before the copied block.
- With one hidden layer, batch norm stands before the linear classifier, as in the released CIFAR code; the released
  ImageNet code has none (``head_norm=False``).
- ``last="joint"`` trains the last d layers and the classifier by the output loss, as the released CIFAR code does;
  ``last="single"`` only the last layer and the classifier, as the paper's text and the released ImageNet code do.
- Where the classifier of the primary has hidden layers (VGG), auxiliary networks have one linear layer.
- Where the primary gives a map of logits, auxiliary networks end in a 1x1 convolution and interpolation to the map's
  size instead (:func:`localize.heads.dense_head`); the paper classifies images only.
- Where no later layer can be placed behind a module, its auxiliary network is shallower than asked, or the linear
  classifier alone, and the plan says so.
- The paper knows convolutional networks only; for transformers ``pool`` chooses what the classifier reads.
- A layer whose parameters are all frozen goes with the next one that learns: a loss of its own would train nothing.
- Weights are drawn fresh, in the scale of the layers they copy (:mod:`passes.weights`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from localize.heads import build_head, describe_head, head_cost
from localize.methods.base import Context, group_name, trained_layers
from localize.plan import Auxiliary, AuxiliaryBlock, LocalModulePlan
from localize.pooling import POOLINGS, Pooling
from passes.errors import AdaptError, MethodError
from passes.group import join_last, join_untrained
from passes.ir import TensorSpec
from passes.rebuild import rebuild
from passes.recipe import Recipe
from passes.resolution import Downsampling, downsampling_of, owed_halvings
from passes.select import pyramid, uniform
from passes.tokens import tokens_with_class
from passes.weights import Initializer


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """AugLocal's options; the defaults are the paper's and the released CIFAR code's."""

    d: int = 4
    """Depth: trainable layers of an auxiliary network, its classifier included. 1 is a linear classifier."""
    tau: float = 0.5
    """Decay of depth towards the output; 0 switches the pyramid off."""
    last: Literal["joint", "single"] = "joint"
    """How many layers the output loss trains: the last d, or the last one. Without effect when ``modules`` is given."""
    head_norm: bool = True
    """Batch norm before the linear classifier of auxiliary networks with one hidden layer."""
    pool: Pooling = "average"
    """What the linear classifier reads of positions: their average; ``"token"``, the class token, and the average where
    there is none yet; or ``"attention"``, their mean as weighted by a learned query."""

    def __post_init__(self) -> None:
        if not isinstance(self.d, int) or isinstance(self.d, bool) or self.d < 1:
            raise MethodError(f"d={self.d!r} is no depth", remedy="Give a whole number of at least 1")
        if not isinstance(self.tau, (int, float)) or not 0 <= self.tau <= 1:
            raise MethodError(f"tau={self.tau!r} is no decay", remedy="Give a number from 0 (no pyramid) to 1")
        if self.pool not in POOLINGS:
            raise MethodError(f"pool={self.pool!r} is unknown", remedy=f"Give one of {', '.join(map(repr, POOLINGS))}")
        if self.last not in ("joint", "single"):
            raise MethodError(f"last={self.last!r} is unknown", remedy="Give 'joint' or 'single'")


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Local modules with their auxiliary networks."""
    network = context.network
    count = len(network.layers)
    _check_pool(context, options)
    groups = context.groups or join_last(count, options.d if options.last == "joint" else 1)
    if context.groups is None:
        groups = join_untrained(groups, trained_layers(network))
    planned = []
    for index, layers in enumerate(groups):
        auxiliary, note = None, ""
        if index < len(groups) - 1:
            hidden = options.d - 1
            if options.tau and hidden:
                hidden = pyramid(hidden, index, len(groups), options.tau)
            recipes, note = _recipes(context, layers[-1], uniform(layers[-1], hidden, count))
            auxiliary = _describe(context, options, layers[-1], recipes)
        planned.append(LocalModulePlan(index, group_name(network, layers), layers, auxiliary, (), note))
    return tuple(planned)


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> nn.Module | None:
    """The auxiliary network of a planned module: hidden blocks, then the head."""
    if module.auxiliary is None:
        return None
    recipes, _ = _recipes(context, module.layers[-1], module.auxiliary.selected)
    spec = recipes[-1].output if recipes else context.network.layers[module.layers[-1]].output
    network = nn.Sequential()
    for position, recipe in enumerate(recipes):
        network.add_module(f"block_{position}", rebuild(context.adapter, recipe, draw))
    normed, pool = _normed(options, len(recipes)), _pool(context, options, spec)
    head = build_head(spec, context.prediction, batch_norm=normed, draw=draw, pool=pool)
    network.add_module("head", head)
    return network


def _normed(options: Options, hidden: int) -> bool:
    return options.head_norm and hidden == 1


def _check_pool(context: Context, options: Options) -> None:
    if options.pool != "average" and context.prediction.kind == "dense":
        raise MethodError(f"pool={options.pool!r} has no effect on local losses on maps", remedy="Leave pool out")
    if options.pool == "token" and not tokens_with_class(context.network):
        raise MethodError(
            "pool='token' needs a class token, and the model's own classifier reads none",
            remedy="Give pool='average' or pool='attention'",
        )


def _pool(context: Context, options: Options, spec: TensorSpec) -> Pooling:
    """The class token is the first one only once it is there: of a patch embedding the average is taken."""
    if options.pool == "token" and (spec.layout != "NLC" or spec.shape[1] != tokens_with_class(context.network)):
        return "average"
    return options.pool


def _recipes(context: Context, layer: int, selected: tuple[int, ...]) -> tuple[list[Recipe], str]:
    """Fits the selected layers one behind the other; where one cannot be placed, the nearest one that can.

    Returns:
        The recipes, and what was done otherwise than asked.
    """
    spec = context.network.layers[layer].output
    downsampling = downsampling_of(context.network)
    found: list[Recipe] = []
    notes: list[str] = []
    for position, source in enumerate(selected):
        after = selected[position + 1] if position + 1 < len(selected) else len(context.network.layers)
        before = found[-1].source if found else layer
        recipe, failure = _nearest(context, spec, [*range(source, after), *range(source - 1, before, -1)], downsampling)
        if recipe is None:
            notes.append(f"layer {source} left out ({failure})")
            continue
        if recipe.source != source:
            notes.append(f"layer {recipe.source} instead of {source} ({failure})")
        found.append(recipe)
        spec = recipe.output
    return found, "; ".join(notes)


def _nearest(
    context: Context, spec: TensorSpec, candidates: list[int], downsampling: Downsampling
) -> tuple[Recipe | None, str]:
    """The first candidate that can be placed behind ``spec``, and why those before it cannot."""
    failure = ""
    for candidate in candidates:
        owed = owed_halvings(spec, context.network.layers[candidate].output)
        try:
            return context.adapter.adapt(candidate, spec, min(2, 2**owed), downsampling), failure
        except AdaptError as error:
            failure = failure or str(error.why)
    return None, failure


def _describe(context: Context, options: Options, layer: int, recipes: list[Recipe]) -> Auxiliary:
    spec: TensorSpec = recipes[-1].output if recipes else context.network.layers[layer].output
    normed = _normed(options, len(recipes))
    pool = _pool(context, options, spec)
    params, macs = head_cost(spec, context.prediction, normed, pool)
    return Auxiliary(
        selected=tuple(recipe.source for recipe in recipes),
        depth=len(recipes) + 1,
        params=params + sum(recipe.params for recipe in recipes),
        macs=macs + sum(recipe.macs for recipe in recipes),
        blocks=tuple(_block(recipe) for recipe in recipes),
        head=describe_head(spec, context.prediction, normed, pool),
    )


def _block(recipe: Recipe) -> AuxiliaryBlock:
    return AuxiliaryBlock(
        source=recipe.source,
        in_channels=recipe.input.channels,
        out_channels=recipe.output.channels,
        stride=recipe.stride,
        projection=recipe.projection,
        adapter=str(recipe.front) if recipe.front and not recipe.repaired else None,
    )
