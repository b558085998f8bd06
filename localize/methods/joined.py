"""Options of several rules in one dataclass, for methods that combine them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any


def join_options(*kinds: type[Any], keep: Collection[str] | None = None) -> type[Any]:
    """The options of several rules in one.

    Args:
        kinds: Their dataclasses. An option that several have goes to all of them.
        keep: Which options of all but the first a user may choose; all by default.
    """
    fields: dict[str, Any] = {}
    for kind in kinds:
        for field in dataclasses.fields(kind):
            if field.name not in fields and (kind is kinds[0] or keep is None or field.name in keep):
                fields[field.name] = field

    def check(self: Any) -> None:
        # Each rule checks its own; where it makes something else of a value, a plan shows that.
        for kind in kinds:
            chosen = part_of(kind, self)
            for name in fields:
                if hasattr(chosen, name):
                    object.__setattr__(self, name, getattr(chosen, name))

    made: type[Any] = dataclasses.make_dataclass(
        "Options",
        [(field.name, field.type, dataclasses.field(default=field.default)) for field in fields.values()],
        frozen=True,
        slots=True,
        kw_only=True,
        namespace={"__post_init__": check, "__doc__": kinds[0].__doc__, "__module__": __name__, "kinds": kinds},
    )
    return made


def part_of(kind: type[Any], options: Any, **fixed: Any) -> Any:
    """The part of options that is another dataclass's; what ``fixed`` names is not read."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in fixed]
    return kind(**fixed, **{name: getattr(options, name) for name in names if hasattr(options, name)})
