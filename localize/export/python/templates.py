"""Text of a generated file: holes where classes that are alike differ, references between classes, long lines.

A *hole* is a piece of a class's text that may differ in another class which is otherwise the same: a number of
channels, a probability. It has a *role*, the name that it gets as an argument where it does differ.
"""

from __future__ import annotations

import re

WIDTH = 120
_OPEN, _IS, _CLOSE = "\ue000", "\ue001", "\ue002"
HOLE = re.compile(f"{_OPEN}([^{_IS}]*){_IS}([^{_CLOSE}]*){_CLOSE}")
"""A hole: its role, and the text that stands in it. Such characters are in no other text: strings are ASCII."""
REFERENCE = re.compile("\ue003(\\d+)\ue004")
"""A call that makes a class of the file, by the number of the class."""
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def hole(role: str, text: str) -> str:
    """A piece of text that may differ between classes that are otherwise the same."""
    return f"{_OPEN}{role}{_IS}{text}{_CLOSE}"


def reference(number: int) -> str:
    """Stands for the call that makes the class of this number."""
    return f"\ue003{number}\ue004"


def filled(text: str) -> str:
    """The text with what stands in its holes."""
    return HOLE.sub(r"\2", text)


def indented(lines: list[str], by: int = 4) -> list[str]:
    """The lines further to the right."""
    return [f"{' ' * by}{line}" if line else "" for line in lines]


_INSIDE = re.compile(r"self\.primary(?:\.\w+|\[\d+\])*\[\d+\](?=\.)")
"""A module that is an item of a list, in front of what is reached through it."""


def abbreviated(lines: list[str]) -> list[str]:
    """The lines with a name for a block where several in a row reach into the same one."""
    found: list[str] = []
    start = 0
    while start < len(lines):
        match = _INSIDE.search(lines[start])
        stop, count = start + 1, 1
        while match and stop < len(lines):
            others = _INSIDE.findall(lines[stop])
            if any(other != match.group() for other in others):
                break
            stop, count = stop + 1, count + len(others)
        if match is None or count < 3 or any(m != match.group() for m in _INSIDE.findall(lines[start])):
            found.append(lines[start])
            start += 1
            continue
        indent = " " * (len(lines[start]) - len(lines[start].lstrip()))
        found.append(f"{indent}block = {match.group()}")
        found += [_INSIDE.sub("block", line) for line in lines[start:stop]]
        start = stop
    return found


def branched(training: list[str], inference: list[str]) -> list[str]:
    """The lines of a function that does the one in training, and the other in inference."""
    before: list[str] = []
    while training and inference and (one := _either(training[0], inference[0])) is not None:
        before.append(one)
        training, inference = training[1:], inference[1:]
    after: list[str] = []
    while training and inference and (one := _either(training[-1], inference[-1])) is not None:
        after.insert(0, one)
        training, inference = training[:-1], inference[:-1]
    middle: list[str] = []
    if training:
        middle += ["if self.training:", *indented(training)]
    if inference:
        middle += ["else:" if training else "if not self.training:", *indented(inference)]
    return [*before, *middle, *after]


def _either(training: str, inference: str) -> str | None:
    """One line for two that differ in nothing, or in a flag; None where they differ otherwise."""
    if training == inference:
        return training
    merged = re.sub(r"\btraining=True\b", "training=self.training", training)
    return merged if merged == re.sub(r"\btraining=False\b", "training=self.training", inference) else None


def folded(line: str) -> list[str]:
    """A line of code as several where it is too long, broken inside its outermost brackets."""
    if len(line) <= WIDTH:
        return [line]
    indent = len(line) - len(line.lstrip())
    if line.lstrip().startswith("#"):
        return _comment(line, indent)
    found = _outermost(line)
    if found is None:
        return [line]
    start, stop = found
    inner = _parts(line[start + 1 : stop])
    if not inner:
        return [line]
    body = _packed(inner, " " * (indent + 4))
    return [*folded(line[: start + 1]), *(more for part in body for more in folded(part)), " " * indent + line[stop:]]


def _comment(line: str, indent: int) -> list[str]:
    lines, current = [], ""
    for word in line.strip().removeprefix("#").split():
        if current and indent + 2 + len(current) + 1 + len(word) > WIDTH:
            lines.append(current)
            current = word
        else:
            current = f"{current} {word}".strip()
    return [f"{' ' * indent}# {text}" for text in [*lines, current]]


def _packed(parts: list[str], indent: str) -> list[str]:
    """One part a line where one is long or named; else as many as fit."""
    if any("(" in part or "=" in part or len(part) > WIDTH // 2 for part in parts):
        return [f"{indent}{part}" for part in parts]
    lines, current = [], ""
    for part in parts:
        if current and len(indent) + len(current) + 1 + len(part) > WIDTH:
            lines.append(indent + current)
            current = part
        else:
            current = f"{current} {part}".strip()
    return [*lines, indent + current]


def _outermost(line: str) -> tuple[int, int] | None:
    """The last of the widest pairs of brackets: where it opens and closes."""
    best: tuple[int, int] | None = None
    stack: list[int] = []
    for i, character in _code(line):
        if character in _BRACKETS:
            stack.append(i)
        elif character in _BRACKETS.values() and stack:
            start = stack.pop()
            if not stack and i - start > 1 and (best is None or i - start > best[1] - best[0]):
                best = start, i
    return best


def _parts(text: str) -> list[str]:
    """What stands between commas, or between adjacent strings, outside of brackets; commas included."""
    found: list[str] = []
    start = depth = 0
    for i, character in _code(text):
        depth += (character in _BRACKETS) - (character in _BRACKETS.values())
        between = character == " " and text[i - 1] == '"' and text[i + 1 : i + 2] == '"'
        if not depth and (character == "," or between):
            found.append(text[start : i + 1].strip())
            start = i + 1
    last = text[start:].strip()
    generator = re.search(r"\bfor\b", text) is not None
    return [*found, last if generator or not found or not found[-1].endswith(",") else f"{last},"] if last else found


def _code(text: str) -> list[tuple[int, str]]:
    """Positions and characters outside of strings."""
    found, quote, i = [], "", 0
    while i < len(text):
        character = text[i]
        if quote:
            if character == "\\":
                i += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        else:
            found.append((i, character))
        i += 1
    return found
