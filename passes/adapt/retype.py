"""Retyping: a leaf layer for another number of channels, and copies of layers with fresh weights.

A change is a mapping of attribute to value (``{"in_channels": 32}``); ``"inside"`` holds the changes of layers inside a
module, by path. The table :data:`FITS` has one entry for each class of layer that can be changed; the shapes of the
parameters then follow from the attributes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from passes.common.initializer import Initializer
from passes.common.layer_kinds import (
    DENSE,
    BatchNormLike,
    Convolution,
    TransposedConvolution,
    is_depthwise,
    is_norm,
    normalizes_last,
)
from passes.common.restore import is_hook_table
from passes.errors import AdaptError
from passes.ir import TensorSpec

Changes = Mapping[str, Any]
Fit = Callable[[nn.Module, TensorSpec, TensorSpec], Changes | None]


def fit(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes | None:
    """Return the changes that let ``module`` read ``now`` where it read ``was``; None if its class is unknown.

    >>> image = TensorSpec((2, 8, 4, 4), layout="NCHW")
    >>> fit(nn.Conv2d(16, 32, 3), TensorSpec((2, 16, 4, 4), layout="NCHW"), image)
    {'in_channels': 8}
    """
    for kind, function in FITS:
        if isinstance(module, kind):
            return function(module, was, now)
    return None


def _fit_conv(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes:
    assert isinstance(module, Convolution)
    channels = now.shape[1]
    if channels == module.in_channels:
        return {}
    if is_depthwise(module):
        multiplier = module.out_channels // module.in_channels
        return {"in_channels": channels, "out_channels": channels * multiplier, "groups": channels}
    if module.groups > 1:
        groups = math.gcd(math.gcd(module.groups, channels), module.out_channels)
        return {"in_channels": channels, "groups": groups}
    return {"in_channels": channels}


def _fit_linear(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes:
    return {} if now.shape[-1] == module.in_features else {"in_features": now.shape[-1]}


def _fit_features(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes:
    return {} if now.shape[1] == module.num_features else {"num_features": now.shape[1]}


def _fit_group_norm(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes:
    assert isinstance(module, nn.GroupNorm)
    channels = now.shape[1]
    if channels == module.num_channels:
        return {}
    if module.num_groups == module.num_channels:
        return {"num_channels": channels, "num_groups": channels}
    return {"num_channels": channels, "num_groups": math.gcd(module.num_groups, channels)}


def _fit_layer_norm(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes | None:
    assert isinstance(module, nn.LayerNorm)
    if len(module.normalized_shape) != 1:
        return None if was.shape[1:] != now.shape[1:] else {}
    # Subclasses for images permute first and normalize over channels, which are then dimension 1.
    last = normalizes_last(module) or was.layout != "NCHW"
    channels = now.shape[-1 if last else 1]
    return {} if (channels,) == tuple(module.normalized_shape) else {"normalized_shape": (channels,)}


def _fit_prelu(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes:
    assert isinstance(module, nn.PReLU)
    return {} if module.num_parameters in (1, now.shape[1]) else {"num_parameters": now.shape[1]}


FITS: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Fit], ...] = (
    (Convolution, _fit_conv),
    (nn.Linear, _fit_linear),
    (BatchNormLike, _fit_features),
    (nn.GroupNorm, _fit_group_norm),
    (nn.LayerNorm, _fit_layer_norm),
    (nn.PReLU, _fit_prelu),
)
"""Class of layers -> function that fits one to another input; the first entry that matches counts."""


def _linear_weight(
    weight: tuple[int, ...], x: tuple[int, ...], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[int, ...]:
    return (*weight[:-1], x[-1])


def _conv_weight(
    weight: tuple[int, ...], x: tuple[int, ...], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[int, ...] | None:
    groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
    return (weight[0], x[1], *weight[2:]) if groups == 1 else None


FUNCTIONS: Mapping[object, Callable[..., tuple[int, ...] | None]] = {
    functional.linear: _linear_weight,
    functional.conv1d: _conv_weight,
    functional.conv2d: _conv_weight,
    functional.conv3d: _conv_weight,
}
"""Functional layers: (shape of the weight, shape of the input, arguments) -> shape of the weight that fits."""


def produce(module: nn.Module, channels: int) -> Changes | None:
    """Return the changes that give ``module`` that many output channels; None if its class has no such setting."""
    if isinstance(module, Convolution) and module.groups == 1:
        return {"out_channels": channels}
    return {"out_features": channels} if isinstance(module, nn.Linear) else None


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of parameters and buffers that the attributes of ``module`` imply, by name."""
    if isinstance(module, Convolution):
        rows, columns = module.out_channels, module.in_channels // module.groups
        if isinstance(module, TransposedConvolution):
            rows, columns = module.in_channels, module.out_channels // module.groups
        return {"weight": (rows, columns, *module.kernel_size), "bias": (module.out_channels,)}
    if isinstance(module, nn.Linear):
        return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    if isinstance(module, BatchNormLike):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
    if isinstance(module, nn.GroupNorm):
        return dict.fromkeys(("weight", "bias"), (module.num_channels,))
    if isinstance(module, nn.LayerNorm):
        return dict.fromkeys(("weight", "bias"), tuple(module.normalized_shape))
    if isinstance(module, nn.PReLU):
        return {"weight": (module.num_parameters,)}
    return {}


class _Misfit(Exception):
    """A layer inside another one expects other channels.

    Args:
        path: Path of the layer inside.
        changes: The changes that it needs.
    """

    def __init__(self, path: str, changes: Changes) -> None:
        super().__init__()
        self.path, self.changes = path, changes


def fit_inside(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], draw: Initializer) -> Changes:
    """Return changes to the layers inside a module that was not opened, such that it runs on these arguments.

    The module runs its own forward on fake tensors; a layer inside that meets other channels is retyped, and it runs
    again. Numbers in the module's own code stay, and it may fail at those.

    Returns:
        ``{"inside": {path: changes}}``.
    """
    changes: dict[str, Changes] = {}
    while True:
        twin = clone(module, {"inside": changes}, draw)
        for path, part in twin.named_modules():
            if path and not isinstance(part, nn.Sequential):
                part.register_forward_pre_hook(partial(_check_fit, path))
        try:
            twin(*args, **kwargs)
        except _Misfit as misfit:
            changes[misfit.path] = {**changes.get(misfit.path, {}), **misfit.changes}
            continue
        return {"inside": changes}


def _check_fit(path: str, part: nn.Module, args: tuple[object, ...]) -> None:
    """Raise :class:`_Misfit` if a layer expects other channels than its input has; a pre-hook of the layer."""
    if args and isinstance(args[0], torch.Tensor):
        now = TensorSpec(tuple(args[0].shape), args[0].dtype, "NCHW" if args[0].ndim == 4 else "other")
        changes = fit(part, now, now)
        if changes:
            raise _Misfit(path, changes)


def _inside(changes: Mapping[str, Changes], child: str) -> Changes:
    """Return the part of the changes inside a module that concerns one of its children."""
    own = dict(changes.get(child, {}))
    deeper = {path.removeprefix(f"{child}."): c for path, c in changes.items() if path.startswith(f"{child}.")}
    return {**own, "inside": deeper} if deeper else own


def clone(module: nn.Module, changes: Changes, draw: Initializer) -> nn.Module:
    """Copy a module, with changes, fresh weights, reset statistics and none of the user's hooks.

    Where ``draw`` copies, weights of unchanged shape and statistics of unchanged norms keep their values.

    Args:
        module: The module, which stays as it is.
        changes: New values of its attributes, and of those of layers inside it.
        draw: Source of the weights.

    Raises:
        AdaptError: The changes would reshape a weight that is computed from others (weight norm, parametrizations).
    """
    # Not copy.deepcopy: that would copy weights only to throw them away, and fails where a user's class refuses it. Not
    # the constructor: its arguments are unknown. So attributes are shared, and all that must differ is replaced below.
    twin: nn.Module = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    twin.__dict__.update({name: OrderedDict() for name in module.__dict__ if is_hook_table(name)})
    # Reparametrizations of torch.nn.utils live in a hook that computes the weight before each forward.
    twin.__dict__["_forward_pre_hooks"] = OrderedDict(
        (key, hook)
        for key, hook in module._forward_pre_hooks.items()
        if type(hook).__module__.startswith("torch.nn.utils.")
    )
    inside: Mapping[str, Changes] = changes.get("inside", {})
    changes = {attribute: value for attribute, value in changes.items() if attribute != "inside"}
    for attribute, value in changes.items():
        assert attribute in twin.__dict__, f"{type(module).__name__} has no {attribute}"
        twin.__dict__[attribute] = value
    # Shapes follow from the attributes as they are now. Strides and paddings change no shape.
    shapes = _shapes(twin) if changes else {}
    if changes.keys() - {"stride", "padding"} and "weight" in shapes and "weight" not in module._parameters:
        raise AdaptError(f"the weight of {type(module).__name__} is computed from others, and cannot be reshaped")
    norm = is_norm(module)
    weight = module._parameters.get("weight")
    fan_in = 0
    if isinstance(module, DENSE) and weight is not None:
        fan_in = math.prod(shapes.get("weight", tuple(weight.shape))[1:])
    twin._parameters = {
        name: None if p is None else draw.like(p, shapes.get(name, tuple(p.shape)), norm=norm, fan_in=fan_in)
        for name, p in module._parameters.items()
    }
    # Statistics describe the values that a norm saw; on another input they would be wrong.
    reset = norm and not (draw.copies and not changes)
    twin._buffers = {
        name: None if b is None else _fresh_buffer(name, b, shapes.get(name, tuple(b.shape)), reset)
        for name, b in module._buffers.items()
    }
    twin._modules = {
        name: None if child is None else clone(child, _inside(inside, name), draw)
        for name, child in module._modules.items()
    }
    twin.training = True
    return _padded(twin) if changes.get("padding") == "same" else twin


def _padded(module: nn.Module) -> nn.Module:
    """Put a convolution without stride after zeros that keep its input's size, one more at the end than at the start.

    ``padding="same"`` would do so itself, but torch warns of it where the kernel is even.
    """
    assert isinstance(module, nn.Conv2d)
    module.padding = (0, 0)
    amounts = [amount for size in reversed(module.kernel_size) for amount in ((size - 1) // 2, size // 2)]
    return nn.Sequential(nn.ZeroPad2d(tuple(amounts)), module)  # type: ignore[arg-type]


def _fresh_buffer(name: str, source: torch.Tensor, shape: tuple[int, ...], reset: bool) -> torch.Tensor:
    starts = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
    if reset and name in starts:
        return torch.full(shape, starts[name], device=source.device).to(source.dtype)
    return source.detach().clone()
