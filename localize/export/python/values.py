"""Write values as Python text: numbers, strings, tensors, and other arguments of operations."""

from __future__ import annotations

import base64
import builtins
import keyword
import math
import re
import zlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
from torch import fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from localize.runtime.exporting import ExportError
from passes.common.fake_tensors import has_values

_FEW = 16
"""Most numbers of a tensor that are always written out."""
_MANY = 64
"""Most numbers of a tensor that are written out if no shorter expression makes it."""
UNPACKED = '''\
def unpacked(text: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A table of numbers from its compressed bytes."""
    content = bytearray(zlib.decompress(base64.b85decode(text)))
    return torch.frombuffer(content, dtype=dtype).reshape(shape)
'''
"""Source of the function that reads compressed tables, for the generated file."""


RESERVED = frozenset(
    {"self", "torch", "nn", "F", "math", "operator", "zlib", "base64", "block", *keyword.kwlist, *keyword.softkwlist}
    | {*dir(builtins)}
)
"""Names that generated code must not give to variables, arguments and classes."""


class Unwritable(Exception):
    """A value that cannot be written as Python text; the message says what it is, such as ``a Generator``."""


def value_text(value: object, of_node: Callable[[fx.Node], str] | None = None) -> str:
    """Write a value as Python source, the same for equal values.

    >>> value_text((1, "a", torch.float32, float("inf")))
    '(1, "a", torch.float32, float("inf"))'

    Args:
        value: A number, string, constant of torch, slice, or container of such.
        of_node: Returns the text of a node of a graph; None if the value holds no nodes.

    Raises:
        Unwritable: The value, or a part of it, is of another type.
    """
    if isinstance(value, fx.Node) and of_node is not None:
        return of_node(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, (bool, complex)):
        return repr(value)
    if isinstance(value, (int, float)):
        # Numbers of numpy are ints and floats too, but their repr is not plain.
        return repr(float(value) if isinstance(value, float) else int(value))
    if isinstance(value, str):
        return quoted(value)
    if value is Ellipsis:
        return "..."
    if isinstance(value, torch.device):
        return f"torch.device({quoted(str(value))})"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if isinstance(value, slice):
        inner = ", ".join(value_text(part, of_node) for part in (value.start, value.stop, value.step))
        return f"slice({inner})"
    return _container(value, of_node)


def _container(value: object, of_node: Callable[[fx.Node], str] | None) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{value_text(k)}: {value_text(v, of_node)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        parts = [value_text(part, of_node) for part in value]
        if isinstance(value, list):
            return f"[{', '.join(parts)}]"
        return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    if isinstance(value, SimpleNamespace):
        inner = ", ".join(f"{key}={value_text(part)}" for key, part in vars(value).items())
        return f"SimpleNamespace({inner})"
    raise Unwritable(f"a {type(value).__name__}")


def quoted(text: str) -> str:
    """Write a string literal in ASCII, in double quotes unless the text holds quotes."""
    plain = ascii(text)
    return f'"{plain[1:-1]}"' if plain[0] == "'" and '"' not in plain and "\\'" not in plain else plain


def words(text: str) -> str:
    """Make text safe for comments and docstrings: quotes, backslashes and all but printable ASCII become ``?``.

    >>> print(words('say "hi"'))
    say ?hi?
    """
    return "".join(c if " " <= c <= "~" and c not in "\"'\\" else "?" for c in text)


def identifier(text: str, default: str = "x") -> str:
    """Turn text into a Python name in ASCII, of at most 40 characters.

    >>> identifier("layer1.0.conv"), identifier("0")
    ('layer1_0_conv', 'x_0')
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:40].rstrip("_")
    return f"{default}_{name}" if not name or name[0].isdigit() else name


def tensor_text(tensor: torch.Tensor, what: str) -> str:
    """Write an expression that makes a tensor, bit for bit; compressed bytes if no shorter expression makes it.

    >>> tensor_text(torch.arange(0, 300, 3), "steps")
    'torch.arange(0, 300, 3, dtype=torch.int64)'

    Args:
        tensor: A tensor of any dtype and device. The expression makes it on the default device.
        what: Name of the tensor, for errors.

    Raises:
        ExportError: The tensor has no values, is sparse, or is of a subclass of ``torch.Tensor``.
    """
    if (
        not has_values(tensor)
        or tensor.layout is not torch.strided
        or type(tensor) not in (torch.Tensor, torch.nn.Buffer)
    ):
        raise ExportError(
            f"the constant {what} cannot be written",
            why="it has no values" if tensor.is_meta else f"it is a {type(tensor).__name__}",
            remedy="Localize a model whose buffers have values, on the CPU say",
        )
    # Buffers outside of the state_dict, such as the tables of Swin, must be in the file. Within a fake mode even the
    # comparison of two real tensors would give a fake one.
    with unset_fake_temporarily():
        plain = tensor.detach().cpu().contiguous()
        for text in _short(plain):
            if _same(eval(text, {"torch": torch}), plain):
                return text
        return _packed(plain)


def _short(tensor: torch.Tensor) -> list[str]:
    """List expressions that may make the tensor, the most readable first."""
    shape, dtype, count = tuple(tensor.shape), tensor.dtype, tensor.numel()
    if dtype.is_complex or dtype not in _EXACT:
        return []
    flat = tensor.flatten()
    first = value_text(flat[0].item()) if count else "0"
    made = f"dtype={dtype}"
    texts = []
    if count > 1 and bool((flat == flat[0]).all()):
        kind = {"0": "zeros", "1": "ones", "0.0": "zeros", "1.0": "ones"}.get(first)
        texts.append(f"torch.{kind}({shape}, {made})" if kind else f"torch.full({shape}, {first}, {made})")
    if count <= _FEW:
        texts.append(f"torch.tensor({value_text(tensor.tolist())}, {made})")
    if count > 2 and not dtype.is_floating_point and dtype is not torch.bool:
        start, step = int(flat[0]), int(flat[1]) - int(flat[0])
        if step:
            texts.append(f"torch.arange({start}, {start + step * count}, {step}, {made}){_reshaped(shape)}")
    if count > _FEW:
        values, lengths = torch.unique_consecutive(flat, return_counts=True)
        if len(values) * 4 <= count and len(values) <= 4 * _MANY:
            runs = f"torch.tensor({value_text(values.tolist())}, {made}), torch.tensor({value_text(lengths.tolist())})"
            texts.append(f"torch.repeat_interleave({runs}){_reshaped(shape)}")
    if count <= _MANY:
        texts.append(f"torch.tensor({value_text(tensor.tolist())}, {made})")
    return texts


_EXACT = {torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
"""Dtypes whose numbers Python prints exactly."""


def _reshaped(shape: tuple[int, ...]) -> str:
    return "" if len(shape) == 1 else f".reshape({shape})"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and _bytes(one) == _bytes(other)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _packed(tensor: torch.Tensor) -> str:
    text = base64.b85encode(zlib.compress(_bytes(tensor), 9)).decode("ascii")
    lines = [f'"{text[i : i + 100]}"' for i in range(0, len(text), 100)]
    return f"unpacked({' '.join(lines)}, {tensor.dtype}, {tuple(tensor.shape)})"
