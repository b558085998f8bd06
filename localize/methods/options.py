"""Helpers for the options of learning rules: checks of single values, and one dataclass made of several."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any, TypeGuard, TypeVar

from passes.errors import MethodError

KindT = TypeVar("KindT")
"""A dataclass of options."""


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number; True and False are not.

    >>> is_number(0.5), is_number(True), is_number(float("inf"))
    (True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Return whether a value is an integer >= ``least``; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require_count(name: str, value: object, least: int, optional: bool = False) -> None:
    """Check that an option is an integer >= ``least``, or None if it is optional.

    Raises:
        MethodError: ``value`` is something else.
    """
    if not (optional and value is None) and not is_whole(value, least):
        raise MethodError(f"{name} must be an integer >= {least}{' or None' if optional else ''}, got {value!r}")


def require_weight(name: str, value: object) -> None:
    """Check that an option is a finite number >= 0.

    Raises:
        MethodError: ``value`` is something else.
    """
    if not is_number(value) or value < 0:
        raise MethodError(f"{name} must be a number >= 0, got {value!r}")


def require_one_of(name: str, value: object, known: Collection[str]) -> None:
    """Check that an option is one of the known words.

    Raises:
        MethodError: ``value`` is not one of ``known``.
    """
    if value not in known:
        *most, last = map(repr, known)
        raise MethodError(f"{name} must be {', '.join(most)} or {last}, got {value!r}")


def require_bool(name: str, value: object) -> None:
    """Check that an option is True or False.

    Raises:
        MethodError: ``value`` is something else.
    """
    if not isinstance(value, bool):
        raise MethodError(f"{name} must be True or False, got {value!r}")


def join_options(*kinds: type[Any], keep: Collection[str] | None = None) -> type[Any]:
    """Make one dataclass of the options of several rules.

    Args:
        kinds: The rules' dataclasses. An option that several have is one option, passed to all of them.
        keep: Options of all kinds but the first that a user may choose; None for all.
    """
    fields: dict[str, dataclasses.Field[object]] = {}
    for kind in kinds:
        for field in dataclasses.fields(kind):
            if field.name not in fields and (kind is kinds[0] or keep is None or field.name in keep):
                fields[field.name] = field

    def check(self: object) -> None:
        # Each kind checks its own options in its __post_init__. Some replace a value there (a list by a tuple, None by
        # a default), and a plan must show the value in effect.
        for kind in kinds:
            chosen = part_of(kind, self)
            for name in fields:
                if hasattr(chosen, name):
                    object.__setattr__(self, name, getattr(chosen, name))

    joined: type[Any] = dataclasses.make_dataclass(
        "Options",
        [(field.name, field.type, dataclasses.field(default=field.default)) for field in fields.values()],
        frozen=True,
        slots=True,
        kw_only=True,
        namespace={"__post_init__": check, "__doc__": kinds[0].__doc__, "__module__": __name__, "kinds": kinds},
    )
    return joined


def part_of(kind: type[KindT], options: object, **fixed: object) -> KindT:
    """Return the part of joined options that belongs to one rule.

    Args:
        kind: The rule's dataclass.
        options: The joined options; those that ``kind`` lacks are ignored.
        **fixed: Values that take the place of those in ``options``.
    """
    assert dataclasses.is_dataclass(kind), f"{kind} holds no options"
    names = [field.name for field in dataclasses.fields(kind) if field.name not in fixed]
    return kind(**fixed, **{name: getattr(options, name) for name in names if hasattr(options, name)})
