"""Regions: the pieces of local modules that are compiled, each at most one block, in a form that equal pieces share.

A deep network repeats few blocks. If it is compiled block by block, compilation costs as much as the number of distinct
blocks. But generated code has its own class and code object for every block, and compiled code belongs to a code
object. So the code of a region is rewritten: modules and tensors become arguments, numbered from 0, and two regions
with the same text share a function. ResNet-110 at d=6 has 300 regions of 15 structures, ResNet-20 has 13 structures.

Parameters of a module that is an argument are inputs of the compiled graph, and its attributes are guarded: after a
change of momentum, or when a layer is frozen, torch compiles again by itself. Hooks are not guarded, so regions with
hooks run uncompiled.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target

from localize.methods.networks.blocks import AuxiliaryBlocks
from localize.methods.networks.local_loss import Supervising, Term
from localize.runtime.local_module import LocalModule
from passes.codegen.generate import PRIMARY
from passes.common.interpreter import Interpreter
from passes.common.layer_kinds import MIXING

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, slots=True)
class Code:
    """Computation of a region, without the modules and tensors that it uses."""

    source: str
    """A Python function ``forward`` of the inputs, followed by ``arguments``."""
    names: tuple[tuple[str, object], ...]
    """Global names in the source, with their values."""
    arguments: tuple[str, ...]
    """Paths, within the region's module, of the modules and tensors that the function takes after the inputs."""
    within: tuple[str, ...]
    """Paths of the modules whose own ``forward`` the source replaces."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A piece that is compiled: calls of ``module`` are answered by compiled code."""

    name: str
    """Place in the network, for messages."""
    module: nn.Module
    code: Code

    def arguments(self) -> list[nn.Module | torch.Tensor]:
        """Return the modules and tensors that the function takes after the inputs; ``.to()`` may have replaced some."""
        return [_at(self.module, path) for path in self.code.arguments]

    def called(self) -> Iterator[nn.Module]:
        """Yield every module that runs in the region."""
        yield from (_at(self.module, path) for path in self.code.within)
        for value in self.arguments():
            if isinstance(value, nn.Module):
                yield from value.modules()


def regions_of(module: LocalModule) -> list[Region]:
    """Return the regions of a local module: of its own code, and of its auxiliary networks. None is inside another."""
    regions = list(_walk(module.stage, f"the code of {module.plan.name}"))
    for role in ("auxiliary", "cascaded"):
        network = getattr(module, role)
        if network is not None:
            regions += _walk(network, f"module_{module.plan.index}.{role}")
    return list({id(region.module): region for region in regions}.values())


def structure(region: Region) -> Hashable:
    """Return a key that is equal for two regions if one compiled artefact serves both.

    Compiled code guards all of it: where the key misses something, torch compiles a second graph under one entry.
    """
    parts: list[Hashable] = []
    for value in region.arguments():
        if isinstance(value, torch.Tensor):
            parts.append(look(value))
            continue
        for path, module in value.named_modules():
            settings = tuple((k, v) for k, v in sorted(module.__dict__.items()) if k[0] != "_" and _is_plain(v))
            tensors = {**module._parameters, **module._buffers}
            parts.append((path, type(module), settings, *((k, t is not None and look(t)) for k, t in tensors.items())))
    return (region.code.source, region.code.names, tuple(parts))


def look(value: torch.Tensor) -> Hashable:
    """Return the properties of a tensor that compiled code is specialized on."""
    return (tuple(value.shape), value.stride(), value.dtype, value.device, value.requires_grad)


def write(module: nn.Module) -> Code:
    """Return the code of a module, in a form that equal modules share."""
    return _RegionWriter().write(module)


def _walk(module: nn.Module, name: str) -> Iterator[Region]:
    if isinstance(module, fx.GraphModule):
        blocks = [path for path in _called(module) if _is_block(module.get_submodule(path))]
        if len(blocks) > 1 or any(_is_divided(module.get_submodule(path)) for path in blocks):
            for path in blocks:
                yield from _walk(module.get_submodule(path), path)
            return
    elif _is_divided(module):
        for child, part in module.named_children():
            yield from _walk(part, f"{name}.{child}".removeprefix(f"{PRIMARY}."))
        return
    elif not module._modules and type(module).__module__.startswith("torch.nn."):
        return  # one operation
    yield Region(name, module, write(module))


def _called(code: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in code.graph.nodes if node.op == "call_module"]


def _is_divided(module: nn.Module) -> bool:
    """Return whether the parts of a module are regions: it is several blocks, or its own forward does not train it."""
    if isinstance(module, fx.GraphModule):
        return sum(_is_block(module.get_submodule(path)) for path in _called(module)) > 1
    if isinstance(module, (Supervising, Term)):
        return True
    if not _is_sequence(module) and any(isinstance(part, fx.GraphModule) for part in module.modules()):
        return True
    lists = (part for part in module.modules() if isinstance(part, _LISTS))
    return any(sum(map(_is_block, part.children())) > 1 for part in lists)


def _is_sequence(module: nn.Module) -> bool:
    """Return whether a module only runs its parts one after the other."""
    return type(module) is nn.Sequential or (type(module) is AuxiliaryBlocks and not module.recomputes)


def _is_block(module: nn.Module) -> bool:
    """Return whether a module is at least a building block: two or more layers that mix channels."""
    if isinstance(module, fx.GraphModule):
        return sum(isinstance(module.get_submodule(path), MIXING) or _is_block(module.get_submodule(path))
                   for path in _called(module)) > 0  # fmt: skip
    return sum(isinstance(part, MIXING) for part in module.modules()) > 1


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _at(module: nn.Module, path: str) -> Any:
    """Return the module or tensor at a path; the module itself for an empty one."""
    value: Any = module
    for name in path.split(".") if path else ():
        value = getattr(value, name)
    return value


class _RegionWriter:
    """Writes the code of a region: what is known inside line by line, other modules as calls, with numbered names."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.within: list[str] = []

    def write(self, module: nn.Module) -> Code:
        if isinstance(module, fx.GraphModule) or _is_sequence(module):
            count = 1
            if isinstance(module, fx.GraphModule):
                count = sum(node.op == "placeholder" for node in module.graph.nodes)
            inputs = [self.graph.placeholder(f"x{i}") for i in range(count)]
            self.graph.output(cast(fx.Node, self._call(module, "", tuple(inputs), {})))
            written = self.graph.python_code("self")
            source = written.src.replace("(self, ", "(", 1)
            names = tuple(sorted(written.globals.items()))
            return Code(source, names, tuple(self.values), tuple(self.within))
        # Keyword arguments may follow the inputs, so the module is passed as the last positional argument.
        source = "def forward(*inputs, **named):\n    return inputs[-1].forward(*inputs[:-1], **named)\n"
        return Code(source, (), ("",), ())

    def _call(self, module: nn.Module, path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        if isinstance(module, fx.GraphModule) and not kwargs:
            self.within.append(path)
            return self._inline(module, path, args)
        if _is_sequence(module) and not kwargs:
            self.within.append(path)
            (value,) = args
            for name, child in module.named_children():
                value = self._call(child, _join(path, name), (value,), {})
            return value
        return self._create("call_method", "forward", (self._held(path), *args), kwargs)

    def _inline(self, module: fx.GraphModule, path: str, args: tuple[object, ...]) -> object:
        return _Inliner(self, module, path).run(module.graph, *args)

    def _create(self, op: str, target: Target, args: tuple[object, ...], kwargs: dict[str, object]) -> fx.Node:
        operands, named = cast(tuple[Argument, ...], args), cast(dict[str, Argument], kwargs)
        return self.graph.create_node(op, target, operands, named, f"v{len(self.graph.nodes)}")

    def _held(self, path: str) -> fx.Node:
        if path not in self.values:
            self.values[path] = self.graph.placeholder(f"m{len(self.values)}")
        return self.values[path]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


class _Inliner(Interpreter):
    """Writes the nodes of a graph into another one: values are nodes."""

    def __init__(self, writer: _RegionWriter, module: fx.GraphModule, path: str) -> None:
        super().__init__(module)
        self.writer, self.path = writer, path

    def get_attr(self, node: fx.Node) -> fx.Node:
        """Write the use of a tensor."""
        return self.writer._held(_join(self.path, str(node.target)))

    def call_module(self, node: fx.Node, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Write the call of a module."""
        target = str(node.target)
        return self.writer._call(self.root.get_submodule(target), _join(self.path, target), args, kwargs)

    def call(self, node: fx.Node, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Write the call of a function or method."""
        return self.writer._create(node.op, node.target, args, kwargs)
