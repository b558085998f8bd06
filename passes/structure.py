"""Structure of a model's outputs: the containers that it returns, with a slot for each value.

A *slot* stands for a value in the user's own tuple, list, dict, named tuple or dataclass. A *path* leads to a slot:
keys, attributes and indices, from the outside in.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

Output = str | int | Sequence[str | int]
"""Where the primary output is: a key or attribute, an index, or several of them from the outside in."""
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a value."""

    index: int


@dataclass(frozen=True, slots=True)
class Structure:
    """The containers that a model returns, with a :class:`Slot` for each value; a bare tensor is ``Slot(0)``.

    >>> structure = Structure({"logits": Slot(0), "features": [Slot(1)]})
    >>> structure.rebuild(["a", "b"])
    {'logits': 'a', 'features': ['b']}
    >>> structure.read({'logits': 'c', 'features': ['d']})
    ['c', 'd']
    """

    template: object = Slot(0)

    @property
    def bare(self) -> bool:
        """True if the model returns one tensor, not in a container."""
        return isinstance(self.template, Slot)

    def rebuild(self, values: Sequence[object]) -> Any:
        """Return new containers of the user's types, with ``values[i]`` in the place of slot i."""
        return map_leaves(self.template, lambda leaf: values[leaf.index] if isinstance(leaf, Slot) else leaf)

    def reordered(self, order: Sequence[int]) -> Structure:
        """Return the same containers, where value ``order[i]`` has become value i."""
        return Structure(
            map_leaves(self.template, lambda leaf: Slot(order.index(leaf.index)) if isinstance(leaf, Slot) else leaf)
        )

    def read(self, result: object) -> list[Any]:
        """Return the values in ``result``, in the order of slots: the inverse of :meth:`rebuild`.

        Raises:
            ValueError: ``result`` consists of other containers, keys or constants than the template.
        """
        values: dict[int, object] = {}
        _read(self.template, result, values)
        return [values[index] for index in range(len(values))]

    def slots(self, path: Path = ()) -> list[int]:
        """Return the values at ``path`` or below it, each once; none where the path leads nowhere."""
        part = self.template
        for key in path:
            part = _step(part, key)
        return list(dict.fromkeys(index for _, index in slots(part)))


def slots(template: object, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """Yield every slot with its path; a value that stands in two places is yielded twice."""
    if isinstance(template, Slot):
        yield path, template.index
    for key, child in _children(template) or ():
        yield from slots(child, (*path, key))


def choices(structure: Structure) -> str:
    """Return the values that ``output=`` may have, as the remedy of an error."""
    if structure.bare:
        return "Leave output out: in train mode the model returns one tensor, in no container"
    paths = [path[0] if len(path) == 1 else path for path, _ in slots(structure.template)]
    listed = [f"output={path!r}" for path in paths]
    return f"Give {' or '.join(listed)}" if len(listed) < 9 else f"Give {', '.join(listed[:8])}, ..."


def map_leaves(value: object, function: Callable[[object], object]) -> object:
    """Return the same containers, newly built, with ``function`` applied to everything that is not a container."""
    children = _children(value)
    if children is None:
        return function(value)
    items = [(key, map_leaves(child, function)) for key, child in children]
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


def _children(value: object) -> list[tuple[str | int, object]] | None:
    """Return the contents of a container by key; None where the value is not a container."""
    if isinstance(value, MutableMapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        names: Sequence[str | int] = getattr(value, "_fields", None) or range(len(value))
        return list(zip(names, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Slot)):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def _step(value: object, key: str | int) -> object:
    for name, child in _children(value) or ():
        if name == key and type(name) is type(key):
            return child
    try:
        return value[key] if isinstance(key, int) and isinstance(value, (tuple, list)) else None
    except IndexError:
        return None


def _read(template: object, result: object, values: dict[int, object]) -> None:
    if isinstance(template, Slot):
        values[template.index] = result
        return
    expected, given = _children(template), _children(result)
    same = type(template) is type(result)
    if not same or expected is None or given is None:
        if not same or template != result:
            raise ValueError(f"{template!r} where the model returns a {type(result).__name__}")
        return
    if [key for key, _ in expected] != [key for key, _ in given]:
        raise ValueError(f"other keys in a {type(result).__name__}")
    for (_, inner), (_, value) in zip(expected, given, strict=True):
        _read(inner, value, values)
