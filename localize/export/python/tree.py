"""Write code that makes parameters, buffers and modules, and code that reaches them, whatever their names are."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from localize.export.python.support_code import SupportCode
from localize.export.python.templates import hole
from localize.export.python.values import UNPACKED, quoted, tensor_text

GROW = '''\
def grow(root, parts):
    """Puts modules, parameters and buffers in their places below a module, by name.

    A name stands for the module of that name. What is in no state_dict comes as a tuple of one.
    """
    for path, part in parts.items():
        owner = root
        *above, name = path.split(".")
        for step, child in zip(above, [*above[1:], name]):
            if step not in owner._modules:
                place(owner, step, nn.ModuleList() if child.isdecimal() else nn.Module())
            owner = owner._modules[step]
        if isinstance(part, nn.Parameter):
            owner.register_parameter(name, part)
        elif isinstance(part, (torch.Tensor, tuple)):
            owner.register_buffer(name, part[0] if isinstance(part, tuple) else part, persistent=torch.is_tensor(part))
        else:
            place(owner, name, root.get_submodule(part) if isinstance(part, str) else part)
    return root
'''
PLACE = '''\
def place(owner, name, module):
    """Adds a module; in a list, behind empty places for those that hold nothing."""
    while isinstance(owner, nn.ModuleList) and name.isdecimal() and len(owner) < int(name):
        owner.append(nn.Identity())
    owner.add_module(name, module)
'''


def need_grow(support: SupportCode) -> None:
    """Add the function that puts modules in their places to the file."""
    support.add("place", PLACE)
    support.add("grow", GROW)


def access(base: str, path: str, root: nn.Module) -> str:
    """Write an expression for the module or tensor at a path below a root.

    >>> access("self.net", "0.weight", nn.Sequential(nn.Linear(2, 2)))
    'self.net[0].weight'

    Args:
        base: Expression for the root.
        path: Path below the root.
        root: The root.
    """
    text, owner = base, root
    for name in path.split("."):
        listed = name.isdecimal() and [*owner._modules] == [str(i) for i in range(len(owner._modules))]
        if listed:
            text = f"{text}[{name}]"
        else:
            text = f"{text}.{name}" if is_name(name) else f"getattr({text}, {quoted(name)})"
        owner = owner._modules.get(name) or owner
    return text


def is_name(text: str) -> bool:
    """Return whether a text may follow a dot as the name of an attribute."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) is not None and not keyword.iskeyword(text)


def held(name: str, text: str) -> str:
    """Write a line that registers a module on ``self``."""
    return f"self.{name} = {text}" if is_name(name) else f"self.add_module({quoted(name)}, {text})"


def parameter_text(tensor: torch.Tensor) -> str:
    """Write an expression that makes a parameter of this shape."""
    return f"nn.Parameter(torch.zeros({_shape(tensor)}))"


def buffer_text(buffer: torch.Tensor, name: str, persistent: bool, support: SupportCode) -> str:
    """Write an expression that makes a buffer.

    Persistent buffers of floating-point numbers or of a single number get their values from a state_dict, so only their
    shape is written; all others are written with their values.

    Raises:
        ExportError: The buffer is written with its values, and has none.
    """
    if persistent and buffer.is_floating_point():
        kind = "ones" if name.rpartition(".")[2].endswith("var") else "zeros"
        made = "" if buffer.dtype is torch.float32 else f", dtype={buffer.dtype}"
        return f"torch.{kind}({_shape(buffer)}{made})"
    if persistent and not buffer.ndim:
        return "torch.tensor(0)" if buffer.dtype is torch.int64 else f"torch.tensor(0, dtype={buffer.dtype})"
    return needing(tensor_text(buffer, name), support)


def needing(text: str, support: SupportCode) -> str:
    """Add what an expression for a tensor needs to the file, and return the expression."""
    if text.startswith("unpacked("):
        support.imports |= {"import base64", "import zlib"}
        support.add("unpacked", UNPACKED)
    return text


def _shape(tensor: torch.Tensor) -> str:
    if tensor.ndim == 1:
        return hole("size", str(tensor.shape[0]))
    return hole("shape", str(tuple(tensor.shape)))


def own_tensors(
    module: nn.Module, where: str, values: Callable[[torch.Tensor], torch.Tensor], support: SupportCode
) -> Iterator[str]:
    """Yield the lines that make the parameters and buffers of a module itself.

    Args:
        module: The module.
        where: Name of the module, for errors.
        values: Returns a buffer with its values, for a fake one.
        support: Collects functions of the file.

    Raises:
        ExportError: A buffer that is not in the state_dict has no values.
    """
    for name, parameter in module._parameters.items():
        text = "None" if parameter is None else parameter_text(parameter)
        yield f"self.{name} = {text}" if is_name(name) else f"self.register_parameter({quoted(name)}, {text})"
    for name, buffer in module._buffers.items():
        persistent = name not in module._non_persistent_buffers_set
        text = "None"
        if buffer is not None:
            text = buffer_text(values(buffer), f"{where}.{name}", persistent, support)
        yield f"self.register_buffer({quoted(name)}, {text}{'' if persistent else ', persistent=False'})"


def ordered(parts: Mapping[str, str]) -> str:
    """Write an OrderedDict of modules by name."""
    if all(is_name(name) for name in parts):
        return f"OrderedDict({', '.join(f'{name}={text}' for name, text in parts.items())})"
    return f"OrderedDict([{', '.join(f'({quoted(name)}, {text})' for name, text in parts.items())}])"
