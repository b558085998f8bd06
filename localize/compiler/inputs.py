"""What the compiler accepts: the model, the example inputs, and the tracing policy."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import nn

from localize.runtime.local_graph import LocalGraphModule
from passes.capture.leaf_policy import LeafPolicy
from passes.errors import CaptureError, InputError

_DEFAULT_SHAPE = (3, 224, 224)


def leaf_policy() -> LeafPolicy:
    """Return the tracing policy: with timm's own leaf modules and wrapped functions, if timm is loaded."""
    if "timm" not in sys.modules:
        return LeafPolicy()
    from timm.layers import get_notrace_functions, get_notrace_modules

    functions = tuple(function for function in get_notrace_functions() if callable(function))
    return LeafPolicy(doubtful=frozenset(get_notrace_modules()), functions=functions)


def input_of(
    model: nn.Module, example_inputs: torch.Tensor | Sequence[torch.Tensor] | None
) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the shape and dtype to analyse with: the example's, else the model configuration's, else (2, 3, 224, 224).

    Raises:
        InputError: ``example_inputs`` is not one tensor with a batch dimension.
    """
    if example_inputs is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        size = config.get("input_size") if hasattr(config, "get") else getattr(config, "input_size", None)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        return (2, *(size or _DEFAULT_SHAPE)), dtype
    if isinstance(example_inputs, (tuple, list)) and len(example_inputs) == 1:
        example_inputs = example_inputs[0]
    if not isinstance(example_inputs, torch.Tensor) or example_inputs.ndim < 2:
        raise InputError(
            f"example_inputs must be one tensor with a batch dimension, got {_kind(example_inputs)}",
            remedy="Give, say, torch.empty(2, 3, 224, 224)",
        )
    # Two samples at least: batch norm in train mode refuses one value a channel.
    return (max(2, example_inputs.shape[0]), *example_inputs.shape[1:]), example_inputs.dtype


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return (
        f"a {type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
    )


def require_module(model: object) -> None:
    """Refuse what cannot be localized by its kind.

    Raises:
        CaptureError: ``model`` is not an ``nn.Module``, or is compiled code.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"model must be an nn.Module, got a {type(model).__name__}",
            remedy="Call the class to make a model" if isinstance(model, type) else "Give the model object itself",
        )
    if isinstance(model, (torch.jit.ScriptModule, LocalGraphModule)):
        kind = "ScriptModule" if isinstance(model, torch.jit.ScriptModule) else "LocalGraphModule"
        raise CaptureError(
            f"a {kind} cannot be localized",
            why="it is compiled code already",
            remedy="Give the model it was made from",
        )
