"""Records of which group of neurons owns which channels, and arithmetic on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from passes.common.layer_kinds import Convolution
from passes.layers.grouped import GroupedLinear

OPEN = -1
"""In place of a group: the channel is nobody's, and everybody may read it."""

Owners = tuple[int, ...]
"""For each channel its group, or :data:`OPEN`."""


@dataclass(frozen=True, slots=True)
class Change:
    """A layer that must be split, because it reads channels of several groups."""

    path: str
    kind: Literal["layer", "layer_norm", "group_norm"]
    """A convolution or linear layer, or a norm over channels."""
    groups: int
    owners: Owners
    """Of the channels that it reads."""
    dim: int
    """The channels' dimension in what it reads."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """What belongs to whom."""

    owners: tuple[Owners, ...]
    """For each local module, of the channels of the tensor that its auxiliary networks read."""
    changes: tuple[Change, ...]
    """Layers to split, by the path of their first use."""
    shared: tuple[tuple[str, ...], ...]
    """For each local module the parameters that all of its groups train: those before its first dense layers."""


def runs(owners: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Channels side by side of one owner: the first, one past the last, and the owner."""
    starts = [i for i in range(len(owners)) if i == 0 or owners[i] != owners[i - 1]]
    return tuple((a, b, owners[a]) for a, b in zip(starts, [*starts[1:], len(owners)], strict=True))


def blocks(channels: int, groups: int) -> Owners:
    """Equal blocks of channels, one for each group."""
    return tuple(i * groups // channels for i in range(channels))


def kept_apart(owners: Owners, outputs: int, own: int) -> Owners | None:
    """Owners of what a layer of ``own`` groups gives behind owned channels; None if an output reads several groups'."""
    step, found = len(owners) // own, []
    for i in range(own):
        read = {owner for owner in owners[i * step : (i + 1) * step] if owner != OPEN}
        if len(read) > 1:
            return None
        found += [read.pop() if read else OPEN] * (outputs // own)
    return tuple(found)


def sizes_of(layer: Convolution | nn.Linear) -> tuple[int, int, int]:
    """Input channels, output channels and groups."""
    if isinstance(layer, nn.Linear):
        groups = layer.groups if isinstance(layer, GroupedLinear) else 1
        return layer.in_features, layer.out_features, groups
    return layer.in_channels, layer.out_channels, layer.groups
