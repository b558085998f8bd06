"""One graph run once for each group of channels, with NaN where the group's channels are: what is NaN depends on it.

NaN passes through all arithmetic, activations, norms and pooling, and through reshaping and concatenation unharmed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from passes.common.fake_tensors import has_values
from passes.ir import TensorSpec

Worlds = list[Any]
"""A value in the run of each group; one alone where it is the same in all, since no group's channels are in it."""


def fresh(spec: TensorSpec) -> torch.Tensor:
    """A value away from zero and without equals, so that nothing turns NaN by itself."""
    dtype = spec.dtype if spec.dtype.is_floating_point else torch.float32
    return (torch.rand(spec.shape, dtype=torch.float32) + 0.5).to(dtype)


def marked(spec: TensorSpec, owners: Sequence[int], dim: int, group: int) -> torch.Tensor:
    """A value in the run of one group: NaN in the channels that it owns."""
    value = fresh(spec)
    value.movedim(dim, 0)[torch.tensor(owners) == group] = torch.nan
    return value


def opened(value: Any) -> Any:
    """The same tensors, or containers of tensors, with no group's channels in them."""
    return tree_map(lambda leaf: torch.rand_like(leaf) + 0.5 if _floats(leaf) else leaf, value)


def copied(value: Any) -> Any:
    """The same in memory of its own."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, value)


def in_world(worlds: Worlds, group: int) -> Any:
    """A value in the run of one group."""
    return worlds[group] if len(worlds) > 1 else worlds[0]


def holders_of(worlds: Worlds, dim: int) -> list[tuple[int, ...]]:
    """For each channel of a tensor the groups that it depends on, at any position."""
    if len(worlds) == 1:
        return [()] * int(worlds[0].shape[dim])
    marks = torch.stack([world.isnan().movedim(dim, 0).flatten(1).any(1) for world in worlds]).T.tolist()
    return [tuple(group for group, mark in enumerate(row) if mark) for row in marks]


def dependence(worlds: Worlds) -> int | None:
    """How many groups an entry of a value depends on at most; None where its kind cannot show it."""
    most = 0
    for leaves in zip(*(tree_leaves(world) for world in worlds), strict=True):
        if _floats(leaves[0]):
            most = max(most, int(torch.stack([leaf.isnan() for leaf in leaves]).sum(0).amax()))
        elif isinstance(leaves[0], torch.Tensor):
            return None
    return most


def values_of(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; ones where there are no values."""
    if has_values(tensor):
        return tensor.detach().cpu().clone()
    return torch.ones(tensor.shape, dtype=tensor.dtype)


def runnable(module: nn.Module) -> nn.Module:
    """The module itself where it has values on the CPU, else a copy that has."""
    held = [*module.parameters(), *module.buffers()]
    if all(has_values(tensor) and tensor.device.type == "cpu" for tensor in held):
        return module
    # The memo has a place for each tensor already: nothing is copied that has no values.
    return copy.deepcopy(module, {id(tensor): _parameter_or_buffer(tensor) for tensor in held})


def _parameter_or_buffer(tensor: torch.Tensor) -> torch.Tensor:
    values = values_of(tensor)
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _floats(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
