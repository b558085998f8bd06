"""Templates for the text of a generated file: holes, references between classes, and breaking of long lines.

A *hole* is a piece of the text of a class that may differ in another class which is otherwise the same: a number of
channels, or a probability. It has a *role*, which becomes the name of an argument if the texts do differ.
"""

from __future__ import annotations

import re

WIDTH = 120
_OPEN, _IS, _CLOSE = "\ue000", "\ue001", "\ue002"
HOLE = re.compile(f"{_OPEN}([^{_IS}]*){_IS}([^{_CLOSE}]*){_CLOSE}")
"""Pattern of a hole: its role, and the text in it. All other text is ASCII, so the marks are unique."""
REFERENCE = re.compile("\ue003(\\d+)\ue004")
"""Pattern of a reference to a class of the file, by the number of the class."""
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def hole(role: str, text: str) -> str:
    """Mark a piece of text that may differ between classes that are otherwise the same.

    >>> filled(f"nn.Linear({hole('features', '64')}, 10)")
    'nn.Linear(64, 10)'
    """
    return f"{_OPEN}{role}{_IS}{text}{_CLOSE}"


def reference(number: int) -> str:
    """Return a reference: a mark for the call that makes a module of the class of this number."""
    return f"\ue003{number}\ue004"


def filled(text: str) -> str:
    """Replace each hole by the text in it."""
    return HOLE.sub(r"\2", text)


def indented(lines: list[str], by: int = 4) -> list[str]:
    """Indent lines; empty ones stay empty."""
    return [f"{' ' * by}{line}" if line else "" for line in lines]


_INSIDE = re.compile(r"self\.primary(?:\.\w+|\[\d+\])*\[\d+\](?=\.)")
"""Pattern of a module that is an item of a list, where a dot follows."""


def abbreviated(lines: list[str]) -> list[str]:
    """Name a block, where several lines in a row reach into the same one.

    >>> abbreviated([f"x = self.primary.layers[0].{name}(x)" for name in ("conv", "norm", "relu")])[:2]
    ['block = self.primary.layers[0]', 'x = block.conv(x)']
    """
    shortened: list[str] = []
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
            shortened.append(lines[start])
            start += 1
            continue
        indent = " " * (len(lines[start]) - len(lines[start].lstrip()))
        shortened.append(f"{indent}block = {match.group()}")
        shortened += [_INSIDE.sub("block", line) for line in lines[start:stop]]
        start = stop
    return shortened


def branched(training: list[str], inference: list[str]) -> list[str]:
    r"""Merge the lines of a function in train and in eval mode; lines that differ stand under ``if self.training``.

    >>> print("\n".join(branched(["x = F.relu(x)", "x = drop(x)", "return x"], ["x = F.relu(x)", "return x"])))
    x = F.relu(x)
    if self.training:
        x = drop(x)
    return x
    """
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
    """Merge two lines that are equal or differ in a training flag alone; None if they differ otherwise."""
    if training == inference:
        return training
    merged = re.sub(r"\btraining=True\b", "training=self.training", training)
    return merged if merged == re.sub(r"\btraining=False\b", "training=self.training", inference) else None


def folded(line: str) -> list[str]:
    """Break a line of code that is too long inside its outermost brackets."""
    if len(line) <= WIDTH:
        return [line]
    indent = len(line) - len(line.lstrip())
    if line.lstrip().startswith("#"):
        return _comment(line, indent)
    brackets = _outermost(line)
    if brackets is None:
        return [line]
    start, stop = brackets
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
    """Put each part on a line of its own if one is long, named or a call; else as many on a line as fit."""
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
    """Return where the widest pair of outermost brackets opens and closes; None if a line has none."""
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
    """Split text at commas and between adjacent strings, outside of brackets; commas stay with the part before them."""
    parts: list[str] = []
    start = depth = 0
    for i, character in _code(text):
        depth += (character in _BRACKETS) - (character in _BRACKETS.values())
        between = character == " " and text[i - 1] == '"' and text[i + 1 : i + 2] == '"'
        if not depth and (character == "," or between):
            parts.append(text[start : i + 1].strip())
            start = i + 1
    last = text[start:].strip()
    generator = re.search(r"\bfor\b", text) is not None
    return [*parts, last if generator or not parts or not parts[-1].endswith(",") else f"{last},"] if last else parts


def _code(text: str) -> list[tuple[int, str]]:
    """List the characters outside of strings, with their positions."""
    outside, quote, i = [], "", 0
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
            outside.append((i, character))
        i += 1
    return outside
