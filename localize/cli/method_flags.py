"""Flags for the options of methods, derived from their dataclasses: ``max_aux_macs`` is ``--max-aux-macs``."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

from localize.methods import METHODS, get_method, read_options, with_depth
from localize.plan.schema import meanings
from passes.errors import LocalizeError, MethodError

_WORDS = {"true": True, "false": False, "none": None}


def options_of(method: str, depth: int, arguments: Sequence[str], command: str = "train") -> dict[str, Any]:
    """Read a method's options from the words that the command line has left over.

    A value is a Python literal, or else text; ``--NAME`` alone is true, ``--no-NAME`` false.

    Args:
        method: Name of the method.
        depth: Value of ``--depth``.
        arguments: Words such as ``--tau 0.25``, ``--tau=0.25`` or ``--no-head-norm``.
        command: Name of the command, for errors.

    Raises:
        LocalizeError: A word is not a flag, or a flag is given twice.
        MethodError: The method is unknown, has no such option, or does not take a value; the message lists its flags.
    """
    kind = get_method(method).Options
    names = {field.name for field in dataclasses.fields(kind)} - {"d"}
    options: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        flag, equals, text = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        value: Any = _literal(text) if equals else None
        if not flag.startswith("--"):
            raise LocalizeError(f"unexpected argument {word!r}", remedy="Options begin with --")
        if name not in names and name.removeprefix("no_") in names and not equals:
            name, value = name.removeprefix("no_"), False
        elif name not in names:
            raise _unknown(method, flag, command)
        elif not equals:
            value = _literal(words.pop(0)) if words and not words[0].startswith("--") else True
        if name in options:
            raise LocalizeError(f"{flag} is given twice")
        options[name] = value
    read_options(method, kind, with_depth(kind, depth, options))
    return options


def flags(method: str) -> list[tuple[str, str, str]]:
    """Return flag, default and meaning of each option of a method.

    Raises:
        MethodError: The method is unknown.
    """
    kind = get_method(method).Options
    words = meanings(kind)
    return [(_flag(field.name), str(field.default), words.get(field.name, "")) for field in dataclasses.fields(kind)]


def summary(method: str) -> str:
    """Return one line of help on a method.

    Raises:
        MethodError: The method is unknown.
    """
    return get_method(method).summary


def _unknown(method: str, flag: str, command: str) -> MethodError:
    has = {name: [_flag(field.name) for field in dataclasses.fields(rule.Options)] for name, rule in METHODS.items()}
    known = ", ".join(has[method]) or "none"
    others = [name for name, its in has.items() if flag in its]
    why = f"it is an option of {', '.join(others)}" if others else None
    return MethodError(
        f"no option {flag} of {command}, or of method {method!r}", why=why, remedy=f"Its options: {known}"
    )


def _flag(option: str) -> str:
    return "-d, --depth" if option == "d" else f"--{option.replace('_', '-')}"


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
