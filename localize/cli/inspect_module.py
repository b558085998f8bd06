"""``localize-cli inspect --module K``: one local module in full."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from localize.cli.terminal import Page
from localize.plan.plan import Auxiliary, AuxiliaryBlock, LocalModulePlan, Plan, cells
from localize.runtime.local_graph import LocalGraphModule
from localize.text import format_count, shown
from passes.errors import LocalizeError


def check_index(plan: Plan, index: int) -> None:
    """Refuse the index of a module that does not exist.

    Raises:
        LocalizeError: ``index`` is out of range.
    """
    if not 0 <= index < len(plan.modules):
        raise LocalizeError(f"module must be an integer from 0 to {len(plan.modules) - 1}, got {index}")


def module_record(local: LocalGraphModule, index: int) -> dict[str, Any]:
    """Return one local module as plain values."""
    plan, own = local.plan, local.plan.modules[index]
    return {
        **dataclasses.asdict(own),
        "layers": [dataclasses.asdict(plan.layers[i]) for i in own.layers],
        "auxiliary_parameters": _auxiliary_parameters(local, index),
        "code": local.local_modules[index].code,
    }


def print_module(page: Page, local: LocalGraphModule, index: int) -> None:
    """Print everything that is known of one local module."""
    plan, own = local.plan, local.plan.modules[index]
    page.title(f"module {index} of {len(plan.modules)}: {shown(own.name)}")
    _print_layers(page, plan, own)
    page.title("local loss")
    page.text(cells(plan, own)[6])
    for name, network in _networks(own):
        page.title(name)
        print_network(page, plan, network)
    if own.cascade is not None:
        _print_cascade(page, plan, own)
    if own.note:
        page.title("note")
        page.text(own.note)
    page.title("trains")
    _print_parameters(page, "primary network", (*own.parameters, *(own.cascade.parameters if own.cascade else ())))
    _print_parameters(page, "auxiliary networks", _auxiliary_parameters(local, index))
    page.title("code")
    page.verbatim(local.local_modules[index].code.strip("\n"))


def _networks(module: LocalModulePlan) -> list[tuple[str, Auxiliary]]:
    beyond = module.cascade.auxiliary if module.cascade else None
    named = (("auxiliary network", module.auxiliary), ("auxiliary network of the cascaded loss", beyond))
    return [(name, network) for name, network in named if network is not None]


def _print_layers(page: Page, plan: Plan, module: LocalModulePlan) -> None:
    rows = []
    for layer in (plan.layers[i] for i in module.layers):
        output = f"{layer.output} (+{layer.width - 1})" if layer.width > 1 else str(layer.output)
        costs = (format_count(layer.params), format_count(layer.macs), format_count(layer.activation_bytes))
        rows.append((str(layer.index), shown(layer.name), str(layer.input), output, *costs))
    if module.index == len(plan.modules) - 1:
        given = str(plan.layers[-1].output)
        costs = (format_count(plan.classifier_params), format_count(plan.classifier_macs), "")
        rows.append(("", "classifier", given, str(plan.output), *costs))
    page.table(("", "layer", "input", "output", "params", "MACs", "act. bytes"), rows, (1, 2, 3))


def print_network(page: Page, plan: Plan, network: Auxiliary) -> None:
    """Print an auxiliary network: its input, hidden layers, head, further terms and groups."""
    each = " each" if network.groups else ""
    page.text(
        f"depth {network.depth}{each}, {format_count(network.params)} parameters, {format_count(network.macs)} MACs"
        + (f", weight {network.weight:.3g} in the loss" if network.weight != 1 else "")
    )
    for i, text in enumerate(network.merged):
        page.text(f"reads tensor {i + 1} beside the newest through {text}", hang=2)
    if network.blocks:
        header = ("block", "is", "channels", "stride", "projection", "adapter")
        page.table(header, (_block(plan, i, block) for i, block in enumerate(network.blocks)), (1, 5))
    page.text(f"head: {network.head}", hang=6)
    for term in network.terms:
        cost = f"{format_count(term.params)} parameters, {format_count(term.macs)} MACs"
        page.text(f"term: {term.weight:.3g} * {term.name}, {cost}: {term.network}", hang=6)
    for i, ranges in enumerate(network.groups):
        page.text(f"group {i}: channels {', '.join(f'{first}-{end - 1}' for first, end in ranges)}", hang=9)


_KINDS = {
    "copy": "copy of layer",
    "leap": "copy that follows layer",
    "twin": "two copies, one of which follows, of layer",
    "free": "copy beside none that follows, of layer",
}


def _block(plan: Plan, index: int, block: AuxiliaryBlock) -> tuple[str, ...]:
    what = block.kind
    if block.source is not None:
        layer = plan.layers[block.source]
        what = f"{_KINDS.get(block.kind, block.kind)} {layer.index}, {shown(layer.name)}"
    channels = f"{block.in_channels}->{block.out_channels}"
    return (str(index), what, channels, str(block.stride), "yes" if block.projection else "no", block.adapter or "-")


def _print_cascade(page: Page, plan: Plan, module: LocalModulePlan) -> None:
    cascade = module.cascade
    assert cascade is not None
    page.title("cascade")
    reached = ", ".join(f"{j} {shown(plan.modules[j].name)}" for j in cascade.reaches)
    page.text(
        f"{cascade.independent:g} * the loss that reaches this module alone, {cascade.cascaded:g} * one that "
        + (f"also reaches modules {reached}" if reached else "is computed from the same run")
    )


def _auxiliary_parameters(local: LocalGraphModule, index: int) -> list[str]:
    return [f"module_{index}.{name}" for name, _ in local.local_modules[index].named_parameters()]


def _print_parameters(page: Page, owner: str, names: Iterable[str]) -> None:
    names = list(names)
    page.text(f"{len(names)} parameters of {'its part of the ' if owner == 'primary network' else ''}{owner}")
    for name in names:
        page.text(shown(name), indent=2, hang=4)
