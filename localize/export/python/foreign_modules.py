"""Write modules and functions of other libraries: as layers of torch if equal to one, else operation by operation.

A class of another library is written without its source. Traced in train mode and in eval mode, it gives the two
branches of ``if self.training``. The arguments of a call are needed only where branches of the code depend on sizes;
stochastic depth, for one, asks for the rank. A subclass such as timm's of ``nn.Linear`` gives the same graphs as the
class of torch, and is written as that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx, nn

from localize.export.python.classes import Classes, Definition
from localize.export.python.layers import layer_text
from localize.export.python.nodes import Lines
from localize.export.python.opened_code import CallSite, OpenedCode, open_code
from localize.export.python.recorded_calls import RecordedCalls
from localize.export.python.support_code import SupportCode
from localize.export.python.surroundings import Surroundings
from localize.export.python.templates import branched, filled, indented
from localize.export.python.tree import needing
from localize.export.python.values import Unwritable, tensor_text, words
from localize.runtime.exporting import ExportError
from passes.common.restore import set_mode
from passes.errors import first_line


class Writer(Protocol):
    """Writes the contents of modules; see :class:`localize.export.python.modules.Modules`."""

    calls: RecordedCalls
    support: SupportCode
    classes: Classes

    def init(self, module: nn.Module, where: str, sites: Mapping[str, CallSite]) -> list[str]:
        """Write the lines that make the contents of a module."""


class ForeignModules:
    """Writes modules and functions of other libraries.

    Attributes:
        inputs: Number of values that each opened module is called with, by the identity of the module.
    """

    def __init__(self, modules: Writer) -> None:
        self.modules = modules
        self.inputs: dict[int, int] = {}

    def text(self, module: nn.Module, where: str, site: CallSite | None) -> str:
        """Write an expression that makes a module of another library.

        Args:
            module: The module.
            where: Name of the module, for errors.
            site: A call of the module; None for a module that is called with one tensor.

        Raises:
            ExportError: The code of the module cannot be traced.
        """
        if site is None:
            site = CallSite(((torch.empty(0),), {}), lambda: self.modules.calls.given(module))
        try:
            modes = _in_both_modes(module, site)
            text = self._as_torch(module, modes, site)
            if text is None:
                self.inputs[id(module)] = len(site.nodes)
                text = self.modules.classes.add(self._definition(module, where, modes))
        except ExportError:
            raise
        except Exception as error:
            raise refusal(module, where, first_line(error)) from error
        return text

    def _as_torch(self, module: nn.Module, modes: Sequence[OpenedCode], site: CallSite) -> str | None:
        """Write a subclass of a torch layer as that layer if both compute the same in both modes; else return None."""
        for base in type(module).__mro__[1:]:
            if base is nn.Module or not base.__module__.startswith("torch.nn.modules."):
                continue
            twin: nn.Module = object.__new__(base)
            twin.__dict__.update(module.__dict__)
            text = layer_text(twin)
            if text is None:
                continue
            try:
                same = [_code(mode) for mode in _in_both_modes(twin, site)] == [_code(mode) for mode in modes]
            except Exception:
                same = False
            return text if same else None
        return None

    def _definition(self, module: nn.Module, where: str, modes: Sequence[OpenedCode]) -> Definition:
        sites: dict[str, CallSite] = {}
        own: dict[str, str] = {}
        tables: list[str] = []
        for mode in modes:
            for node in mode.graph.nodes:
                if node.op == "call_module":
                    sites.setdefault(str(node.target), mode.site(node))
            for name, tensor in mode.constants.items():
                text = needing(tensor_text(self.modules.calls.holding(tensor), f"{where}.{name}"), self.modules.support)
                line = f'self.register_buffer("{name.strip("_")}", {text}, persistent=False)'
                assert name not in own or line in tables, "constants differ between modes"
                own[name] = f"self.{name.strip('_')}"
                tables += [] if line in tables else [line]
        init = [*self.modules.init(module, where, sites), *tables]
        training, inference = (self._lines(module, mode, own) for mode in modes)
        body = indented(branched(training.lines, inference.lines))
        kind = type(module)
        head = f"def forward({', '.join(['self', *training.arguments])}):"
        doc = words(f"What {kind.__module__}.{kind.__qualname__} computes.")
        return Definition(kind.__name__, doc, tuple(init), (head, *body))

    def _lines(self, module: nn.Module, mode: OpenedCode, own: dict[str, str]) -> Lines:
        return Lines(mode.graph, Surroundings(self.modules.support, self, module, None, mode.site, own))

    def function(self, node: fx.Node, site: CallSite) -> tuple[str, list[fx.Node]]:
        """Write out a function, and return its name in the file and the nodes that it is called with.

        Raises:
            Unwritable: The function cannot be traced, or makes tensors of its own.
        """
        target: Any = node.target
        name = target.__name__
        try:
            code = open_code(target, site)
        except Exception as error:
            raise Unwritable(f"the function {name!r}, which cannot be traced ({first_line(error)})") from error
        if code.constants:
            raise Unwritable(f"the function {name!r}, which makes tensors of its own")
        lines = self._lines(nn.Module(), code, {})
        body = filled("\n".join([f'    """{words(f"What {target.__module__}.{name} computes.")}"""', *lines.body]))
        sources, own, count = self.modules.support.sources, name, 1
        while True:
            source = f"def {own}({', '.join(lines.arguments)}):\n{body}\n"
            if sources.setdefault(own, source) == source:
                return own, site.nodes
            count += 1
            own = f"{name}_{count}"


def _in_both_modes(module: nn.Module, site: CallSite) -> list[OpenedCode]:
    """Trace a module in train mode and in eval mode; its training flags are left as they were."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        modes = []
        for training in (True, False):
            set_mode(module, training)
            modes.append(open_code(module, site))
        return modes
    finally:
        for part, flag in flags:
            part.training = flag


def _code(mode: OpenedCode) -> str:
    return str(mode.graph)


def refusal(module: nn.Module, where: str, why: str) -> ExportError:
    """Return the error for a module that cannot be written."""
    kind = type(module)
    return ExportError(
        f"a {kind.__module__}.{kind.__qualname__} cannot be written as Python source",
        where=where,
        why=why,
        remedy="Replace it in the model by a module of torch.nn, or by one whose forward torch.fx can trace",
    )
