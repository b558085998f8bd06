"""Collect the classes of a generated file; alike ones become one class, with arguments for what differs.

The 49 norms with activations of an EfficientNet, for example, become two classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from localize.export.python.templates import HOLE, REFERENCE, filled, folded, hole, indented, reference
from localize.export.python.values import RESERVED, identifier


@dataclass(frozen=True, slots=True)
class Definition:
    """A class before alike ones are merged. Its lines may have holes, and refer to other classes."""

    name: str
    """Wanted name; a number is added if it is taken."""
    doc: str
    """Docstring of one line, without quotes and backslashes."""
    init: tuple[str, ...]
    """Lines of ``__init__`` after ``super().__init__()``."""
    methods: tuple[str, ...] = ()
    """Lines of the methods; empty for a function, which returns the only line of ``init``."""

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines of the class that may have holes or references."""
        return (*self.init, self.doc, *self.methods)


class Classes:
    """Collects classes, and writes them when all are known."""

    def __init__(self) -> None:
        self.definitions: list[Definition] = []
        self.calls: dict[int, str] = {}
        """Call that replaces the reference to each class, with holes for its arguments."""
        self.taken: set[str] = set()
        """Names that are used or reserved."""
        self.texts: list[str] = []
        """Source of each class."""

    def add(self, definition: Definition) -> str:
        """Add a class; return a reference to the call that makes a module of it."""
        self.definitions.append(definition)
        return reference(len(self.definitions) - 1)

    def reserve(self, *names: str) -> None:
        """Reserve names that no class may get."""
        self.taken.update(names)

    def resolved(self, text: str) -> str:
        """Replace references by calls."""
        return REFERENCE.sub(lambda match: self.calls[int(match.group(1))], text)

    def write(self) -> list[str]:
        """Return the source of all classes, in an order in which each comes after those that it uses."""
        # Classes that hold no other class have height 1. Alike ones are merged height by height: whether two classes
        # are alike depends on the calls of the classes in them.
        for height in sorted(set(self._heights())):
            groups: dict[tuple[str, ...], list[int]] = {}
            for number, own in enumerate(self._heights()):
                if own == height:
                    skeleton = tuple(HOLE.sub(hole("", ""), self.resolved(t)) for t in self.definitions[number].lines)
                    groups.setdefault(skeleton, []).append(number)
            for numbers in groups.values():
                text = self._merge(numbers)
                self.texts += [text] if text else []
        return self.texts

    def _heights(self) -> list[int]:
        """Return the height of each class: one more than the greatest height of a class in it."""
        heights: list[int] = []
        for definition in self.definitions:
            inner = [int(m.group(1)) for line in definition.lines for m in REFERENCE.finditer(line)]
            heights.append(1 + max((heights[number] for number in inner), default=0))
        return heights

    def _merge(self, numbers: list[int]) -> str:
        """Write one class for several that differ in their holes alone."""
        first = self.definitions[numbers[0]]
        tables = [[m for line in self._lines(n) for m in HOLE.finditer(line)] for n in numbers]
        # A column holds the texts of one hole in all the classes. Equal columns share an argument.
        columns = [tuple(match.group(2) for match in column) for column in zip(*tables, strict=True)]
        names: dict[tuple[str, ...], str] = {}
        for column, match in zip(columns, tables[0], strict=True):
            if len(set(column)) > 1 and column not in names:
                names[column] = _argument(match.group(1), names.values())
        if not first.methods and len(numbers) == 1:
            # One call is shorter than a function.
            self.calls[numbers[0]] = self.resolved(first.init[0])
            return ""
        name = self._name(first.name) if first.methods else self._free(first.name)
        for i, number in enumerate(numbers):
            given = ", ".join(f"{role}={hole(role, column[i])}" for column, role in names.items())
            self.calls[number] = f"{name}({given})"
        return self._source(name, first, list(names.values()), iter(columns), names)

    def _lines(self, number: int) -> list[str]:
        return [self.resolved(line) for line in self.definitions[number].lines]

    def _name(self, wanted: str) -> str:
        parts = identifier(wanted, "Module").split("_")
        return self._free("".join(f"_{part}" if part[0].isdigit() else part[0].upper() + part[1:] for part in parts))

    def _free(self, base: str) -> str:
        name, count = base, 1
        while name in self.taken or name in RESERVED:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name

    def _source(
        self,
        name: str,
        definition: Definition,
        arguments: list[str],
        columns: Iterator[tuple[str, ...]],
        names: dict[tuple[str, ...], str],
    ) -> str:
        kept: set[str] = set()

        def put(line: str, own: str) -> str:
            def one(match: object) -> str:
                column = next(columns)
                if column in names:
                    if own:
                        kept.add(names[column])
                    return own + names[column]
                return column[0]

            return HOLE.sub(one, self.resolved(line))

        init = [put(line, "") for line in definition.init]
        methods = [put(line, "self.") for line in definition.methods]
        init += [f"self.{argument} = {argument}" for argument in arguments if argument in kept]
        if not definition.methods:
            lines = [f"def {name}({', '.join(arguments)}):", f'    """{definition.doc}"""', f"    return {init[0]}"]
            return "\n".join(more for line in lines for more in folded(line)) + "\n"
        lines = [f"class {name}(nn.Module):", f'    """{definition.doc}"""', ""]
        if init:
            head = ", ".join(["self", *arguments])
            lines += [f"    def __init__({head}):", "        super().__init__()", *indented(init, 8), ""]
        lines += indented(methods)
        return "\n".join(more for line in lines for more in folded(line)) + "\n"


def _argument(role: str, taken: Collection[str]) -> str:
    base = identifier(role, "value").lower()
    base = f"{base}_" if base in RESERVED else base
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name


def plain(text: str) -> str:
    """Fill the holes of text outside of classes, where nothing becomes an argument."""
    return filled(text)
