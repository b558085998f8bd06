"""Check by one training step that each local loss reaches the parameters it trains, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from localize.runtime.local_graph import LocalGraphModule
from passes.codegen.generate import returned
from passes.common.fake_tensors import device_of, fake_mode, faked

BATCH = 2
"""Samples in the step: batch norm in train mode refuses a single value per channel."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Differences between the plan and the gradients of one training step."""

    violations: tuple[str, ...]
    """Sentences, one for each parameter that a wrong loss reached or that its own loss left out."""
    untrained: tuple[str, ...]
    """The model's trainable parameters that no loss reaches, by their names in the model."""


def fake_step(local: LocalGraphModule) -> Reach:
    """Run one training step on fake tensors, and compare the parameters that get a gradient with the plan.

    The step has :data:`BATCH` samples. Gradients that ``local`` holds are dropped. Its buffers are written to, unless
    they are on the meta device, where there is nothing to write.

    Args:
        local: A localized model, preferably on the meta device; its criterion must take class indices.
    """
    spec = local.plan.input
    device = device_of(local)
    local.train()
    with fake_mode() as mode, faked(local, mode), torch.enable_grad():
        x = torch.empty((BATCH, *spec.shape[1:]), dtype=spec.dtype, device=device)
        predicted = local.plan.prediction
        positions = local.plan.output.shape[2:] if predicted.kind == "other" else predicted.size
        y = torch.zeros((BATCH, *positions), dtype=torch.int64, device=device)
        return reach(local, x, y)


def reach(local: LocalGraphModule, x: torch.Tensor, y: Any) -> Reach:
    """Run one training step on the given batch; see :func:`fake_step`.

    A hook on each parameter tells when a gradient arrives, so the cost does not grow with the number of local modules.
    """
    names = {id(p): name for name, p in local.named_parameters()}
    modules = range(len(local.plan.modules))
    owned = [{id(p) for p in local.parameters_of(k)} for k in modules]
    owner = {id(p): k for k in reversed(modules) for p in local.parameters_of(k)}
    owner |= {id(local.primary.get_parameter(name)): m.index for m in local.plan.modules for name in m.parameters}
    with _arrivals(local) as arrived:
        reached: list[set[int]] = []
        for out in local.steps(x, y):
            out.loss.backward()
            reached.append(set(arrived))
            arrived.clear()
        missing = [(k, key) for k in modules for key in owned[k] - reached[k]]
        idle = _unused(local, x, arrived, {key for _, key in missing}) if missing else set()
    violations = [_leak(local, k, names[key], owner.get(key)) for k in modules for key in reached[k] - owned[k]]
    violations += [
        f"the loss of module {_label(local, k)} does not reach {names[key]}, which "
        + ("it owns" if owner[key] == k else f"module {_label(local, owner[key])} owns, as its cascade is to")
        for k, key in missing
        if key not in idle
    ]
    everywhere = set().union(*reached)
    primary = {name: p for name, p in local.primary.named_parameters() if p.requires_grad}
    untrained = tuple(name for name, p in primary.items() if id(p) not in everywhere)
    return Reach(tuple(sorted(violations)), untrained)


@contextmanager
def _arrivals(module: nn.Module) -> Iterator[list[int]]:
    """Yield a list that grows by the ``id`` of each parameter whose gradient arrives; the gradient is dropped."""
    arrived: list[int] = []

    def note(parameter: torch.Tensor) -> None:
        arrived.append(id(parameter))
        parameter.grad = None

    parameters = [p for p in module.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(note) for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield arrived
    finally:
        for hook in hooks:
            hook.remove()


def _unused(local: LocalGraphModule, x: torch.Tensor, arrived: list[int], missing: set[int]) -> set[int]:
    """Return those of ``missing`` that no loss can train: unused by the model, or copies of unused ones."""
    primary = {id(p): name for name, p in local.primary.named_parameters()}
    unused = missing & primary.keys() - _reached_by_backpropagation(local, x, arrived)
    # Blocks of auxiliary networks call their layers by the names of graph nodes, which have no dots.
    endings = tuple(f"_{primary[key].replace('.', '_')}" for key in unused)
    auxiliary = (
        (id(p), name.replace(".", "_")) for module in local.local_modules for name, p in module.named_parameters()
    )
    return unused | {key for key, name in auxiliary if key in missing and name.endswith(endings)}


def _reached_by_backpropagation(local: LocalGraphModule, x: torch.Tensor, arrived: list[int]) -> set[int]:
    """Return the ``id`` of each parameter that backpropagation from the outputs reaches, with nothing detached."""
    values: dict[str, Any] = {local.local_modules[0].inputs[0]: x}
    for module in local.local_modules:
        stage: Any = module.stage
        result = stage(*[values[name] for name in module.inputs])
        values.update(zip(module.outputs, returned(module.outputs, result), strict=True))
    last = local.local_modules[-1]
    torch.stack([values[name].sum() for name in last.outputs[: last.reads]]).sum().backward()
    reached = set(arrived)
    arrived.clear()
    return reached


def _leak(local: LocalGraphModule, index: int, name: str, owner: int | None) -> str:
    whose = "no module" if owner is None else f"module {_label(local, owner)}"
    return f"the loss of module {_label(local, index)} reaches {name}, which belongs to {whose}"


def _label(local: LocalGraphModule, index: int) -> str:
    return f"{index} ({local.plan.modules[index].name})"
