"""Planning: the decisions of a method, completed by what follows from the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import get_args

from localize.compiler.wiring import Wires, known, parameters_of, reached_through, wire
from localize.methods.base import ChosenMethod, Context
from localize.methods.networks.merge import adapter_cost, with_adapters
from localize.plan.plan import LocalModulePlan, Original, Plan
from localize.plan.records import Recompute
from passes import verify as spec
from passes.errors import MethodError
from passes.ir import Network
from passes.pipeline import expect


def make_plan(context: Context, method: ChosenMethod, original: Network | None) -> Plan:
    """Ask a method for its plan, and complete it.

    Args:
        context: What the method plans on.
        method: The method and its options.
        original: The network of the user's model, if the method trains another one made of it; else None.
    """
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
    """Read the ``recompute`` option: the parts of a local module that are recomputed in the backward pass.

    >>> check_recompute(True)
    ('layers', 'blocks')
    >>> check_recompute("norms")
    ('norms',)

    Args:
        parts: True for all parts, False for none, or the names of some.

    Raises:
        MethodError: A name is unknown, or both ``'blocks'`` and ``'norms'`` are given.
    """
    if isinstance(parts, bool):
        return ("layers", "blocks") if parts else ()
    names = (parts,) if isinstance(parts, str) else tuple(parts)
    known_parts = get_args(Recompute)
    if unknown := [part for part in names if part not in known_parts]:
        raise MethodError(
            f"recompute={unknown[0]!r} is unknown", remedy=f"Give True, or some of {', '.join(map(repr, known_parts))}"
        )
    if {"blocks", "norms"} <= {*names}:
        raise MethodError("recompute='norms' is a part of recompute='blocks'", remedy="Give one of them")
    return tuple(part for part in known_parts if part in names)


def with_recompute(plan: Plan, parts: Sequence[tuple[Recompute, ...]]) -> Plan:
    """Return the plan with the parts that each module recomputes.

    Args:
        plan: The plan.
        parts: Parts by module. A part that a module does not have, layers or auxiliary networks, is left out.
    """
    modules = [
        dataclasses.replace(m, recompute=tuple(part for part in own if (m.layers if part == "layers" else m.networks)))
        for m, own in zip(plan.modules, parts, strict=True)
    ]
    return dataclasses.replace(plan, modules=tuple(modules))


def _with_parameters(
    network: Network, module: LocalModulePlan, wiring: Sequence[Wires], owned: Sequence[tuple[str, ...]]
) -> LocalModulePlan:
    """Return the module with the names of the primary network's parameters that its losses reach."""
    cascade = module.cascade
    if cascade is not None:
        window = [wiring[j] for j in (*cascade.reaches, module.index)]
        reached = reached_through(network, window)
        names = tuple(name for j in cascade.reaches for name in owned[j] if name in reached)
        cascade = dataclasses.replace(cascade, parameters=names)
    return dataclasses.replace(module, parameters=owned[module.index], cascade=cascade)


def _size(network: Network) -> tuple[int, int]:
    """Count the parameters and multiply-accumulates of a network."""
    part = network.partition
    params = sum(layer.params for layer in part.layers) + part.classifier_params
    return params, sum(layer.macs for layer in part.layers) + part.classifier_macs


def _with_merged(network: Network, module: LocalModulePlan, wires: Wires) -> LocalModulePlan:
    """Return the module with the adapters that its auxiliary networks need to read several tensors of a cut."""
    if module.auxiliary is None or len(wires.reads) == 1:
        return module
    like, *others = (known(network.shapes.specs[name]) for name in wires.reads)
    cascade = module.cascade
    if cascade is not None and cascade.auxiliary is not None:
        cascade = dataclasses.replace(cascade, auxiliary=with_adapters(cascade.auxiliary, like, others))
    return dataclasses.replace(module, auxiliary=with_adapters(module.auxiliary, like, others), cascade=cascade)


def merging(network: Network, groups: Sequence[Sequence[int]]) -> list[int]:
    """Count the multiply-accumulates of merging the tensors that leave each group of layers.

    See :mod:`localize.methods.networks.merge`; 0 where one tensor leaves the group.
    """
    if not groups:
        return []
    rest = range(groups[-1][-1] + 1, len(network.layers))
    wiring = wire(network, [*groups, rest])[: len(groups)]
    reads = [[known(network.shapes.specs[name]) for name in wires.reads] for wires in wiring]
    return [sum(adapter_cost(other, like)[1] for other in others) for like, *others in reads]
