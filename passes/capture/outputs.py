"""Outputs of a model while it is traced: values are taken out of its containers, and the primary one is found."""

from __future__ import annotations

from typing import TypeVar

import torch

from passes.errors import CaptureError
from passes.structure import Output, Path, Slot, Structure, choices, map_leaves

_CONSTANTS = (int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, type(None), type(...))
"""Types of what may stand in a model's output besides values; it is returned again as it is."""

Value = TypeVar("Value")


def flatten(result: object, kind: type[Value] | tuple[type[Value], ...], where: str) -> tuple[Structure, list[Value]]:
    """Take the values out of what a model returned.

    Args:
        result: What it returned.
        kind: Classes of values; an object that stands in two places is one value.
        where: Class of the model, for errors.

    Returns:
        The structure, and the values in order.

    Raises:
        CaptureError: ``result`` holds an object that is neither a value, nor a container, nor a constant.
    """
    values: list[Value] = []

    def place(leaf: object) -> object:
        if isinstance(leaf, kind):
            known = next((i for i, value in enumerate(values) if value is leaf), None)
            if known is None:
                values.append(leaf)
            return Slot(len(values) - 1 if known is None else known)
        if not isinstance(leaf, _CONSTANTS):
            raise CaptureError(
                f"the model returns a {type(leaf).__name__}, which cannot be looked into",
                where=where,
                remedy="Return tensors, bare or in tuples, lists, dicts, named tuples or dataclasses",
            )
        return leaf

    return Structure(map_leaves(result, place)), values


def find_output(structure: Structure, output: Output, where: str, source: str | None) -> int:
    """Return the index of the value that ``output`` leads to.

    Args:
        structure: The containers that the model returns.
        output: A key, attribute or index, or several of them from the outside in.
        where: Class of the model, for errors.
        source: Line of its forward, for errors.

    Raises:
        CaptureError: ``output`` leads to no value, or to several.
    """
    path: Path = (output,) if isinstance(output, (str, int)) else tuple(output)
    indices = structure.slots(path)
    if len(indices) != 1:
        what = f"leads to {len(indices)} values" if indices else "leads to no tensor"
        raise CaptureError(f"output={output!r} {what}", where=where, source=source, remedy=choices(structure))
    return indices[0]
