"""GN-DGL: each local module is split in groups of neurons, and each group learns from a loss of its own.

Patel, Eickenberg, Belilovsky: "Local Learning with Neuron Groups" (2023).
Groups: section 3.2, algorithm 1; several layers a module: section 4.2. Stop-gradient: section 3.3, algorithm 2.
Diversity: section 3.4, equation 1. Layerwise ensemble: section 3.4, :meth:`localize.LocalGraphModule.ensemble`.
Groups that differ by module (VGG6a): section 4.1.

The network that is trained is smaller than the user's: layers after the first of each module become grouped
(:mod:`passes.split.split`). It is ``local.primary``, a model of the user's class; the user's own is left as it is. With
one group everywhere it is the user's own that is trained.

Deviations, and choices the paper leaves open:

- The stop-gradient variant is the default, and the penalty's weight is 0.5 at temperature 3, as in the released code.
  ``stop_gradient=False, diversity=0`` is the plain GN-DGL of table 1.
- Auxiliary networks are those of the released ResNet code; ``auxiliary="predsim"`` are those of the paper's VGG6a
  experiments, with PredSim's loss for each group, and ``auxiliary="dgl"`` those of DGL.
- With one group everywhere, ``auxiliary="dgl"`` and ``head="joint"``, it is DGL.
- The released ResNets leave the classifier's 650 parameters unused; apart from that, split networks have the released
  code's parameters and multiply-accumulates exactly.
- The classifier is a local module of its own, which reads detached features: the model's own classifier is trained. The
  released code trains a network of the auxiliary networks' form besides the model's classifier, which it leaves unused.
  A linear classifier gets less out of features that were not trained for it: compare the last auxiliary networks
  (``predictions(x)[-2]``) and the ensemble with the released code's figures.
- With ``modules=1`` and this classifier, training is local still: two modules. ``head="joint"`` with ``modules=1`` is
  backpropagation.
- A classifier without trainable parameters cannot be a module of its own: then ``head="joint"`` holds, and the plan
  says so.
- Parameters that a module uses before its first dense layer (norms and depthwise convolutions at its start, position
  tables) work on channels of all groups of the module before: all groups train them. The plan names them.
- Hidden layers of a classifier (VGG's) belong to the classifier, and stay whole.
- A loss is the sum of the groups' losses and the weighted penalty; gradients of weights are those of the group's own
  terms, since the penalty detaches the other group.
- What a module predicts (:meth:`localize.LocalGraphModule.predictions`) are logits whose softmax is the mean of the
  groups' softmaxes.
- By default each local layer is a module, as in section 4.1. ResNets of section 4.2 have K of them: ``modules=K``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from localize.methods.base import Context, Method, group_name, trained_layers
from localize.methods.gn_dgl.auxiliary import GroupLosses, Ranges, build_group, describe_group
from localize.methods.gn_dgl.options import Options
from localize.methods.layerwise import require_vector
from localize.plan.grouping import join_untrained
from localize.plan.plan import Auxiliary, LocalModulePlan, LossTerm
from passes.common.initializer import Initializer
from passes.errors import MethodError
from passes.split.channel_owners import Owners, runs
from passes.split.split import split_width
from passes.split.trace_owners import trace_groups


def prepare(context: Context, options: Options, draw: Initializer) -> nn.Module | None:
    """Return the model with its width split; None where no module has several groups.

    Raises:
        MethodError: The network predicts maps, or ``groups`` or ``diversity`` does not fit it.
        SplitError: A layer cannot be split.
    """
    require_vector(context, "gn-dgl", "its auxiliary networks end in linear layers, which leave no positions")
    modules, reason = _modules(context, options)
    counts = _counts(options, modules, reason)
    if max(counts) == 1:
        return None
    if options.diversity and context.prediction.outputs < 2:
        raise MethodError("the diversity penalty needs at least two logits", remedy="Give diversity=0")
    _require_narrow(context, modules, counts)
    return split_width(context.network, modules, counts, draw)


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Plan the local modules of a network whose width has been split; the classifier is the last module."""
    network = context.network
    modules, reason = _modules(context, options)
    counts = _counts(options, modules, reason)
    traced = trace_groups(network, modules, counts, split=False) if max(counts) > 1 else None
    planned = []
    last = len(modules) - (options.head == "joint" or bool(reason))
    for index, layers in enumerate(modules):
        name = group_name(network, layers)
        if index == last:
            planned.append(LocalModulePlan(index=index, name=name, layers=layers, note=reason))
            continue
        ranges = _ranges(traced.owners[index], counts[index]) if traced and counts[index] > 1 else ()
        shared = traced.shared[index] if traced and counts[index] > 1 else ()
        note = f"trained by all groups: {', '.join(shared)}" if shared else ""
        auxiliary = _auxiliary(context, options, layers[-1], ranges)
        planned.append(LocalModulePlan(index=index, name=name, layers=layers, auxiliary=auxiliary, note=note))
    if last == len(modules):
        planned.append(LocalModulePlan(index=last, name=group_name(network, ()), layers=()))
    return tuple(planned)


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> nn.Module:
    """Build the auxiliary networks of a module's groups; for a module that stays whole, its one network."""
    assert module.auxiliary is not None, "no auxiliary network was planned"
    layer, groups = module.layers[-1], module.auxiliary.groups
    widths = _widths(context, options, layer, groups)
    outputs, like = context.prediction.outputs, context.adapter.output_layer()
    networks = [build_group(context.network, options, layer, width, outputs, draw, like) for width in widths]
    if not groups:
        return networks[0]
    spec = context.network.layers[layer].output
    return GroupLosses(networks, groups, spec, options.stop_gradient, options.diversity, options.temperature)


def _modules(context: Context, options: Options) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Return the layers of each module, and why ``head="joint"`` holds though not asked for (empty if it does not)."""
    network = context.network
    reason = ""
    if options.head == "decoupled" and not network.partition.classifier_params:
        reason = "trained with the classifier, which has no parameters of its own"
    if context.groups is not None:
        return context.groups, reason
    each = tuple((i,) for i in range(len(network.layers)))
    if options.head == "joint" or reason:
        return join_untrained(each, trained_layers(network)), reason
    *groups, frozen = join_untrained((*each, ()), trained_layers(network))
    # Frozen layers at the end go with the layers before them.
    return (*groups[:-1], groups[-1] + frozen) if groups else (frozen,), reason


def _counts(options: Options, modules: Sequence[Sequence[int]], reason: str) -> tuple[int, ...]:
    """Return the number of groups of each module.

    Args:
        options: The options.
        modules: Layers of each module.
        reason: Why the last module is trained with the classifier though not asked for; empty if it is not.

    Raises:
        MethodError: ``groups`` has another length than ``modules``, or splits a module that must stay whole.
    """
    whole = options.head == "joint" or bool(reason)
    if isinstance(options.groups, int):
        return (*[options.groups] * (len(modules) - whole), *[1] * whole)
    counts = tuple(options.groups)
    if len(counts) != len(modules):
        raise MethodError(
            f"groups={list(counts)} is for {len(counts)} local modules, and there are {len(modules)}",
            remedy="Give one number for all, or one for each; the classifier has none",
        )
    if whole and counts[-1] > 1:
        raise MethodError(
            f"groups={list(counts)} splits the last local module",
            why="it is trained with the classifier, which reads all groups" if options.head == "joint" else reason,
            remedy="Give 1 for the last one" + (", or head='decoupled'" if options.head == "joint" else ""),
        )
    return counts


def _require_narrow(context: Context, modules: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
    """Refuse modules of several groups whose auxiliary networks would read several tensors.

    Raises:
        MethodError: A module of several groups ends in a cut of several tensors.
    """
    network = context.network
    merging = context.merging(modules)
    for index, (layers, count) in enumerate(zip(modules, counts, strict=True)):
        if count > 1 and merging[index]:
            ends = [layer.index + 1 for layer in network.layers if layer.width == 1]
            raise MethodError(
                f"local module {index} ({group_name(network, layers)}) ends in a cut of "
                f"{network.layers[layers[-1]].width} tensors, and cannot be split in {count} groups",
                why="its auxiliary network reads several tensors, merged over all channels",
                remedy="Give modules=[numbers of layers] so that modules end where one tensor crosses"
                + (f": after {', '.join(map(str, ends))} of the {len(network.layers)} layers" if ends else "")
                + ", or 1 group for this module",
            )


def _ranges(owners: Owners, groups: int) -> tuple[Ranges, ...]:
    """Return the channels of each group, as ranges."""
    ranges = tuple(tuple((a, b) for a, b, owner in runs(owners) if owner == group) for group in range(groups))
    assert all(ranges), "a group owns no channel of its module's output"
    return ranges


def _widths(context: Context, options: Options, layer: int, groups: Sequence[Ranges]) -> list[int]:
    """Return the number of channels that each group's auxiliary network reads; a whole module counts as one group."""
    channels = context.network.layers[layer].output.channels
    owned = [sum(stop - start for start, stop in ranges) for ranges in groups] or [channels]
    free = channels - sum(owned)
    return [channels if options.stop_gradient else own + free for own in owned]


def _auxiliary(context: Context, options: Options, layer: int, groups: tuple[Ranges, ...]) -> Auxiliary:
    outputs, widths = context.prediction.outputs, _widths(context, options, layer, groups)
    networks = [describe_group(context.network, options, layer, width, outputs) for width in widths]
    one = networks[0]
    terms = [
        replace(term, params=sum(n.terms[i].params for n in networks), macs=sum(n.terms[i].macs for n in networks))
        for i, term in enumerate(one.terms)
    ]
    if groups and options.diversity:
        words = f"cosine similarity of groups at temperature {options.temperature:g}"
        terms.append(LossTerm("diversity", options.diversity, 0, 0, words))
    params, macs = sum(network.params for network in networks), sum(network.macs for network in networks)
    return replace(one, params=params, macs=macs, terms=tuple(terms), groups=groups)


METHOD = Method(name="gn-dgl", Options=Options, plan=plan, build=build, prepare=prepare)
