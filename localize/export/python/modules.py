"""Write modules as expressions: those of torch as constructor calls, containers as such, others as classes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import fx, nn

from localize.export.python.classes import Classes, Definition
from localize.export.python.foreign_modules import ForeignModules
from localize.export.python.layers import layer_text
from localize.export.python.nodes import Lines
from localize.export.python.opened_code import CallSite, Given
from localize.export.python.recorded_calls import RecordedCalls
from localize.export.python.support_code import SupportCode, is_ours
from localize.export.python.surroundings import Surroundings
from localize.export.python.templates import hole
from localize.export.python.tree import buffer_text, held, need_grow, ordered, own_tensors, parameter_text
from localize.export.python.values import quoted, value_text, words
from localize.methods.networks.blocks import AuxiliaryBlocks
from passes.common.interpreter import Interpreter, arguments_of

Sites = Mapping[str, CallSite]
"""One call of each module that a graph calls, by the path of the module."""


class Modules:
    """Writes the modules of one file.

    Args:
        calls: Arguments of the calls of modules.
        support: Collects functions of the file and sources of this project.
    """

    def __init__(self, calls: RecordedCalls, support: SupportCode) -> None:
        self.calls, self.support = calls, support
        self.classes = Classes()
        self.foreign = ForeignModules(self)

    def text(self, module: nn.Module, where: str, site: CallSite | None = None) -> str:
        """Write an expression that makes a module like this one, apart from its weights.

        Args:
            module: The module.
            where: Name of the module, for errors.
            site: A call of the module; None for a module that is called with one tensor.

        Raises:
            ExportError: The module is neither of torch.nn nor of this project, and its code cannot be traced.
        """
        if type(module) in (nn.Sequential, AuxiliaryBlocks):
            return self._sequence(module, where)
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return self._container(module, where)
        if isinstance(module, fx.GraphModule):
            return self.classes.add(self._of_graph(module, where))
        if is_ours(type(module)):
            return self.classes.add(self._of_ours(module, where))
        return layer_text(module) or self.foreign.text(module, where, site)

    def _sequence(self, module: nn.Module, where: str) -> str:
        inner = self._inner(module, where)
        if [*inner] == [str(i) for i in range(len(inner))]:
            return f"nn.Sequential({', '.join(inner.values())})"
        self.support.imports.add("from collections import OrderedDict")
        return f"nn.Sequential({ordered(inner)})"

    def _container(self, module: nn.Module, where: str) -> str:
        inner = self._inner(module, where)
        if isinstance(module, nn.ModuleList):
            return f"nn.ModuleList([{', '.join(inner.values())}])"
        return f"nn.ModuleDict({{{', '.join(f'{quoted(name)}: {text}' for name, text in inner.items())}}})"

    def _inner(self, module: nn.Module, where: str) -> dict[str, str]:
        parts = ((name, part) for name, part in module._modules.items() if part is not None)
        return {name: self.text(part, f"{where}.{name}") for name, part in parts}

    def init(self, module: nn.Module, where: str, sites: Sites) -> list[str]:
        """Write the lines of ``__init__`` that make the contents of a module.

        These are its own tensors, and the modules in it that are called or hold tensors.

        Args:
            module: The module.
            where: Name of the module, for errors.
            sites: Calls of modules in it.
        """
        lines = list(own_tensors(module, where, self.calls.holding, self.support))
        nested: dict[str, str] = {}
        for name, part in module._modules.items():
            if part is None:
                continue
            texts = self._child(part, name, where, sites, {})
            if [*texts] == [name]:
                lines.append(held(name, texts[name]))
            else:
                nested.update(texts)
        if nested:
            need_grow(self.support)
            lines.append(f"grow(self, {{{', '.join(f'{quoted(path)}: {text}' for path, text in nested.items())}}})")
        return lines

    def below(self, module: nn.Module, path: str, where: str, sites: Sites, known: dict[int, str]) -> dict[str, str]:
        """Write the contents of a module whose operations stand in the graph itself, instead of a call of the module.

        Args:
            module: The module.
            path: Path of the module below the root; empty for the root.
            where: Name of the root, for errors.
            sites: Calls of modules below the root.
            known: Paths of modules that were written before, by identity. New ones are added.

        Returns:
            Expressions for the contents, by path below the root.
        """
        texts: dict[str, str] = {}
        prefix = f"{path}." if path else ""
        for name, tensor in module._parameters.items():
            if tensor is not None:
                texts[prefix + name] = parameter_text(tensor)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                persistent = name not in module._non_persistent_buffers_set
                text = buffer_text(self.calls.holding(buffer), f"{where}.{prefix}{name}", persistent, self.support)
                texts[prefix + name] = text if persistent else f"({text},)"
        for name, part in module._modules.items():
            if part is not None:
                texts.update(self._child(part, prefix + name, where, sites, known))
        return texts

    def _child(self, part: nn.Module, path: str, where: str, sites: Sites, known: dict[int, str]) -> dict[str, str]:
        within = any(other.startswith(f"{path}.") for other in sites)
        holds = next(part.parameters(), None) is not None or next(part.buffers(), None) is not None
        if path not in sites and not within and not holds:
            return {}
        if id(part) in known:
            return {path: quoted(known[id(part)])}
        known[id(part)] = path
        if path in sites:
            return {path: self.text(part, f"{where}.{path}".strip("."), sites[path])}
        text = layer_text(part) if not within else None
        return {path: text} if text else self.below(part, path, where, sites, known)

    # Graphs of our own making -----------------------------------------------------------------------------------------

    def _of_graph(self, module: fx.GraphModule, where: str) -> Definition:
        sites: dict[str, CallSite] = {}
        for node in module.graph.nodes:
            if node.op == "call_module":
                sites.setdefault(str(node.target), self._first_call(module.get_submodule(str(node.target)), node))
        init = self.init(module, where, sites)
        lines = Lines(
            module.graph, Surroundings(self.support, self.foreign, module, "self.training", self._sites(module))
        )
        name = type(module).__name__
        head = f"def forward({', '.join(['self', *lines.arguments])}):"
        doc = words(f"A copy of {name.removeprefix('Block_')}.")
        return Definition(name, doc, tuple(init), (head, *lines.body))

    def _first_call(self, module: nn.Module, node: fx.Node) -> CallSite:
        return CallSite((node.args, node.kwargs), lambda: self.calls.given(module))

    def _sites(self, module: fx.GraphModule) -> Callable[[fx.Node], CallSite]:
        """Return a function from a node to its call, with values: the graph runs once, when the first are needed."""
        values: dict[str, Any] = {}

        def given(node: fx.Node) -> Given:
            if not values:
                values.update(Interpreter(module).run_all(module.graph, *self.calls.given(module)[0]))
            return arguments_of(node, lambda n: values[n.name])

        return lambda node: CallSite((node.args, node.kwargs), lambda: given(node))

    # Our own classes --------------------------------------------------------------------------------------------------

    def _of_ours(self, module: nn.Module, where: str) -> Definition:
        kind = type(module)
        methods: list[str] = []
        for source in self.support.methods(kind, ("forward", "supervise")):
            methods += [*source.rstrip().split("\n"), ""]
        used = {match for line in methods for match in re.findall(r"self\.(\w+)", line)}
        init = []
        for name, value in module.__dict__.items():
            if name in used and name != "training":
                # `checked` says whether a batch was checked, which is not part of the network.
                text = "False" if name == "checked" else value_text(self._plain(value))
                init.append(f"self.{name} = {hole(name, text)}")
        init += own_tensors(module, where, self.calls.holding, self.support)
        init += [held(name, text) for name, text in self._inner(module, where).items()]
        doc = (kind.__doc__ or kind.__name__).strip().split("\n")[0]
        return Definition(kind.__name__, doc, tuple(init), tuple(methods[:-1]))

    def _plain(self, value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            self.support.imports.add("from types import SimpleNamespace")
            return SimpleNamespace(**{f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
        return value
