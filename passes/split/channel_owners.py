"""Records of the group of neurons that owns each channel, and arithmetic on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from passes.common.layer_kinds import Convolution
from passes.layers.grouped import GroupedLinear

OPEN = -1
"""Owner of a channel that belongs to no group, and that all groups may read."""

Owners = tuple[int, ...]
"""The group of each channel, or :data:`OPEN`."""


ChangeKind = Literal["layer", "layer_norm", "group_norm"]


@dataclass(frozen=True, slots=True)
class Change:
    """A layer that must be split, because it reads channels of several groups."""

    path: str
    """Path of the layer."""
    kind: ChangeKind
    """A convolution or linear layer (``"layer"``), or a norm over channels."""
    groups: int
    """Number of groups that it is split in."""
    owners: Owners
    """Owners of the channels that the layer reads."""
    dim: int
    """Dimension of the channels in the tensor that the layer reads."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """Owners of channels and users of parameters in all local modules."""

    owners: tuple[Owners, ...]
    """Owners, for each local module, of the channels of the tensor that its auxiliary networks read."""
    changes: tuple[Change, ...]
    """Layers to split, by the path of their first use."""
    shared: tuple[tuple[str, ...], ...]
    """Names, for each local module, of the parameters that all groups train: those before its first dense layers."""


def runs(owners: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Return the runs of neighbouring channels of one owner: the first, one past the last, and the owner.

    >>> runs((0, 0, 1, OPEN))
    ((0, 2, 0), (2, 3, 1), (3, 4, -1))
    """
    starts = [i for i in range(len(owners)) if i == 0 or owners[i] != owners[i - 1]]
    return tuple((a, b, owners[a]) for a, b in zip(starts, [*starts[1:], len(owners)], strict=True))


def blocks(channels: int, groups: int) -> Owners:
    """Return owners in equal blocks of channels, one for each group.

    >>> blocks(4, 2)
    (0, 0, 1, 1)
    """
    return tuple(i * groups // channels for i in range(channels))


def kept_apart(owners: Owners, outputs: int, own: int) -> Owners | None:
    """Return the owners of the outputs of a grouped layer; None if an output reads channels of several owners.

    Args:
        owners: Owners of the channels that the layer reads.
        outputs: Number of its output channels.
        own: Number of its own groups.

    >>> kept_apart((0, 0, 1, 1), outputs=2, own=2)
    (0, 1)
    """
    step, given = len(owners) // own, []
    for i in range(own):
        read = {owner for owner in owners[i * step : (i + 1) * step] if owner != OPEN}
        if len(read) > 1:
            return None
        given += [read.pop() if read else OPEN] * (outputs // own)
    return tuple(given)


def sizes_of(layer: Convolution | nn.Linear) -> tuple[int, int, int]:
    """Return input channels, output channels and groups of a layer."""
    if isinstance(layer, nn.Linear):
        groups = layer.groups if isinstance(layer, GroupedLinear) else 1
        return layer.in_features, layer.out_features, groups
    return layer.in_channels, layer.out_channels, layer.groups
