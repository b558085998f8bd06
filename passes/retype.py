"""Retyping: a leaf layer's architecture for another number of channels, and copies of layers with fresh weights.

A change is a mapping of attribute to value (``{"in_channels": 32}``). What a class of layer can change is one entry of
the table :data:`FITS`; parameters then follow from the attributes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from passes.errors import AdaptError
from passes.ir import TensorSpec
from passes.untouched import is_hook_table
from passes.weights import Initializer

Changes = Mapping[str, Any]
Fit = Callable[[nn.Module, TensorSpec, TensorSpec], Changes | None]


def fit(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes | None:
    """Changes that let ``module`` read ``now`` where it read ``was``; None when nothing is known of its class."""
    for kind, function in FITS:
        if isinstance(module, kind):
            return function(module, was, now)
    return None


def _fit_conv(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes:
    assert isinstance(module, _ConvNd)
    channels = now.shape[1]
    if channels == module.in_channels:
        return {}
    if module.groups == module.in_channels and module.groups > 1:
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
    last = type(module).forward is nn.LayerNorm.forward or was.layout != "NCHW"
    channels = now.shape[-1 if last else 1]
    return {} if (channels,) == tuple(module.normalized_shape) else {"normalized_shape": (channels,)}


def _fit_prelu(module: nn.Module, was: TensorSpec, now: TensorSpec) -> Changes:
    assert isinstance(module, nn.PReLU)
    return {} if module.num_parameters in (1, now.shape[1]) else {"num_parameters": now.shape[1]}


FITS: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Fit], ...] = (
    (_ConvNd, _fit_conv),
    (nn.Linear, _fit_linear),
    (_NormBase, _fit_features),
    (nn.GroupNorm, _fit_group_norm),
    (nn.LayerNorm, _fit_layer_norm),
    (nn.PReLU, _fit_prelu),
)
"""What is known of classes of layers; the first entry that matches counts."""


def produce(module: nn.Module, channels: int) -> Changes | None:
    """Changes that make ``module`` give ``channels`` output channels; None when its class has no such setting."""
    if isinstance(module, _ConvNd) and module.groups == 1:
        return {"out_channels": channels}
    return {"out_features": channels} if isinstance(module, nn.Linear) else None


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters and buffers as the attributes of ``module`` imply them."""
    if isinstance(module, _ConvNd):
        rows, columns = module.out_channels, module.in_channels // module.groups
        if isinstance(module, _ConvTransposeNd):
            rows, columns = module.in_channels, module.out_channels // module.groups
        return {"weight": (rows, columns, *module.kernel_size), "bias": (module.out_channels,)}
    if isinstance(module, nn.Linear):
        return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    if isinstance(module, _NormBase):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
    if isinstance(module, nn.GroupNorm):
        return dict.fromkeys(("weight", "bias"), (module.num_channels,))
    if isinstance(module, nn.LayerNorm):
        return dict.fromkeys(("weight", "bias"), tuple(module.normalized_shape))
    if isinstance(module, nn.PReLU):
        return {"weight": (module.num_parameters,)}
    return {}


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalizes: its parameters start as ones and zeros."""
    return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) or type(module).__name__.endswith("Norm")


def clone(module: nn.Module, changes: Changes, draw: Initializer) -> nn.Module:
    """A copy of ``module`` with ``changes`` applied, weights drawn anew, statistics reset, and no hooks of the user's.

    Where ``draw`` copies, weights of unchanged shape and statistics of unchanged norms keep their values.

    Raises:
        AdaptError: The changes would reshape a weight that is computed from others (weight norm, parametrizations).
    """
    twin: nn.Module = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    twin.__dict__.update({name: OrderedDict() for name in module.__dict__ if is_hook_table(name)})
    # Reparametrizations of torch.nn.utils live in a hook that computes the weight before each forward.
    twin.__dict__["_forward_pre_hooks"] = OrderedDict(
        (key, hook)
        for key, hook in module._forward_pre_hooks.items()
        if type(hook).__module__.startswith("torch.nn.utils.")
    )
    for attribute, value in changes.items():
        assert attribute in twin.__dict__, f"{type(module).__name__} has no {attribute}"
        twin.__dict__[attribute] = value
    shapes = _shapes(twin) if changes else {}
    if changes.keys() - {"stride", "padding"} and "weight" in shapes and "weight" not in module._parameters:
        raise AdaptError(f"the weight of {type(module).__name__} is computed from others, and cannot be reshaped")
    norm = is_norm(module)
    weight = module._parameters.get("weight")
    fan_in = 0
    if isinstance(module, (_ConvNd, nn.Linear)) and weight is not None:
        fan_in = math.prod(shapes.get("weight", tuple(weight.shape))[1:])
    twin._parameters = {
        name: None if p is None else draw.like(p, shapes.get(name, tuple(p.shape)), norm=norm, fan_in=fan_in)
        for name, p in module._parameters.items()
    }
    reset = norm and not (draw.copies and not changes)
    twin._buffers = {
        name: None if b is None else _fresh_buffer(name, b, shapes.get(name, tuple(b.shape)), reset)
        for name, b in module._buffers.items()
    }
    twin._modules = {name: None if child is None else clone(child, {}, draw) for name, child in module._modules.items()}
    twin.training = True
    return _padded(twin) if changes.get("padding") == "same" else twin


def _padded(module: nn.Module) -> nn.Module:
    """A convolution without stride behind the zeros that keep its input's size, one more after than before if need be.

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
