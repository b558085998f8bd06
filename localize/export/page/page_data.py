"""Collect what the page shows as text and numbers, which the scripts of the page draw."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from localize.export.drawing.fold import runs
from localize.export.request import Request, View
from localize.memory.chart import Course, StepMemory, step_memory
from localize.plan.memory_forecast import ModuleMemory
from localize.plan.records import Auxiliary, AuxiliaryBlock, Cascade, LocalModulePlan
from localize.plan.show import describe
from localize.runtime.local_graph import LocalGraphModule
from passes.errors import LocalizeError
from passes.ir import Layer, TensorSpec

BATCH = 64
"""Batch size of the step whose memory the page shows, unless the plan was made for another one."""
FOLD_FROM = 41
"""Number of modules from which on alike ones are folded by default."""

Data = dict[str, Any]


def page_data(request: Request) -> Data:
    """Return everything that a page shows, ready for JSON."""
    local, view = request.local, request.view
    plan = local.plan
    batch = plan.budget.batch_size if plan.budget else BATCH
    memory = _memory(local, batch)
    forecast = {} if isinstance(memory, str) else {module.index: module for module in memory.forecast.modules}
    return {
        "model": plan.model,
        "method": plan.method,
        "options": _options(local),
        "criterion": criterion_name(local.criterion),
        "outputCriterion": criterion_name(local.output_criterion or local.criterion),
        "input": str(plan.input),
        "output": str(plan.output),
        "prediction": str(plan.prediction),
        "params": plan.params,
        "macs": plan.macs,
        "auxParams": plan.auxiliary_params,
        "auxMacs": plan.auxiliary_macs,
        "repeatedMacs": plan.repeated_macs,
        "original": dataclasses.asdict(plan.original) if plan.original else None,
        "classifier": {"params": plan.classifier_params, "macs": plan.classifier_macs},
        "opaque": list(plan.opaque),
        "budget": list(plan.budget.choices) if plan.budget else [],
        "layers": [_layer(local, layer) for layer in plan.layers],
        "modules": [_module(local, module, forecast.get(module.index)) for module in plan.modules],
        "runs": [[run.first, run.period, run.count] for run in runs(plan)],
        "view": _view(view, len(plan.modules)),
        "memory": {"why": memory, "batch": batch} if isinstance(memory, str) else _step(memory),
        "code": local.code.strip(),
    }


def _options(local: LocalGraphModule) -> list[list[Any]]:
    """List each option with its value, and whether the head of the page shows it: the depth, and changed defaults."""
    plan = local.plan
    kind = local.compiled.method.method.Options
    usual = {item.name: item.default for item in dataclasses.fields(kind)}
    return [
        [key, str(value), key == "d" or usual.get(key, value) != value]
        for key, value in plan.options.items()
        if value is not None
    ]


def _view(view: View, modules: int) -> Data:
    return {
        "kind": view.kind,
        "module": view.module,
        "fold": view.fold or modules >= FOLD_FROM,
        "asked": view.fold,
        "foldFrom": FOLD_FROM,
    }


def criterion_name(criterion: Any) -> str:
    """Return the name of a loss: that of its function, or of its class."""
    name = str(getattr(criterion, "__name__", type(criterion).__name__))
    return {"cross_entropy_of_last": "cross_entropy"}.get(name, name)


def _layer(local: LocalGraphModule, layer: Layer) -> Data:
    kind = ""
    with contextlib.suppress(AttributeError):
        kind = type(local.primary.get_submodule(layer.name)).__name__ if layer.name else ""
    return {
        "name": layer.name,
        "type": kind,
        "params": layer.params,
        "macs": layer.macs,
        "bytes": layer.activation_bytes,
        "input": str(layer.input),
        "output": str(layer.output),
    }


def _module(local: LocalGraphModule, module: LocalModulePlan, memory: ModuleMemory | None) -> Data:
    plan, index = local.plan, module.index
    totals = plan.module_totals(index)
    layers = [plan.layers[i] for i in module.layers]
    last = index == len(plan.modules) - 1
    before = plan.modules[index - 1].layers[-1] if index and plan.modules[index - 1].layers else None
    source = layers[0].input if layers else plan.layers[before].output if before is not None else plan.input
    return {
        "name": module.name,
        "layers": list(module.layers),
        "last": last,
        "params": totals.params,
        "macs": totals.macs,
        "bytes": totals.activation_bytes,
        "auxParams": totals.auxiliary_params,
        "auxMacs": totals.auxiliary_macs,
        "input": str(source),
        "output": str(plan.output) if last else str(layers[-1].output),
        "crossing": [] if last else crossing(local, module),
        "parameters": list(module.parameters),
        "note": module.note,
        "recompute": list(module.recompute),
        "own": _loss(module, module.auxiliary, module.cascade),
        "cascade": _cascade(module.cascade),
        "code": local.local_modules[index].code.strip(),
        "memory": None if memory is None else _peak(memory),
    }


def crossing(local: LocalGraphModule, module: LocalModulePlan) -> list[str]:
    """List the shapes of the tensors that cross from a module to later ones, the newest first."""
    layer = module.layers[-1]
    network = local.compiled.network
    specs = [network.shapes.specs[name] for name in network.partition.live[layer]]
    return [str(spec) for spec in specs if isinstance(spec, TensorSpec)]


def _loss(module: LocalModulePlan, auxiliary: Auxiliary | None, cascade: Cascade | None) -> Data:
    weight = 1.0 if cascade is None else cascade.independent
    return {"weight": weight, "network": None if auxiliary is None else _network(auxiliary)}


def _cascade(cascade: Cascade | None) -> Data | None:
    if cascade is None:
        return None
    return {
        "reaches": list(cascade.reaches),
        "weight": cascade.cascaded,
        "parameters": list(cascade.parameters),
        "network": None if cascade.auxiliary is None else _network(cascade.auxiliary),
    }


def _network(auxiliary: Auxiliary) -> Data:
    return {
        "words": describe(auxiliary),
        "depth": auxiliary.depth,
        "params": auxiliary.params,
        "macs": auxiliary.macs,
        "weight": auxiliary.weight,
        "merged": list(auxiliary.merged),
        "blocks": [_block(block) for block in auxiliary.blocks],
        "head": auxiliary.head,
        "terms": [dataclasses.asdict(term) for term in auxiliary.terms],
        "groups": [[f"{first} to {end - 1}" for first, end in group] for group in auxiliary.groups],
    }


def _block(block: AuxiliaryBlock) -> Data:
    return {
        "kind": block.kind,
        "source": block.source,
        "in": block.in_channels,
        "out": block.out_channels,
        "stride": block.stride,
        "projection": block.projection,
        "adapter": block.adapter,
    }


def _peak(memory: ModuleMemory) -> Data:
    at = memory.at
    return {"peak": memory.peak, "kept": memory.kept, "phase": at.phase, "operation": at.operation}


def _memory(local: LocalGraphModule, batch: int) -> StepMemory | str:
    """Forecast the memory of a step over time; return the reason as text if that is impossible."""
    try:
        return step_memory(local, batch)
    except LocalizeError as error:
        return str(error)


def _step(memory: StepMemory) -> Data:
    forecast = memory.forecast
    return {
        "batch": forecast.batch_size,
        "dtype": forecast.dtype,
        "optimizer": forecast.optimizer,
        "resident": forecast.resident,
        "gradients": forecast.gradients,
        "at": str(forecast.at),
        "binding": forecast.binding.index if forecast.binding else None,
        "own": _course(memory.own),
        "bp": None if memory.rival is None or memory.rival is memory.own else _course(memory.rival),
        "whyNot": memory.why_not,
    }


def _course(course: Course) -> Data:
    return {
        "operations": course.operations,
        "live": list(course.live),
        "spans": [[span.module, span.phase[0], span.start, span.stop] for span in course.spans],
        "peak": course.peak,
        "peakAt": course.peak_at,
    }
