"""Write layers of torch.nn as constructor calls.

Arguments are read from attributes. Whether they were read correctly only shows when the call is run (on the meta
device) and class, settings and shapes of the result are compared with those of the layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from localize.export.python.templates import hole
from localize.export.python.values import Unwritable, value_text
from passes.common.layer_kinds import NORMS
from passes.common.restore import same_randomness

_NOT_ASKED = ("self", "device", "dtype", "args", "kwargs", "size_average", "reduce")
_LEADING = {
    nn.Linear: 2, nn.Bilinear: 3, nn.Embedding: 2, nn.MultiheadAttention: 2, nn.Flatten: 2, nn.Unflatten: 2,
    nn.GroupNorm: 2, nn.LSTM: 2, nn.GRU: 2,
}  # fmt: skip
"""Number of arguments that are written without their names. Convolutions have three, and all other layers one."""


def layer_text(module: nn.Module) -> str | None:
    """Write a call that makes a layer of torch.nn like this one, apart from its weights; None if no call is known to.

    Numbers among the arguments are holes (:mod:`localize.export.python.templates`).
    """
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules.") or getattr(nn, kind.__name__, None) is not kind:
        return None
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return None
    try:
        arguments = list(_arguments(module))
    except (Unwritable, AttributeError):
        return None
    plain = f"nn.{kind.__name__}({', '.join(text for text, _ in arguments)})"
    if not _makes(plain, module):
        return None
    return f"nn.{kind.__name__}({', '.join(marked for _, marked in arguments)})"


def _arguments(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield each argument that differs from its default: as plain text, and with a hole."""
    recurrent = isinstance(module, (nn.LSTM, nn.GRU))
    kind, left_out = (nn.RNNBase, ("mode", *_NOT_ASKED)) if recurrent else (type(module), _NOT_ASKED)
    parameters = [p for p in inspect.signature(kind.__init__).parameters.values() if p.name not in left_out]
    leading = 3 if hasattr(module, "kernel_size") else _LEADING.get(type(module), 1)
    for position, parameter in enumerate(parameters):
        value = _value(module, parameter.name)
        required = parameter.default is inspect.Parameter.empty
        if isinstance(value, torch.Tensor):
            # The class weights of a loss are part of its state_dict: only their shape matters.
            text = f"torch.ones({tuple(value.shape)})"
            yield f"{parameter.name}={text}", f"{parameter.name}={text}"
            continue
        if not required and _alike(value, parameter.default):
            leading = 0
            continue
        text = value_text(value)
        named = not required or position >= leading
        prefix = f"{parameter.name}=" if named else ""
        yield prefix + text, prefix + hole(parameter.name, text)


def _value(module: nn.Module, name: str) -> Any:
    """Infer the value of a constructor's argument from the attributes of the module."""
    if name == "bias" and not isinstance(module, nn.RNNBase):
        own = module._parameters.get("in_proj_bias" if isinstance(module, nn.MultiheadAttention) else "bias")
        if isinstance(module, NORMS):
            return own is not None or module._parameters.get("weight") is None
        return own is not None
    if name == "add_bias_kv":
        return module._parameters.get("bias_k") is not None
    if name == "init" and isinstance(module, nn.PReLU):
        return 0.25
    if name in ("kdim", "vdim") and getattr(module, name) == module.embed_dim:
        return None
    if name in ("min_value", "max_value", "_weight", "_freeze"):
        return inspect.signature(type(module).__init__).parameters[name].default
    value = getattr(module, name)
    if name == "stride" and _alike(value, getattr(module, "kernel_size", None)) and not hasattr(module, "in_channels"):
        return None
    if isinstance(value, tuple) and value and len(set(value)) == 1 and _square(module, name):
        return value[0]
    return tuple(value) if isinstance(value, torch.Size) else value


def _square(module: nn.Module, name: str) -> bool:
    """Return whether one number for an argument means the same as several equal ones."""
    if name == "normalized_shape":
        return len(getattr(module, name)) == 1
    return name in ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")


def _alike(value: object, default: object) -> bool:
    if isinstance(value, tuple) and value and not isinstance(default, tuple):
        return all(type(part) is type(default) and part == default for part in value)
    return type(value) is type(default) and bool(value == default)


def _makes(text: str, module: nn.Module) -> bool:
    """Return whether a call makes a layer with the same class, settings, and shapes of parameters and buffers."""
    made = _made(text)
    return made is not None and made == (_state(module), repr(module))


@cache
def _made(text: str) -> tuple[list[object], str] | None:
    """Return settings and ``repr`` of the layer that a call makes; None if the call fails."""
    try:
        with unset_fake_temporarily(), same_randomness(), torch.device("meta"):
            made = eval(text, {"torch": torch, "nn": nn})
    except Exception:
        return None
    return _state(made), repr(made)


def _state(module: nn.Module) -> list[object]:
    parts: list[object] = []
    for path, part in module.named_modules():
        own = {name: value for name, value in part.__dict__.items() if _is_setting(name, value)}
        tensors = {
            name: None if tensor is None else tuple(tensor.shape)
            for table in (part._parameters, part._buffers)
            for name, tensor in table.items()
        }
        parts.append((path, type(part), own, tensors, part._non_persistent_buffers_set))
    return parts


def _is_setting(name: str, value: object) -> bool:
    plain = isinstance(value, (int, float, str, bool, tuple, list, type(None)))
    return plain and name != "training" and (not name.startswith("_") or name.startswith("_reversed"))
