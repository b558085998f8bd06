"""AugLocal: auxiliary networks made of the architecture of later layers.

Ma, Wu, Si, Tan: "Scaling Supervised Local Learning with Augmented Auxiliary Networks", ICLR 2024.
Selection: section 3.2; other strategies: section 4.5, table 5. Pyramid: section 3.3, equation 3. Budget: equation 2.
Classifier: section 3.2.

Deviations, and choices the paper leaves open:

- By default a halving is owed by the primary's true resolution, not by its width (``downsampling="deferred"``,
  :func:`passes.adapt.resolution.owed`); on the paper's ResNets the two agree. ``"channels"`` is the paper's rule: where
  width does not follow resolution it halves too rarely (at d=3 the auxiliary networks of timm's densenet121 take 3.9
  times the multiply-accumulates). A network that halves by pooling (VGG) halves by pooling before the copied block.
- With one hidden layer, batch norm stands before the linear classifier, as in the released CIFAR code; the released
  ImageNet code has none (``head_norm=False``). Where the primary's classifier normalizes what its linear layer reads
  (pre-activation networks, ConvNeXt, transformers), so do all auxiliary classifiers: their logits would otherwise have
  the scale of features that nothing bounds.
- ``last="joint"`` trains the last d layers and the classifier by the output loss, as the released CIFAR code does;
  ``last="single"`` only the last layer and the classifier, as the paper's text and the released ImageNet code do.
- Where fewer than d - 1 layers follow a module, its auxiliary network has as many hidden layers as follow, whatever the
  selection; where d is no less than L and the last d layers are joined, the output loss trains all. The plan says so.
- Where the classifier of the primary has hidden layers (VGG), auxiliary networks have one linear layer by default; with
  ``head="classifier"`` they end in a copy of it.
- Where the primary gives a map of logits, auxiliary networks end in a 1x1 convolution and interpolation to the map's
  size instead (:func:`localize.methods.networks.heads.dense_head`); the paper classifies images only.
- Where no later layer can be placed after a module, its auxiliary network is shallower than asked, or the linear
  classifier alone, and the plan says so.
- The paper bounds the FLOPs of auxiliary networks by gamma and does not say how; ``max_aux_macs`` bounds their sum, and
  lowers depths from the output down to the input (:func:`localize.methods.auglocal.depth_budget.lower_depths`), if
  need be to a linear classifier alone.
- Auxiliary networks of plain convolutions (``selection="conv3x3"``, ``"conv1x1"``) downsample where the uniform one of
  the same module does, and by default have the width at which they cost as much as it does.
- The paper knows convolutional networks only; for transformers ``pool`` chooses what the classifier reads.
- A layer whose parameters are all frozen joins the next layer that learns: a loss of its own would train nothing.
- Copies take weights by whole tensors (``aux_init="copy"``): channels after another layer do not correspond one by one.
- Weights are drawn fresh, in the scale of the layers they copy (:mod:`passes.common.initializer`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import cast

from torch import nn

from localize.methods.auglocal.depth_budget import least, lower_depths
from localize.methods.auglocal.head import Head, check_head
from localize.methods.auglocal.options import Options
from localize.methods.auglocal.selection import pyramid, repetitive, sequential, uniform
from localize.methods.base import Context, Method, group_name, trained_layers
from localize.methods.networks.blocks import AuxiliaryBlocks
from localize.methods.networks.linear import describe_block
from localize.plan.grouping import join_last, join_untrained
from localize.plan.plan import Auxiliary, AuxiliaryBlock, LocalModulePlan
from passes.adapt.copy_recipe import CopyRecipe
from passes.adapt.placement import place
from passes.adapt.rebuild import rebuild
from passes.common.initializer import Initializer
from passes.errors import MethodError
from passes.ir import TensorSpec
from passes.layers.plain_blocks import Kind, Plain, build_plain, nearest_width, stack

_COPIED: dict[str, Callable[[int, int, int], tuple[int, ...]]] = {
    "uniform": uniform,
    "sequential": sequential,
    "repetitive": repetitive,
}


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Plan the local modules, each but the last with an auxiliary network made of later layers.

    Raises:
        MethodError: ``max_aux_macs`` cannot be met, or ``pool`` or ``head`` does not fit the network.
    """
    network = context.network
    count = len(network.layers)
    check_head(context, options)
    groups = context.groups or join_last(count, options.d if options.last == "joint" else 1)
    if context.groups is None:
        groups = join_untrained(groups, trained_layers(network))
    asked = []
    for index in range(len(groups) - 1):
        hidden = options.d - 1
        asked.append(pyramid(hidden, index, len(groups), options.tau) if options.tau and hidden else hidden)
    planned = []
    for index, (layers, hidden) in enumerate(zip(groups, asked, strict=False)):
        auxiliary, note = _auxiliary(context, options, layers[-1], hidden)
        name = group_name(network, layers)
        planned.append(LocalModulePlan(index=index, name=name, layers=layers, auxiliary=auxiliary, note=note))
    if options.max_aux_macs is not None:
        planned = _within_budget(context, options, planned, asked)
    note = ""
    if not asked and context.groups is None and options.d > 1 and count > 1:
        note = f"the output loss trains all {count} layers, since d={options.d} leaves none to a local loss"
    name = group_name(network, groups[-1])
    planned.append(LocalModulePlan(index=len(asked), name=name, layers=groups[-1], note=note))
    return tuple(planned)


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> nn.Module:
    """Build the auxiliary network of a planned module: hidden blocks, then the head."""
    assert module.auxiliary is not None, "no auxiliary network was planned"
    spec = context.network.layers[module.layers[-1]].output
    blocks: list[nn.Module] = []
    if options.selection in _COPIED:
        recipes, _ = place(context.adapter, module.layers[-1], module.auxiliary.selected, options.downsampling)
        copying = dataclasses.replace(draw, copies=options.aux_init == "copy")
        blocks = [rebuild(context.adapter, recipe, copying) for recipe in recipes]
        spec = recipes[-1].output if recipes else spec
    else:
        for block in module.auxiliary.blocks:
            plain = Plain(cast(Kind, block.kind), spec, block.out_channels, block.stride)
            blocks.append(build_plain(plain, draw))
            spec = plain.output
    network = AuxiliaryBlocks()
    for position, made in enumerate(blocks):
        network.add_module(f"block_{position}", made)
    network.add_module("head", Head(context, options, spec, len(blocks)).build(draw))
    return network


def _auxiliary(context: Context, options: Options, layer: int, hidden: int) -> tuple[Auxiliary, str]:
    """Describe the auxiliary network with ``hidden`` hidden layers after a layer, and note deviations."""
    layers = len(context.network.layers)
    spec = context.network.layers[layer].output
    selected = _COPIED.get(options.selection, uniform)(layer, hidden, layers)
    notes = []
    if len(selected) < hidden:
        follow = f"{len(selected)} layer{'s follow' if len(selected) != 1 else ' follows'}"
        notes.append(f"d={len(selected) + 1} instead of {hidden + 1}, since only {follow}")
    if options.selection in _COPIED:
        recipes, more = place(context.adapter, layer, selected, options.downsampling)
        auxiliary, last = _describe(context, options, spec, recipes, [copied(recipe) for recipe in recipes])
        notes += more
    else:
        auxiliary, last = _plain(context, options, layer, selected)
    return auxiliary, "; ".join(filter(None, [*notes, last]))


def _plain(context: Context, options: Options, layer: int, selected: tuple[int, ...]) -> tuple[Auxiliary, str]:
    """Describe an auxiliary network of plain convolutions, in the places where the uniform one has copies."""
    kind = cast(Kind, options.selection)
    spec = context.network.layers[layer].output
    recipes, _ = place(context.adapter, layer, selected, options.downsampling)
    strides = [recipe.stride for recipe in recipes] + [1] * (len(selected) - len(recipes))

    def cost(channels: int) -> int:
        blocks = stack(kind, spec, strides, channels)
        end = blocks[-1].output if blocks else spec
        return sum(block.macs for block in blocks) + Head(context, options, end, len(selected)).cost()[1]

    if not selected:
        channels = spec.channels
    elif options.width is not None:
        channels = max(1, round(options.width * spec.channels))
    else:
        target = _describe(context, options, spec, recipes, [])[0].macs
        channels = nearest_width(cost, target)
    blocks = stack(kind, spec, strides, channels)
    return _describe(context, options, spec, blocks, [describe_block(block) for block in blocks])


def _describe(
    context: Context,
    options: Options,
    spec: TensorSpec,
    hidden: list[CopyRecipe] | list[Plain],
    blocks: list[AuxiliaryBlock],
) -> tuple[Auxiliary, str]:
    """Describe an auxiliary network of given hidden layers, and note deviations of its head."""
    head = Head(context, options, hidden[-1].output if hidden else spec, len(hidden))
    params, macs = head.cost()
    auxiliary = Auxiliary(
        selected=tuple(block.source for block in blocks if block.source is not None),
        depth=len(hidden) + 1,
        params=params + sum(block.params for block in hidden),
        macs=macs + sum(block.macs for block in hidden),
        blocks=tuple(blocks),
        head=head.describe(),
    )
    return auxiliary, head.note()


def copied(recipe: CopyRecipe) -> AuxiliaryBlock:
    """Describe a copy of a layer for the plan."""
    return AuxiliaryBlock(
        source=recipe.source,
        in_channels=recipe.input.channels,
        out_channels=recipe.output.channels,
        stride=recipe.stride,
        projection=recipe.projection,
        adapter=str(recipe.front) if recipe.front and not recipe.repaired else None,
    )


def _within_budget(
    context: Context, options: Options, planned: list[LocalModulePlan], asked: Sequence[int]
) -> list[LocalModulePlan]:
    """Return the same modules with auxiliary networks that meet the budget; notes say which depths were lowered.

    Raises:
        MethodError: Even the cheapest auxiliary networks cost more than ``max_aux_macs``.
    """
    network, gamma = context.network, options.max_aux_macs
    primary = sum(layer.macs for layer in network.layers) + network.partition.classifier_macs
    assert gamma is not None
    budget = gamma if isinstance(gamma, int) else math.floor(gamma * primary)
    merging = context.merging([module.layers for module in planned])
    if sum(merging) + sum(module.auxiliary.macs for module in planned if module.auxiliary) <= budget:
        return planned
    variants: list[list[tuple[Auxiliary | None, str]]] = []
    for module, hidden in zip(planned, asked, strict=True):
        layer = module.layers[-1]
        fewer = range(min(hidden, len(network.layers) - 1 - layer))
        variants.append([*(_auxiliary(context, options, layer, h) for h in fewer), (module.auxiliary, module.note)])
    costs = [[aux.macs + extra for aux, _ in row if aux] for row, extra in zip(variants, merging, strict=True)]
    depths = lower_depths(costs, budget)
    if depths is None:
        raise _impossible(options, budget, primary, planned, least(costs))
    lowered = []
    for module, row, hidden in zip(planned, variants, depths, strict=True):
        auxiliary, note = row[hidden]
        if hidden < len(row) - 1:
            note = "; ".join(filter(None, [f"d={hidden + 1} instead of {len(row)}, to meet max_aux_macs", note]))
        lowered.append(dataclasses.replace(module, auxiliary=auxiliary, note=note))
    return lowered


def _impossible(
    options: Options, budget: int, primary: int, planned: Sequence[LocalModulePlan], cheapest: Sequence[int]
) -> MethodError:
    total = sum(cheapest)
    most = max(range(len(cheapest)), key=cheapest.__getitem__)
    ratio = math.ceil(10_000 * total / primary) / 10_000
    return MethodError(
        f"max_aux_macs={options.max_aux_macs!r} ({budget:,} multiply-accumulates) cannot be met",
        why=f"the {len(cheapest)} auxiliary networks cost {total:,} at least ({ratio:g} of the primary network's), the "
        f"most by module {most} ({planned[most].name}): {cheapest[most]:,}",
        remedy="Give that much, or fewer local modules (modules=...)",
    )


METHOD = Method(name="auglocal", Options=Options, plan=plan, build=build)
