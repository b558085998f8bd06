"""Facts that a plan holds about each part of a localized model: names and plain values."""

from __future__ import annotations

from collections.abc import Mapping

from localize.export.drawing.drawing import Fact
from localize.plan.plan import Auxiliary, AuxiliaryBlock, LocalModulePlan, Plan
from localize.plan.show import describe
from passes.ir import Layer


def of_plan(plan: Plan) -> dict[str, Fact]:
    """Return the facts of the whole plan."""
    options = {f"option_{name}": _plain(value) for name, value in plan.options.items() if value is not None}
    return {
        "model": plan.model,
        "method": plan.method,
        **options,
        "input": str(plan.input),
        "output": str(plan.output),
        "layers": len(plan.layers),
        "modules": len(plan.modules),
        "parameters": plan.params,
        "macs": plan.macs,
        "auxiliary_parameters": plan.auxiliary_params,
        "auxiliary_macs": plan.auxiliary_macs,
    }


def of_layer(layer: Layer) -> dict[str, Fact]:
    """Return the facts of a local layer."""
    return {
        "name": layer.name,
        "layer": layer.index,
        "input": str(layer.input),
        "output": str(layer.output),
        "layout": layer.output.layout,
        "parameters": layer.params,
        "macs": layer.macs,
        "activation_bytes": layer.activation_bytes,
        "tensors_out": layer.width,
    }


def of_classifier(plan: Plan) -> dict[str, Fact]:
    """Return the facts of the classifier."""
    return {
        "name": "classifier",
        "output": str(plan.output),
        "parameters": plan.classifier_params,
        "macs": plan.classifier_macs,
    }


def of_module(plan: Plan, module: LocalModulePlan) -> dict[str, Fact]:
    """Return the facts of a local module."""
    layers = [plan.layers[i] for i in module.layers]
    totals = plan.module_totals(module.index)
    last = module.index == len(plan.modules) - 1
    facts: dict[str, Fact] = {
        "name": module.name,
        "module": module.index,
        "layers": ", ".join(str(i) for i in module.layers) + (" + classifier" if last else ""),
        "input": str(layers[0].input) if layers else "",
        "output": str(plan.output) if last else str(layers[-1].output),
        "parameters": totals.params,
        "macs": totals.macs,
        "activation_bytes": totals.activation_bytes,
        "parameter_tensors": len(module.parameters),
        "auxiliary_parameters": totals.auxiliary_params,
        "auxiliary_macs": totals.auxiliary_macs,
        "auxiliary": describe(module.auxiliary) if module.auxiliary else "",
        "recompute": ", ".join(module.recompute),
        "note": module.note,
    }
    return _known(facts)


def of_auxiliary(auxiliary: Auxiliary) -> dict[str, Fact]:
    """Return the facts of an auxiliary network."""
    return _known(
        {
            "depth": auxiliary.depth,
            "selected_layers": ", ".join(str(i) for i in auxiliary.selected),
            "parameters": auxiliary.params,
            "macs": auxiliary.macs,
            "head": auxiliary.head,
            "merged": "; ".join(auxiliary.merged),
            "weight": auxiliary.weight,
            "groups": len(auxiliary.groups),
        }
    )


def of_block(plan: Plan, block: AuxiliaryBlock) -> dict[str, Fact]:
    """Return the facts of a hidden layer of an auxiliary network."""
    source = block.source
    copied = "" if source is None else plan.layers[source].name if source < len(plan.layers) else "classifier"
    facts: dict[str, Fact] = {
        "kind": block.kind,
        "copies": copied,
        "in_channels": block.in_channels,
        "out_channels": block.out_channels,
        "stride": block.stride,
        "projection": block.projection,
        "adapter": block.adapter or "",
    }
    return _known(facts) if source is None else _known({"source_layer": source, **facts})


def _known(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    """Leave out empty texts."""
    return {name: value for name, value in facts.items() if value != ""}


def _plain(value: object) -> Fact:
    return value if isinstance(value, (str, int, float, bool)) else str(value)
