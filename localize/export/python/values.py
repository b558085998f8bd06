"""Python text of values: numbers, strings, tensors, and what else stands among the arguments of operations."""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from localize.export.request import ExportError
from passes.common.fake_tensors import has_values

_FEW = 16
"""Numbers that are always written out."""
_MANY = 64
"""Numbers that are written out where nothing shorter says the same."""
UNPACKED = '''\
def unpacked(text: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A table of numbers from its compressed bytes."""
    content = bytearray(zlib.decompress(base64.b85decode(text)))
    return torch.frombuffer(content, dtype=dtype).reshape(shape)
'''
"""Source of what reads compressed tables, for the generated file."""


class Unwritable(Exception):
    """A value that has no short text in Python; the message says what it is."""


def value_text(value: Any, of_node: Callable[[fx.Node], str] | None = None) -> str:
    """A value as Python source, the same for equal values.

    Args:
        value: Numbers, strings, torch's own constants, slices, and containers of such.
        of_node: Text of nodes, where there may be some.

    Raises:
        Unwritable: It is something else.
    """
    if isinstance(value, fx.Node) and of_node is not None:
        return of_node(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, (bool, complex)):
        return repr(value)
    if isinstance(value, (int, float)):
        # Of numpy's too, which call themselves otherwise.
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


def _container(value: Any, of_node: Callable[[fx.Node], str] | None) -> str:
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
    """A string literal in ASCII, in double quotes where it has none."""
    plain = ascii(text)
    return f'"{plain[1:-1]}"' if plain[0] == "'" and '"' not in plain and "\\'" not in plain else plain


def words(text: str) -> str:
    """A text of anybody's for comments and docstrings: nothing in it can end either of them."""
    return "".join(c if " " <= c <= "~" and c not in "\"'\\" else "?" for c in text)


def identifier(text: str, default: str = "x") -> str:
    """A text as a Python name, in ASCII and of reasonable length."""
    found = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:40].rstrip("_")
    return f"{default}_{found}" if not found or found[0].isdigit() else found


def tensor_text(tensor: torch.Tensor, what: str) -> str:
    """An expression that makes the tensor, bit for bit; a table as bytes where nothing shorter says the same.

    Args:
        tensor: Of any type and device; the text makes it on the default device.
        what: Its name, for errors.

    Raises:
        ExportError: It has no values, or is none that can be written.
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
    with unset_fake_temporarily():
        plain = tensor.detach().cpu().contiguous()
        for text in _short(plain):
            if _same(eval(text, {"torch": torch}), plain):
                return text
        return _packed(plain)


def _short(tensor: torch.Tensor) -> list[str]:
    """Texts that may make the tensor, the most readable first."""
    shape, dtype, count = tuple(tensor.shape), tensor.dtype, tensor.numel()
    if dtype.is_complex or dtype not in _EXACT:
        return []
    flat = tensor.flatten()
    first = value_text(flat[0].item()) if count else "0"
    made = f"dtype={dtype}"
    found = []
    if count > 1 and bool((flat == flat[0]).all()):
        kind = {"0": "zeros", "1": "ones", "0.0": "zeros", "1.0": "ones"}.get(first)
        found.append(f"torch.{kind}({shape}, {made})" if kind else f"torch.full({shape}, {first}, {made})")
    if count <= _FEW:
        found.append(f"torch.tensor({value_text(tensor.tolist())}, {made})")
    if count > 2 and not dtype.is_floating_point and dtype is not torch.bool:
        start, step = int(flat[0]), int(flat[1]) - int(flat[0])
        if step:
            found.append(f"torch.arange({start}, {start + step * count}, {step}, {made}){_reshaped(shape)}")
    if count > _FEW:
        values, lengths = torch.unique_consecutive(flat, return_counts=True)
        if len(values) * 4 <= count and len(values) <= 4 * _MANY:
            runs = f"torch.tensor({value_text(values.tolist())}, {made}), torch.tensor({value_text(lengths.tolist())})"
            found.append(f"torch.repeat_interleave({runs}){_reshaped(shape)}")
    if count <= _MANY:
        found.append(f"torch.tensor({value_text(tensor.tolist())}, {made})")
    return found


_EXACT = {torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
"""Types whose numbers Python prints in full."""


def _reshaped(shape: tuple[int, ...]) -> str:
    return "" if len(shape) == 1 else f".reshape({shape})"


def _same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return _bytes(found) == _bytes(wanted)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _packed(tensor: torch.Tensor) -> str:
    text = base64.b85encode(zlib.compress(_bytes(tensor), 9)).decode("ascii")
    lines = [f'"{text[i : i + 100]}"' for i in range(0, len(text), 100)]
    return f"unpacked({' '.join(lines)}, {tensor.dtype}, {tuple(tensor.shape)})"
