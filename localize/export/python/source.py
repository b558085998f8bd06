"""Write a localized model as Python source that imports torch alone, and rebuilds the same network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from localize.export.python.classes import Definition, plain
from localize.export.python.copy_updates import pull_lines
from localize.export.python.criteria import WrittenCriteria, criteria_of
from localize.export.python.header import header
from localize.export.python.modules import Modules
from localize.export.python.opened_code import CallSite
from localize.export.python.recorded_calls import recorded_calls
from localize.export.python.steps import Steps
from localize.export.python.support_code import SupportCode
from localize.export.python.templates import folded
from localize.export.python.tree import access, is_name, need_grow, needing
from localize.export.python.values import Unwritable, quoted, tensor_text
from localize.export.request import Request
from localize.runtime.exporting import ExportError
from localize.runtime.local_graph import LocalGraphModule
from passes.common.restore import is_hook_table
from passes.errors import first_line

_FREEZE = '''\
def freeze(root, names):
    """Marks parameters that are not trained."""
    for name in names:
        root.get_parameter(name).requires_grad_(False)
'''


def write_python(request: Request) -> bytes:
    """Write a file with a class ``Localized``: state_dict, losses and gradients are those of the localized model.

    Raises:
        ExportError: A module, operation or constant cannot be written; the error names it.
    """
    local = request.local
    _require_plain(local)
    support = SupportCode()
    criteria = criteria_of(local, support)
    with recorded_calls(local) as calls:
        modules = Modules(calls, support)
        try:
            body = _body(local, modules, criteria)
        except Unwritable as error:
            raise ExportError(
                f"the network holds {error}, which cannot be written as Python source",
                where=local.plan.model,
                remedy="Compute it by functions of torch, or inside of a submodule",
            ) from error
        text = _file(local, modules, criteria, body)
    try:
        compile(text, "localized.py", "exec")
    except SyntaxError as error:
        raise AssertionError(f"line {error.lineno} of the generated file: {first_line(error)}") from error
    return text.encode("ascii")


def _require_plain(local: LocalGraphModule) -> None:
    """Check that the model has no hooks, which would be lost, and parameters of one dtype.

    Raises:
        ExportError: A module has a hook, or floating-point parameters have several dtypes.
    """
    for path, module in local.named_modules():
        for name, table in module.__dict__.items():
            if not is_hook_table(name) or "backward" in name or name.endswith(("_with_kwargs", "_always_called")):
                continue
            if any("is_harmless" not in getattr(hook, "__dict__", {}) for hook in table.values()):
                raise ExportError(
                    f"the {type(module).__name__} has a hook, which cannot be written as Python source",
                    where=path.removeprefix("primary."),
                    remedy="Remove the hook before exporting; weight norm by torch.nn.utils.remove_weight_norm",
                )
    types = {p.dtype for p in local.parameters() if p.is_floating_point()}
    if len(types) > 1:
        raise ExportError(
            f"parameters are of several types: {', '.join(sorted(map(str, types)))}",
            remedy="Bring the model to one of them before localize(): model.to(torch.float32)",
        )


def _body(local: LocalGraphModule, modules: Modules, criteria: WrittenCriteria) -> list[str]:
    """Write the lines of the class ``Localized``, which may have references and holes."""
    context = local.compiled.context
    captured = context.network.captured
    sites: dict[str, CallSite] = {}
    for node in captured.nodes:
        if node.op == "call_module":
            sites.setdefault(str(node.target), modules.calls.site(node))
    need_grow(modules.support)
    primary = modules.below(captured.model, "", "", sites, {})
    lines = [
        f"def __init__(self{criteria.arguments}):",
        "    super().__init__()",
        "    self.primary = primary()",
        *[f"    {line}" for line in _networks(local, modules)],
    ]
    constants = {}
    for i, (name, tensor) in enumerate(captured.constants.items()):
        text = needing(tensor_text(modules.calls.holding(tensor), f"made by the forward ({name})"), modules.support)
        lines.append(f'    self.register_buffer("constant_{i}", {text}, persistent=False)')
        constants[name] = f"self.constant_{i}"
    lines += [f"    {line}" for line in (*criteria.lines, *_ties(local), *_last(local, modules.support))]
    steps = Steps(local, modules, constants)
    members = [*lines, "", *steps.write(), *pull_lines(local)]
    inner = [f"{quoted(path)}: {text}" for path, text in primary.items()]
    modules.classes.reserve("Localized", *modules.support.sources)
    return [
        "def primary():",
        '    """Layers of the primary network, by name."""',
        *_grown(inner, captured.model),
        "",
        "",
        *_class(members),
    ]


def _grown(inner: Sequence[str], model: nn.Module) -> list[str]:
    listed = next(iter(model._modules), "").isdecimal()
    return [
        "    return grow(",
        f"        nn.{'ModuleList' if listed else 'Module'}(),",
        "        {",
        *[f"            {line}," for line in inner],
        "        },",
        "    )",
    ]


def _class(lines: Sequence[str]) -> list[str]:
    doc = '"""The primary network, cut in local modules, with their auxiliary networks."""'
    return ["class Localized(nn.Module):", f"    {doc}", "", *[f"    {line}" if line else "" for line in lines]]


def _networks(local: LocalGraphModule, modules: Modules) -> Iterator[str]:
    """Write the lines that make auxiliary networks."""
    for module in local.local_modules:
        k = module.plan.index
        networks = {"auxiliary": module.auxiliary, "cascaded": module.cascaded}
        present = {name: network for name, network in networks.items() if network is not None}
        if present:
            yield f"self.module_{k} = nn.Module()"
        for name, network in present.items():
            text = modules.text(network, f"module_{k}.{name}")
            made = Definition(f"{name}_network", f"An {name} network.", (text,))
            yield f"self.module_{k}.{name} = {modules.classes.add(made)}"


def _ties(local: LocalGraphModule) -> Iterator[str]:
    """Write the lines that tie parameters which are one tensor in the model."""
    modules: set[int] = set()
    first: dict[int, str] = {}
    for path, module in local.named_modules(remove_duplicate=False):
        if id(module) in modules:
            continue
        modules.add(id(module))
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{path}.{name}".strip(".")
            known = first.setdefault(id(parameter), full)
            if known != full:
                owner = access("self", path, local)
                value = access("self", known, local)
                yield f"{owner}.{name} = {value}" if is_name(name) else f"setattr({owner}, {quoted(name)}, {value})"


def _last(local: LocalGraphModule, support: SupportCode) -> Iterator[str]:
    """Write the last lines of ``__init__``: the dtype, and parameters that are not trained."""
    dtype: Any = next((p.dtype for p in local.parameters() if p.is_floating_point()), torch.float32)
    if dtype is not torch.float32:
        yield f"self.to({dtype})"
    frozen = [name for name, p in local.named_parameters() if not p.requires_grad]
    if frozen:
        support.add("freeze", _FREEZE)
        yield f"freeze(self, [{', '.join(map(quoted, frozen))}])"


def _file(local: LocalGraphModule, modules: Modules, criteria: WrittenCriteria, body: Sequence[str]) -> str:
    classes = modules.classes.write()
    own = [more for line in body for more in folded(plain(modules.classes.resolved(line)))]
    from_, plain_ = (
        sorted(line for line in modules.support.imports if line.startswith(kind)) for kind in ("from", "import")
    )
    sources = [
        "\n".join(more for line in source.rstrip().split("\n") for more in folded(line)) + "\n"
        for source in modules.support.sources.values()
    ]
    imports = [*plain_, *from_, "", "import torch", "import torch.nn.functional as F", "from torch import nn"]
    needed = "\n".join([*sources, *classes, *own])
    for name in ("math", "operator"):
        if f"{name}." in needed and f"import {name}" not in imports:
            imports.insert(0, f"import {name}")
    head = [header(local, criteria.call), "from __future__ import annotations", "", *imports]
    return "\n".join([*head, "", "", "\n\n".join([*sources, *classes, "\n".join(own)])]) + "\n"
