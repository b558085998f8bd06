"""Dependence on groups of channels, found by running a graph once for each group with NaN in the group's channels.

What comes out as NaN depends on that group. NaN passes through arithmetic, activations, norms, pooling, reshaping,
attention and concatenation, so none of these needs to be known. Comparisons alone lose it, and are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from passes.common.fake_tensors import has_values
from passes.ir import TensorSpec

T = TypeVar("T")

Worlds = list[Any]
"""The value of a node in the run of each group; one alone where it holds no owned channels."""


def fresh(spec: TensorSpec) -> torch.Tensor:
    """Return a random value away from zero, so that nothing turns NaN by itself."""
    dtype = spec.dtype if spec.dtype.is_floating_point else torch.float32
    return (torch.rand(spec.shape, dtype=torch.float32) + 0.5).to(dtype)


def marked(spec: TensorSpec, owners: Sequence[int], dim: int, group: int) -> torch.Tensor:
    """Return a value for the run of one group: NaN in the channels that the group owns."""
    value = fresh(spec)
    value.movedim(dim, 0)[torch.tensor(owners) == group] = torch.nan
    return value


def opened(value: T) -> T:
    """Return tensors like those of ``value``, or containers of them, that hold no group's channels."""
    unmarked: T = tree_map(lambda leaf: torch.rand_like(leaf) + 0.5 if _floats(leaf) else leaf, value)
    return unmarked


def copied(value: T) -> T:
    """Return ``value`` with all tensors copied."""
    twin: T = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, value)
    return twin


def in_world(worlds: Worlds, group: int) -> Any:
    """Return a value in the run of one group."""
    return worlds[group] if len(worlds) > 1 else worlds[0]


def holders_of(worlds: Worlds, dim: int) -> list[tuple[int, ...]]:
    """Return, for each channel of a tensor, the groups that it depends on at any position."""
    if len(worlds) == 1:
        return [()] * int(worlds[0].shape[dim])
    marks = torch.stack([world.isnan().movedim(dim, 0).flatten(1).any(1) for world in worlds]).T.tolist()
    return [tuple(group for group, mark in enumerate(row) if mark) for row in marks]


def dependence(worlds: Worlds) -> int | None:
    """Return how many groups an entry of a value depends on at most; None where its dtype has no NaN."""
    most = 0
    for leaves in zip(*(tree_leaves(world) for world in worlds), strict=True):
        if _floats(leaves[0]):
            most = max(most, int(torch.stack([leaf.isnan() for leaf in leaves]).sum(0).amax()))
        elif isinstance(leaves[0], torch.Tensor):
            return None
    return most


def values_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU; ones where a tensor has no values (on the meta device)."""
    if has_values(tensor):
        return tensor.detach().cpu().clone()
    return torch.ones(tensor.shape, dtype=tensor.dtype)


def runnable(module: nn.Module) -> nn.Module:
    """Return the module itself where it has values on the CPU, else a copy that has."""
    held = [*module.parameters(), *module.buffers()]
    if all(has_values(tensor) and tensor.device.type == "cpu" for tensor in held):
        return module
    # deepcopy takes these tensors for copies that it made already, so nothing is copied that has no values.
    return copy.deepcopy(module, {id(tensor): _parameter_or_buffer(tensor) for tensor in held})


def _parameter_or_buffer(tensor: torch.Tensor) -> torch.Tensor:
    values = values_of(tensor)
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _floats(value: object) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
