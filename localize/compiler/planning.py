"""The plan: what a method decides, with what follows from the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import get_args

from localize.compiler.emit import Wires, known, parameters_of, reached_through, wire
from localize.methods.base import ChosenMethod, Context
from localize.methods.networks.merge import adapter_cost, with_adapters
from localize.plan.plan import LocalModulePlan, Original, Plan
from localize.plan.records import Recompute
from passes import verify as spec
from passes.errors import MethodError
from passes.ir import Network
from passes.pipeline import expect


def make_plan(context: Context, method: ChosenMethod, original: Network | None) -> Plan:
    """The plan; ``original`` is the user's model where the primary network is another."""
    network = context.network
    planned = method.plan(context)
    wiring = wire(network, [module.layers for module in planned])
    planned = tuple(_with_merged(network, module, wires) for module, wires in zip(planned, wiring, strict=True))
    owned = parameters_of(network, wiring)
    expect("plan", spec.ownership(owned))
    planned = tuple(_with_parameters(network, module, wiring, owned) for module in planned)
    return Plan(
        model=type(network.captured.model).__name__,
        method=method.name,
        options=method.values,
        input=network.shapes.input,
        output=network.shapes.output,
        prediction=context.prediction,
        layers=network.layers,
        classifier_params=network.partition.classifier_params,
        classifier_macs=network.partition.classifier_macs,
        modules=planned,
        opaque=tuple(leaf.path for leaf in network.captured.opaque),
        original=None if original is None else Original(*_size(original)),
    )


def check_recompute(parts: bool | str | Sequence[str]) -> tuple[Recompute, ...]:
    """What is to be computed anew, in each module: all that can be if True.

    Raises:
        MethodError: No such thing.
    """
    if isinstance(parts, bool):
        return ("layers", "blocks") if parts else ()
    asked = (parts,) if isinstance(parts, str) else tuple(parts)
    known_parts = get_args(Recompute)
    if unknown := [part for part in asked if part not in known_parts]:
        raise MethodError(
            f"recompute={unknown[0]!r} is unknown", remedy=f"Give True, or some of {', '.join(map(repr, known_parts))}"
        )
    if {"blocks", "norms"} <= {*asked}:
        raise MethodError("recompute='norms' is a part of recompute='blocks'", remedy="Give one of them")
    return tuple(part for part in known_parts if part in asked)


def with_recompute(plan: Plan, parts: Sequence[tuple[Recompute, ...]]) -> Plan:
    """The plan, with what each module computes anew; without layers or auxiliary networks there is nothing to."""
    modules = [
        dataclasses.replace(m, recompute=tuple(part for part in own if (m.layers if part == "layers" else m.networks)))
        for m, own in zip(plan.modules, parts, strict=True)
    ]
    return dataclasses.replace(plan, modules=tuple(modules))


def _with_parameters(
    network: Network, module: LocalModulePlan, wiring: Sequence[Wires], owned: Sequence[tuple[str, ...]]
) -> LocalModulePlan:
    """Adds which of the primary network's parameters the losses of a module reach."""
    cascade = module.cascade
    if cascade is not None:
        window = [wiring[j] for j in (*cascade.reaches, module.index)]
        reached = reached_through(network, window)
        names = tuple(name for j in cascade.reaches for name in owned[j] if name in reached)
        cascade = dataclasses.replace(cascade, parameters=names)
    return dataclasses.replace(module, parameters=owned[module.index], cascade=cascade)


def _size(network: Network) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a network."""
    part = network.partition
    params = sum(layer.params for layer in part.layers) + part.classifier_params
    return params, sum(layer.macs for layer in part.layers) + part.classifier_macs


def _with_merged(network: Network, module: LocalModulePlan, wires: Wires) -> LocalModulePlan:
    """Adds to auxiliary networks what they need to read more than the newest tensor of a cut."""
    if module.auxiliary is None or len(wires.reads) == 1:
        return module
    like, *others = (known(network.shapes.specs[name]) for name in wires.reads)
    cascade = module.cascade
    if cascade is not None and cascade.auxiliary is not None:
        cascade = dataclasses.replace(cascade, auxiliary=with_adapters(cascade.auxiliary, like, others))
    return dataclasses.replace(module, auxiliary=with_adapters(module.auxiliary, like, others), cascade=cascade)


def merging(network: Network, groups: Sequence[Sequence[int]]) -> list[int]:
    """Multiply-accumulates of merging (:mod:`localize.methods.networks.merge`) for each group but the last."""
    if not groups:
        return []
    rest = range(groups[-1][-1] + 1, len(network.layers))
    wiring = wire(network, [*groups, rest])[: len(groups)]
    reads = [[known(network.shapes.specs[name]) for name in wires.reads] for wires in wiring]
    return [sum(adapter_cost(other, like)[1] for other in others) for like, *others in reads]
