"""Splits the width of a network: inside each local module, layers work on groups of channels that never meet.

Patel, Eickenberg, Belilovsky: "Local Learning with Neuron Groups" (2023), sections 3.2 and 4.2. The first convolutions
and linear layers of a module, which read what the module before it gives, read all of it; those after them read their
own group's channels alone. So the network becomes smaller, and a loss of one group's channels reaches one group's
weights. What reads channels of several groups becomes, in a copy of the network:

- a convolution: one of ``groups`` groups. One that has groups already gets G times as many, if that divides; else it
  stays, if each of its groups reads one group of channels;
- a linear layer: a block-diagonal one (:class:`passes.layers.grouped.GroupedLinear`);
- a convolution or linear layer that reads channels which do not lie group by group (after a concatenation or a channel
  shuffle), or are partly the previous module's (dense connections): a grouped one after a selection of channels
  (:class:`passes.layers.grouped.Gathered`): each group reads its own and the previous module's channels;
- a layer norm, or a group norm of one group: one for each group of channels. Other group norms stay, if each of their
  groups holds one group of channels;
- a squeeze-excite: G small ones, since it is made of such layers.

A split convolution whose groups have one input channel is depthwise, and no mixing operation: partitioning the split
network would give other layers. It has the same graph, so it keeps the partition of the network it was made of.

Batch norms, depthwise convolutions, activations and pooling stay. Attention across channels of several groups, and all
else that mixes channels, is refused by name (:mod:`passes.split.trace_owners`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from passes.common.initializer import Initializer, bare
from passes.common.layer_kinds import DENSE, Convolution, TransposedConvolution, normalizes_last
from passes.errors import SplitError, first_line
from passes.ir import Network
from passes.layers.grouped import Gathered, GroupedLayerNorm, GroupedLinear
from passes.split.channel_owners import OPEN, Change, blocks, sizes_of
from passes.split.trace_owners import trace_groups


def split_width(
    network: Network, modules: Sequence[Sequence[int]], counts: Sequence[int], draw: Initializer
) -> nn.Module:
    """Return a copy of the network's model with its width split.

    Args:
        network: The network; its model stays as it is.
        modules: Indices of the layers of each local module, in order.
        counts: Number of groups of each local module; 1 leaves the module whole.
        draw: Source of the weights of layers that change; all other layers keep theirs.

    Returns:
        A model of the same class, with the same modules by the same names; layers that a module of one group does not
        hold, and the classifier, are as they were.

    Raises:
        SplitError: A layer cannot be split, or the model cannot be copied; the layer is named.
    """
    ownership = trace_groups(network, modules, counts, split=True)
    model = network.captured.model
    _require_own_weights(model, ownership.changes)
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # whatever the user's code raises
        raise SplitError(
            "the model cannot be copied", where=type(model).__name__, why=first_line(error),
            remedy="Its width is split in a copy; give groups=1 to train the model itself",
        ) from error  # fmt: skip
    places: dict[nn.Module, list[str]] = {}
    # A module may stand in several places; all of them must get the new one.
    for path, module in twin.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(path)
    for change in ownership.changes:
        layer = twin.get_submodule(change.path)
        fresh = _changed(layer, change, draw)
        if fresh is not layer:
            for path in places[layer]:
                twin.set_submodule(path, fresh)
    return twin


def _require_own_weights(model: nn.Module, changes: Sequence[Change]) -> None:
    """Refuse layers whose weights are computed from others, or shared with another layer.

    Raises:
        SplitError: A layer to be split has no weights of its own.
    """
    users: dict[int, int] = {}
    for module in model.modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                users[id(tensor)] = users.get(id(tensor), 0) + 1
    for change in changes:
        layer = model.get_submodule(change.path)
        if change.kind != "layer":
            continue
        layer = layer.layer if isinstance(layer, Gathered) else layer
        why = ""
        if not isinstance(layer._parameters.get("weight"), nn.Parameter) or set(layer._parameters) - {"weight", "bias"}:
            why = "its weights are computed from others (a reparametrization)"
        elif any(users[id(p)] > 1 for p in layer.parameters(recurse=False)):
            why = "another layer has the same weights"
        elif isinstance(layer, nn.Linear) and type(layer).forward not in (nn.Linear.forward, GroupedLinear.forward):
            # timm's subclasses only cast under autocast; what other subclasses do is unknown.
            why = "" if type(layer).__module__.startswith("timm.") else "its class has a forward of its own"
        if why:
            raise SplitError(
                f"{type(layer).__name__} cannot be split in {change.groups} groups of channels",
                where=change.path,
                why=why,
                remedy="Give groups=1 for the local module that holds it (groups=[...])",
            )


def _changed(layer: nn.Module, change: Change, draw: Initializer) -> nn.Module:
    """Return a layer, changed in place where its class allows it, or another one to put in its place.

    ``layer`` belongs to the copy of the model.
    """
    if change.kind == "group_norm":
        assert isinstance(layer, nn.GroupNorm)
        layer.num_groups = change.groups
        return layer
    if change.kind == "layer_norm":
        assert isinstance(layer, nn.LayerNorm)
        return _layer_norm(layer, change)
    assert isinstance(layer, DENSE)
    inputs, _, own = sizes_of(layer)
    index = _index(change) if own == 1 else ()
    fresh = _regrouped(layer, len(index) or inputs, change.groups, draw)
    return fresh if index == tuple(range(inputs)) or not index else Gathered(fresh, index, change.dim)


def _index(change: Change) -> tuple[int, ...]:
    """Return the channels that each group reads, group by group: its own, and those that no group owns."""
    owners = change.owners
    groups = range(change.groups)
    return tuple(i for group in groups for i, owner in enumerate(owners) if owner in (OPEN, group))


def _regrouped(layer: Convolution | nn.Linear, inputs: int, groups: int, draw: Initializer) -> nn.Module:
    """Return a layer with that many input channels in that many groups, and fresh weights."""
    if isinstance(layer, nn.Linear):
        block_diagonal = bare(
            GroupedLinear, inputs, layer.out_features, groups, layer.bias is not None, dtype=layer.weight.dtype
        )  # fmt: skip
        block_diagonal.to(layer.weight.device)
        block_diagonal.train(layer.training)
        _draw_(block_diagonal, layer.weight, layer.bias, draw)
        return block_diagonal
    weight, bias = layer.weight, layer.bias
    layer.in_channels, layer.groups = inputs, groups
    shape = list(weight.shape)
    if isinstance(layer, TransposedConvolution):
        shape[:2] = [inputs, layer.out_channels // groups]
    else:
        shape[1] = inputs // groups
    layer.weight = nn.Parameter(torch.empty(shape, dtype=weight.dtype, device=weight.device), weight.requires_grad)
    _draw_(layer, weight, bias, draw)
    return layer


def _draw_(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None, draw: Initializer) -> None:
    """Draw fresh weights in the scale of those that the layer had."""
    shape = tuple(cast(torch.Tensor, layer.weight).shape)
    fan_in = math.prod(shape[1:])
    layer.weight = nn.Parameter(draw.like(weight, shape, fan_in=fan_in).detach(), weight.requires_grad)
    if bias is not None:
        fresh = draw.like(bias, tuple(bias.shape), fan_in=fan_in).detach()
        layer.bias = nn.Parameter(fresh, bias.requires_grad)


def _layer_norm(layer: nn.LayerNorm, change: Change) -> GroupedLayerNorm:
    """Return a layer norm for each group, with the weights of the one given."""
    channels = len(change.owners)
    assert change.owners == blocks(channels, change.groups)
    affine, bias = layer.weight is not None, layer.bias is not None
    # Counted from the end where they are last: a layer norm reads values of any number of dimensions.
    dim = 1 if change.dim == 1 and not normalizes_last(layer) else -1
    grouped = GroupedLayerNorm(channels, change.groups, dim, layer.eps, affine, bias)
    grouped.weight, grouped.bias = layer.weight, layer.bias
    grouped.train(layer.training)
    return grouped
