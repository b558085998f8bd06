"""Write what a model returns, in its own containers, as Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from localize.export.python.support_code import SupportCode
from localize.export.python.values import Unwritable, identifier, quoted, value_text
from localize.runtime.exporting import ExportError
from passes.structure import Slot, Structure


def output_text(structure: Structure, values: Sequence[str], support: SupportCode) -> str:
    """Write an expression for what the model returns.

    Args:
        structure: The containers that it returns, with slots for tensors.
        values: Expression for each slot.
        support: Collects classes of named tuples.

    Raises:
        ExportError: A container is of a class that cannot be written.
    """
    try:
        return _text(structure.template, values, support)
    except Unwritable as error:
        raise ExportError(
            "what the model returns cannot be written as Python source",
            why=f"it holds {error}",
            remedy="Return tensors in tuples, lists, dicts, named tuples or dataclasses",
        ) from error


def _text(value: object, values: Sequence[str], support: SupportCode) -> str:
    if isinstance(value, Slot):
        return values[value.index]
    kind = type(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _named(kind.__name__, dict(zip(value._fields, value, strict=True)), values, support)
    if isinstance(value, (tuple, list)) and kind in (tuple, list):
        inner = [_text(part, values, support) for part in value]
        if kind is list:
            return f"[{', '.join(inner)}]"
        return f"({', '.join(inner)}{',' if len(inner) == 1 else ''})"
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        return _named(
            kind.__name__, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, values, support
        )
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{value_text(k)}: {_text(part, values, support)}' for k, part in value.items())}}}"
    return value_text(value)


def _named(name: str, fields: Mapping[str, object], values: Sequence[str], support: SupportCode) -> str:
    """Write a named tuple; it replaces a dataclass too, since criteria read both by attributes."""
    own = identifier(name, "Output")
    support.imports.add("from collections import namedtuple")
    support.add(own, f"{own} = namedtuple({quoted(own)}, {value_text(list(fields))})\n")
    return f"{own}({', '.join(f'{key}={_text(part, values, support)}' for key, part in fields.items())})"
