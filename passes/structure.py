"""What a model returns: which value is the primary output, and how the user's containers are rebuilt.

A *slot* stands for a value in the user's own tuple, list, dict, named tuple or dataclass. A *path* leads to one: keys,
attributes and indices from the outside in.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from passes.errors import CaptureError

Output = str | int | Sequence[str | int]
"""Where the primary output is: a key or attribute, an index, or several from the outside in."""
Path = tuple[str | int, ...]

_PLAIN = (int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, type(None), type(...))


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a value."""

    index: int


@dataclass(frozen=True, slots=True)
class Structure:
    """The containers that a model returns, with a :class:`Slot` for each value; a bare tensor is ``Slot(0)``."""

    template: Any = Slot(0)

    @property
    def bare(self) -> bool:
        """Whether the model returns a tensor, in no container."""
        return isinstance(self.template, Slot)

    def rebuild(self, values: Sequence[Any]) -> Any:
        """What the model returns: ``values[i]`` stands where slot i was. Containers are new, of the user's types."""
        return _map(self.template, lambda leaf: values[leaf.index] if isinstance(leaf, Slot) else leaf)

    def reordered(self, order: Sequence[int]) -> Structure:
        """The same containers where value ``order[i]`` has become value i."""
        return Structure(
            _map(self.template, lambda leaf: Slot(order.index(leaf.index)) if isinstance(leaf, Slot) else leaf)
        )

    def read(self, result: Any) -> list[Any]:
        """The values in ``result``, in the order of slots: what :meth:`rebuild` undoes.

        Raises:
            ValueError: ``result`` is built otherwise.
        """
        found: dict[int, Any] = {}
        _read(self.template, result, found)
        return [found[index] for index in range(len(found))]


def flatten(result: Any, is_value: Callable[[Any], bool], where: str) -> tuple[Structure, list[Any]]:
    """Takes values out of what a model returned.

    Args:
        result: What it returned.
        is_value: Which objects are values; the same object is one value wherever it stands.
        where: Class of the model, for errors.

    Returns:
        The structure, and the values in order.

    Raises:
        CaptureError: It returned objects that cannot be looked into.
    """
    values: list[Any] = []

    def place(leaf: Any) -> Any:
        if is_value(leaf):
            known = next((i for i, value in enumerate(values) if value is leaf), None)
            if known is None:
                values.append(leaf)
            return Slot(len(values) - 1 if known is None else known)
        if not isinstance(leaf, _PLAIN):
            raise CaptureError(
                f"the model returns a {type(leaf).__name__}, which cannot be looked into",
                where=where,
                remedy="Return tensors, bare or in tuples, lists, dicts, named tuples or dataclasses",
            )
        return leaf

    return Structure(_map(result, place)), values


def slots(template: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """Every slot, by its path; a value that stands in two places twice."""
    if isinstance(template, Slot):
        yield path, template.index
    for key, child in _children(template) or ():
        yield from slots(child, (*path, key))


def find(structure: Structure, output: Output, where: str, source: str | None) -> int:
    """The slot that ``output`` leads to.

    Raises:
        CaptureError: It leads to no value, or to several.
    """
    path: Path = (output,) if isinstance(output, (str, int)) else tuple(output)
    value = structure.template
    for key in path:
        value = _step(value, key)
    found = {index for _, index in slots(value)}
    if len(found) != 1:
        what = f"leads to {len(found)} values" if found else "leads to no tensor"
        raise CaptureError(f"output={output!r} {what}", where=where, source=source, remedy=choices(structure))
    return found.pop()


def choices(structure: Structure) -> str:
    """What ``output=`` may be, as a remedy."""
    if structure.bare:
        return "Leave output out: in train mode the model returns one tensor, in no container"
    paths = [path[0] if len(path) == 1 else path for path, _ in slots(structure.template)]
    listed = [f"output={path!r}" for path in paths]
    return f"Give {' or '.join(listed)}" if len(listed) < 9 else f"Give {', '.join(listed[:8])}, ..."


def _children(value: Any) -> list[tuple[str | int, Any]] | None:
    """What a container holds, by key; None for what is no container."""
    if isinstance(value, MutableMapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        names: Any = getattr(value, "_fields", None) or range(len(value))
        return list(zip(names, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Slot)):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same containers, made anew, with ``function`` applied to what is none."""
    children = _children(value)
    if children is None:
        return function(value)
    items = [(key, _map(child, function)) for key, child in children]
    if isinstance(value, (tuple, list)):
        if hasattr(value, "_make"):
            return value._make(child for _, child in items)
        return type(value)(child for _, child in items)
    twin = copy.copy(value)
    for key, child in items:
        if isinstance(twin, MutableMapping):
            twin[key] = child
        else:
            # Also of a frozen dataclass, whose constructor might do more than store.
            object.__setattr__(twin, str(key), child)
    return twin


def _step(value: Any, key: str | int) -> Any:
    for name, child in _children(value) or ():
        if name == key and type(name) is type(key):
            return child
    try:
        return value[key] if isinstance(key, int) and isinstance(value, (tuple, list)) else None
    except IndexError:
        return None


def _read(template: Any, result: Any, found: dict[int, Any]) -> None:
    if isinstance(template, Slot):
        found[template.index] = result
        return
    expected, got = _children(template), _children(result)
    same = type(template) is type(result)
    if not same or expected is None or got is None:
        if not same or template != result:
            raise ValueError(f"{template!r} where the model returns a {type(result).__name__}")
        return
    if [key for key, _ in expected] != [key for key, _ in got]:
        raise ValueError(f"other keys in a {type(result).__name__}")
    for (_, inner), (_, value) in zip(expected, got, strict=True):
        _read(inner, value, found)
