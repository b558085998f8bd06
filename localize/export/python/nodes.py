"""Write fx graphs as lines of Python, one for each node; names tell what a value is, and are used again when free."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.graph import inplace_methods, magic_methods

from localize.export.python.functions import SAME_PATH, STORE, function_name
from localize.export.python.inline import SIZES, dead, inlined, is_size, looks_at_sizes
from localize.export.python.surroundings import Surroundings
from localize.export.python.templates import HOLE, filled, hole
from localize.export.python.values import RESERVED, identifier, value_text
from passes.capture.assertions import assertion
from passes.capture.proxies import set_item, store
from passes.capture.size_decisions import guard
from passes.codegen.eval_mode import training_flag


class Lines:
    """The code of one graph.

    Args:
        graph: The graph.
        surroundings: Names that the code refers to.
        inputs: Names of placeholders in the code, by the name of the node; others get a name from their node.
    """

    def __init__(self, graph: fx.Graph, surroundings: Surroundings, inputs: Mapping[str, str] | None = None) -> None:
        self.surroundings = surroundings
        self.nodes = list(graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.texts: dict[fx.Node, str] = {}
        functions = (n.target for n in self.nodes if n.op == "call_function" and function_name(n.target) is None)
        # The file defines these functions under their own names, so variables must not have them.
        self.functions = {getattr(function, "__name__", "") for function in functions}
        self.dead = dead(self.nodes)
        self.inline = inlined(self.nodes, self.dead)
        self.last = self._last_uses()
        self.taken: dict[str, fx.Node] = {}
        self.lines: list[str] = []
        self.arguments: list[str] = []
        self.result = "None"
        self.results: list[str] = []
        for node in self.nodes:
            if node in self.dead:
                continue
            if node.op == "placeholder":
                name = (inputs or {}).get(node.name) or self._fresh(node)
                self._hold(node, name)
                self.arguments.append(name)
        for node in self.nodes:
            if node.op == "output":
                self.results = [self._text(value) for value in _several(node.args[0])]
                self.result = self._text(node.args[0])
                self.lines.append(f"return {self.result}")
            elif node.op != "placeholder" and node not in self.dead:
                self._write(node)

    @property
    def body(self) -> list[str]:
        """Lines of the body of a function."""
        return [f"    {line}" for line in self.lines]

    def _last_uses(self) -> dict[fx.Node, int]:
        """Return the position of the last line that reads each node's value."""
        # An inlined node is read where the line that holds its expression stands.
        last = {node: i for i, node in enumerate(self.nodes)}
        for node in reversed(self.nodes):
            at = last[node] if node in self.inline else self.position[node]
            for parent in node.all_input_nodes if node not in self.dead else ():
                last[parent] = max(last[parent], at)
        return last

    def _write(self, node: fx.Node) -> None:
        if node in self.inline:
            self.texts[node] = self._expression(node)
            return
        statement = self._statement(node)
        if statement is not None:
            self.lines.append(statement)
            return
        text = self._expression(node)
        if not node.users:
            if node.op != "call_function" or node.target is not getattr:
                self.lines.append(text)
            return
        name = self._name(node)
        first = node.args[0] if node.args else None
        in_place = _in_place(node)
        if in_place and isinstance(first, fx.Node) and self.texts[first] == name:
            self.lines.append(in_place.format(name, *(self._text(value) for value in node.args[1:])))
        elif text != name:
            self.lines.append(f"{name} = {text}")
        self._hold(node, name)

    def _statement(self, node: fx.Node) -> str | None:
        """Write a node as a statement; None for a node that is an expression."""
        if node.target is guard:
            self.surroundings.helper("same_path", SAME_PATH)
            value, ask, expected = (node.args[0], str(node.args[1]), node.args[2])
            asked = "operator.index" if ask == "index" else ask
            return f"same_path({asked}({self._text(value)}), {self._text(expected)})"
        if node.target is torch._assert:
            condition, message = node.args
            # A message that was built from proxies holds no values.
            plain = isinstance(message, str) and "Proxy(" not in message
            return f"assert {self._text(condition)}{f', {self._text(message)}' if plain else ''}"
        if node.target is assertion:
            return f"assert {'' if node.args[1] else 'not '}{self._text(node.args[0])}"
        if node.target is store:
            self.surroundings.helper("store", STORE)
            return f"store({', '.join(self._text(value) for value in node.args)})"
        if node.target is set_item:
            first, index, value = node.args
            tensor = self._text(first)
            # The result is the tensor itself, so both nodes share a variable.
            self.last[node] = max(self.last[node], self.last.get(first, 0))  # type: ignore[arg-type]
            self._hold(node, tensor)
            return f"{tensor}[{self._index(index)}] = {self._text(value)}"
        return None

    def _name(self, node: fx.Node) -> str:
        """Choose a variable for a value: that of its first operand if this is its last use, else a new one."""
        first = node.args[0] if node.args else None
        if isinstance(first, fx.Node) and first not in self.inline and self.last[first] == self.position[node]:
            name = self.texts[first]
            if self.taken.get(name) is first and not looks_at_sizes(node):
                return name
        return self._fresh(node)

    def _fresh(self, node: fx.Node) -> str:
        base = identifier(str(node.target).rpartition(".")[2] if node.op == "call_module" else node.name)
        if re.sub(r"_\d+$", "", base) in self.functions:
            base = "result"
        elif node.target is getattr and node.args[1] in SIZES:
            base = str(node.args[1])
        elif node.target is operator.getitem and is_size(node) and isinstance(node.args[1], int):
            base = f"size_{node.args[1]}".replace("-", "last_")
        base = base.lower() if base.lower() not in RESERVED else f"{base.lower()}_"
        name, count = base, 1
        while name in RESERVED or not self._free(name, node):
            count += 1
            name = f"{base}_{count}"
        return name

    def _free(self, name: str, node: fx.Node) -> bool:
        holder = self.taken.get(name)
        return holder is None or self.last[holder] < self.position[node]

    def _hold(self, node: fx.Node, name: str) -> None:
        self.texts[node] = name
        self.taken[name] = node

    def _text(self, value: object) -> str:
        if isinstance(value, float) and self.surroundings.flag is None:
            # Another module of the same class may have another number here, such as a probability.
            return hole("value", value_text(value))
        return value if isinstance(value, _Raw) else value_text(value, self.texts.__getitem__)

    def _index(self, value: object) -> str:
        """Write an index for between brackets, with slices as colons."""
        if isinstance(value, slice):
            start, stop, step = ("" if part is None else self._text(part) for part in _ends(value))
            return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
        if isinstance(value, tuple) and value:
            return ", ".join(self._index(part) for part in value) + ("," if len(value) == 1 else "")
        return self._text(value)

    def _expression(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            return self.surroundings.attribute(str(node.target))
        if node.op == "call_module":
            own = self.surroundings.arguments(node)
            inner = self._call(node) if own is None else ", ".join(self.texts[n] for n in own)
            return f"{self.surroundings.module(node)}({inner})"
        if node.op == "call_method":
            first, *rest = node.args
            return f"{_atom(self._text(first))}.{node.target}({self._given(rest, node.kwargs)})"
        return self._function(node)

    def _call(self, node: fx.Node) -> str:
        return self._given(node.args, node.kwargs)

    def _given(self, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
        named = [f"{key}={self._named(key, value)}" for key, value in kwargs.items()]
        return ", ".join([*(self._text(value) for value in args), *named])

    def _named(self, name: str, value: object) -> str:
        text = self._text(value)
        return hole(name, filled(text)) if HOLE.fullmatch(text) else text

    def _function(self, node: fx.Node) -> str:
        target: Any = node.target
        if target is getattr and len(node.args) == 2:
            return f"{_atom(self._text(node.args[0]))}.{node.args[1]}"
        if target is operator.getitem:
            return f"{_atom(self._text(node.args[0]))}[{self._index(node.args[1])}]"
        name = getattr(target, "__name__", "")
        if getattr(operator, name, None) is target and name in magic_methods and not node.kwargs:
            return magic_methods[name].format(*(_operand(self._text(value)) for value in node.args))
        args, kwargs = self._switched(node)
        own = function_name(target)
        if own is None:
            own, nodes = self.surroundings.function(node)
            if nodes is not None:
                return f"{own}({', '.join(self.texts[n] for n in nodes)})"
        return f"{own}({self._given(args, kwargs)})"

    def _switched(self, node: fx.Node) -> tuple[list[object], dict[str, object]]:
        """Return the arguments with the training flag in place of its traced value."""
        args: list[object] = [*node.args]
        kwargs: dict[str, object] = {**node.kwargs}
        if self.surroundings.flag is None:
            return args, kwargs
        flag = training_flag(node.target)
        if flag is None:
            return args, kwargs
        name, position = flag
        holder: Any = args if position < len(args) else kwargs
        key: Any = position if position < len(args) else name
        value = args[position] if position < len(args) else kwargs.get(name)
        if name == "dropout_p" and value:
            holder[key] = _Raw(f"{self._text(value)} if {self.surroundings.flag} else 0.0")
        elif name != "dropout_p" and value is not False and (value is not None or _default(node.target, name)):
            holder[key] = _Raw(self.surroundings.flag)
        return args, kwargs


class _Raw(str):
    """Text that is used as an argument as it is."""


def _default(target: Any, name: str) -> object:
    return inspect.signature(target).parameters[name].default


def _several(value: object) -> Sequence[object]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _in_place(node: fx.Node) -> str | None:
    name = getattr(node.target, "__name__", "")
    return inplace_methods.get(name) if getattr(operator, name, None) is node.target else None


def _atom(text: str) -> str:
    """Put a number into brackets where ``.`` or ``[`` follows."""
    return f"({text})" if text[:1] in "-0123456789" else text


def _operand(text: str) -> str:
    """Put a negative number into brackets where it is an operand."""
    return f"({text})" if text.startswith("-") else text


def _ends(value: slice) -> tuple[object, object, object]:
    return value.start, value.stop, value.step
