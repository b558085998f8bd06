"""Collect the functions and classes of this project that a generated file needs: their source, without annotations."""

from __future__ import annotations

import ast
import builtins
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from localize.export.python.values import value_text
from localize.methods.networks.local_loss import Batch, supervise
from passes.common.fake_tensors import has_values
from passes.errors import InputError

_GIVEN = {"torch": torch, "nn": nn, "F": nn.functional}
"""Names that every generated file imports."""
_BATCH = '''\
class Batch(NamedTuple):
    """What a local loss is computed from, beside features."""

    x: torch.Tensor
    y: Any
    criterion: Callable[[Any, Any], torch.Tensor]
    name: str

    def loss(self, logits: Any) -> torch.Tensor:
        """The criterion, a scalar."""
        return self.criterion(logits, self.y)
'''
_SUPERVISE = '''\
def supervise(network, batch, *features):
    """Prediction and local loss of an auxiliary network; the loss is the criterion unless it says otherwise."""
    if hasattr(network, "supervise"):
        return network.supervise(batch, *features)
    logits = network(*features)
    return logits, batch.loss(logits)
'''
_ERROR = '''\
class InputError(ValueError):
    """What is wrong with the batch, where, why, and what to do."""

    def __init__(self, what, *, where="", why="", remedy=""):
        super().__init__(f"{what} (in {where}): {why}. {remedy}")
'''
_VALUES = '''\
def has_values(tensor):
    """Whether a tensor holds numbers: not on the meta device, and not where it is a fake one."""
    return not tensor.is_meta and type(tensor) is torch.Tensor
'''
_INSTEAD: dict[object, str] = {Batch: _BATCH, supervise: _SUPERVISE, InputError: _ERROR, has_values: _VALUES}
"""Short replacements for code whose own source would need too many other files."""


def is_ours(what: Any) -> bool:
    """Return whether a class or function belongs to this project."""
    return str(what.__module__).partition(".")[0] in ("localize", "passes")


class SupportCode:
    """Functions, classes and imports of a generated file besides its modules, each once, in the order of need."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.imports: set[str] = set()
        self._names: dict[str, Any] = {}

    def add(self, name: str, source: str) -> None:
        """Add a function or class of this name, unless it is there."""
        self.sources.setdefault(name, source)

    def need(self, what: Any) -> str:
        """Add a function or class of this project with everything that it needs, and return its name."""
        name: str = what.__name__
        known = self._names.setdefault(name, what)
        assert known is what, f"two things of ours are called {name}"
        if name not in self.sources:
            if what in _INSTEAD:
                if what is Batch:
                    self.imports |= {"from collections.abc import Callable", "from typing import Any, NamedTuple"}
                self.sources[name] = _INSTEAD[what]
            else:
                assert is_ours(what), f"{name} is not ours"
                source, tree = stripped(what)
                self._follow(tree, sys.modules[what.__module__].__dict__, {name})
                self.sources[name] = source
        return name

    def methods(self, kind: type[nn.Module], wanted: tuple[str, ...]) -> list[str]:
        """Return the source of methods of a class of this project, and of methods that they call."""
        sources: dict[str, str] = {}
        pending = [name for name in wanted if _method(kind, name) is not None]
        while pending:
            name = pending.pop(0)
            function = _method(kind, name)
            if function is None or name in sources:
                continue
            source, tree = stripped(function)
            self._follow(tree, function.__globals__, set())
            sources[name] = source
            own = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name))
            pending += [n.attr for n in own if n.value.id == "self"]  # type: ignore[attr-defined]
        return list(sources.values())

    def _follow(self, tree: ast.AST, names: dict[str, object], known: set[str]) -> None:
        """Add the globals of its module that a piece of source reads."""
        local = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        stores = (ast.Store, ast.Del)
        local |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, stores)}
        for node in ast.walk(tree):
            name = node.id if isinstance(node, ast.Name) else ""
            if not name or name in local or name in known or name not in names:
                continue
            self._read(name, names[name])

    def _read(self, name: str, value: object) -> None:
        if name in _GIVEN:
            return
        if isinstance(value, ModuleType):
            assert value.__name__ in sys.stdlib_module_names, f"{name} is not in the standard library"
            self.imports.add(f"import {value.__name__}")
        elif isinstance(value, (type, FunctionType)) and is_ours(value):
            self.need(value)
        elif callable(value):
            if getattr(builtins, name, None) is not value:
                assert value.__module__.partition(".")[0] in sys.stdlib_module_names, f"{name} cannot be imported"
                self.imports.add(f"from {value.__module__} import {name}")
        else:
            self.sources.setdefault(name, f"{name} = {value_text(value)}\n")


def _method(kind: type, name: str) -> FunctionType | None:
    """Return a method that this project defines; None if the class has none of this name, or inherits it from torch."""
    method = inspect.getattr_static(kind, name, None)
    return method if isinstance(method, FunctionType) and is_ours(method) else None


def stripped(what: Callable[..., object] | type) -> tuple[str, ast.AST]:
    """Return source and syntax tree without annotations, which name types that the file does not have."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(what)))
    tree = ast.fix_missing_locations(_Bare().visit(tree))
    return _double_quoted(ast.unparse(tree)) + "\n", tree


def _double_quoted(source: str) -> str:
    """Put plain strings into double quotes, as everywhere in the file."""
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        quotes = token.type == tokenize.STRING and token.string[0] == "'" and token.string[-1] == "'"
        if quotes and not {'"', "\\"} & {*token.string} and not token.string.startswith("'''"):
            (row, start), (_, stop) = token.start, token.end
            line = lines[row - 1]
            lines[row - 1] = f'{line[:start]}"{line[start + 1 : stop - 1]}"{line[stop:]}'
    return "\n".join(lines)


class _Bare(ast.NodeTransformer):
    """Removes annotations from source."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Remove annotations of arguments and results."""
        self.generic_visit(node)
        node.returns = None
        arguments = node.args
        for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
            if each is not None:
                each.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        """Remove annotations of variables; a declaration without a value is removed as a whole."""
        if node.value is None:
            return None
        return ast.Assign([node.target], node.value)
