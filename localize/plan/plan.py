"""Plan: everything that was decided, frozen, printable, comparable, and to JSON and back. No tensors in here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from localize.plan.memory_forecast import Forecasting, MemoryForecast, Schedule
from localize.plan.prediction import Prediction
from localize.plan.records import (
    Auxiliary,
    AuxiliaryBlock,
    Budgeted,
    Cascade,
    LocalModulePlan,
    LossTerm,
    ModuleTotals,
    Original,
)
from localize.plan.show import HEADER, LEFT, budget_lines, crossing, losses_of
from localize.text import format_count, html_table, shown, text_table
from passes.errors import PlanError
from passes.ir import CutCandidate, Layer, TensorSpec

__all__ = [
    "Auxiliary",
    "AuxiliaryBlock",
    "Cascade",
    "LocalModulePlan",
    "LossTerm",
    "Original",
    "Plan",
    "cells",
]

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every decision of the compiler. Indices count from 0; ``macs`` are convolution and linear ones at batch 1."""

    model: str
    """Class name of the primary network."""
    method: str
    """Name of the method."""
    options: Mapping[str, Any]
    input: TensorSpec
    output: TensorSpec
    prediction: Prediction
    """Form of the logits that local losses are computed from, which the heads of auxiliary networks return."""
    layers: tuple[Layer, ...]
    classifier_params: int
    classifier_macs: int
    modules: tuple[LocalModulePlan, ...]
    opaque: tuple[str, ...] = ()
    """Submodules that could not be traced, and were kept whole."""
    original: Original | None = None
    """Costs of the user's model, where the method trains another network (``localize(...).primary``) made of it."""
    budget: Budgeted | None = None
    """Changes that keep the plan within a memory budget; None without budget."""
    forecaster: Forecasting | None = field(default=None, compare=False, repr=False)
    """Source of :meth:`memory`. It holds the model, and is not written to JSON."""
    borders: tuple[CutCandidate, ...] = field(default=(), compare=False, repr=False)
    """All borders between two operations, each a cut or with the reason why it is not; not written to JSON."""

    @property
    def params(self) -> int:
        """Parameter elements of the primary network's layers and classifier."""
        return sum(layer.params for layer in self.layers) + self.classifier_params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the primary network."""
        return sum(layer.macs for layer in self.layers) + self.classifier_macs

    @property
    def auxiliary_params(self) -> int:
        """Parameter elements of all auxiliary networks."""
        return sum(network.params for module in self.modules for network in module.networks)

    @property
    def auxiliary_macs(self) -> int:
        """Multiply-accumulates of all auxiliary networks."""
        return sum(network.macs for module in self.modules for network in module.networks)

    @property
    def repeated_macs(self) -> int:
        """Multiply-accumulates of the primary network that cascades run once more."""
        spans = [(*m.cascade.reaches, m.index) for m in self.modules if m.cascade and m.cascade.reaches]
        layers = sum(self.layers[i].macs for span in spans for j in span for i in self.modules[j].layers)
        return layers + self.classifier_macs * sum(span[-1] == len(self.modules) - 1 for span in spans)

    def module_totals(self, index: int) -> ModuleTotals:
        """Sum the costs of one local module; the sums of all modules add up to those of the plan.

        Args:
            index: Index of the module, from 0.
        """
        module = self.modules[index]
        layers = [self.layers[i] for i in module.layers]
        last = index == len(self.modules) - 1
        return ModuleTotals(
            params=sum(layer.params for layer in layers) + last * self.classifier_params,
            macs=sum(layer.macs for layer in layers) + last * self.classifier_macs,
            activation_bytes=sum(layer.activation_bytes for layer in layers),
            auxiliary_params=sum(network.params for network in module.networks),
            auxiliary_macs=sum(network.macs for network in module.networks),
        )

    def memory(
        self,
        batch_size: int,
        *,
        dtype: torch.dtype | str | None = None,
        amp: torch.dtype | str | None = None,
        optimizer: str | Callable[[list[nn.Parameter]], torch.optim.Optimizer] = "sgd",
        step: Schedule = "batch",
        target: Callable[[int], object] | None = None,
        rivals: bool = True,
    ) -> MemoryForecast:
        """Forecast the memory of a training step, local module by local module, without running it on real tensors.

        The forecast also holds the same step by backpropagation, and by backpropagation with checkpointing. It needs
        neither a GPU nor much memory; each of the three takes as long as one step at a small batch. Workspaces of
        kernels and waste of the allocator come on top. Forecasts are cached, and keep the model alive as long as the
        plan lives.

        Args:
            batch_size: Samples in the step.
            dtype: Type of parameters, buffers and images; None for their own.
            amp: Type of autocast in forward passes; None for none.
            optimizer: ``"sgd"`` (Nesterov momentum), ``"adam"``, ``"adamw"``, or a function from parameters to an
                optimizer.
            step: ``"batch"`` updates all parameters at the end of the step; ``"module"`` each local module's, and frees
                their gradients, right after the last backward that reaches them.
            target: Makes a target for the criterion from the batch size; None for class indices.
            rivals: Whether to forecast backpropagation and checkpointing too.

        Raises:
            PlanError: The plan was read from JSON or copied, and knows no model; or the step cannot be run on fake
                tensors; or a setting is out of range.
            OptionError: The optimizer is unknown.
        """
        if self.forecaster is None:
            raise PlanError(
                "this plan has no model to forecast the memory of",
                why="it was read from JSON, or copied",
                remedy="Localize the model and ask that plan: localize(model, ...).plan.memory(batch_size)",
            )
        settings = {"dtype": dtype, "amp": amp, "optimizer": optimizer, "step": step, "target": target}
        return self.forecaster.forecast(self, batch_size, rivals, settings)

    def to_json(self, indent: int | None = 2) -> str:
        """Return the plan as JSON text, which :meth:`from_json` reads; docs/plan.schema.json is its schema.

        >>> from localize import localize
        >>> from localize.models import cifar_resnet
        >>> plan = localize(cifar_resnet(8), "bp").plan
        >>> Plan.from_json(plan.to_json()) == plan
        True
        """
        fields = dataclasses.asdict(dataclasses.replace(self, forecaster=None, borders=()))
        del fields["forecaster"], fields["borders"]
        return json.dumps({"format": FORMAT, **fields}, indent=indent, default=_plain)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that :meth:`to_json` wrote. It compares equal to the original, and cannot forecast memory.

        Raises:
            PlanError: The text is not JSON, has another format version, or lacks a field.
        """
        try:
            data = json.loads(text)
            version = data.pop("format")
            if version != FORMAT:
                raise PlanError(f"the plan has format {version!r}; this version reads {FORMAT}")
            return cls(
                **{
                    **data,
                    "options": {key: _tuple(value) for key, value in data["options"].items()},
                    "input": _spec(data["input"]),
                    "output": _spec(data["output"]),
                    "prediction": _prediction(data["prediction"]),
                    "layers": tuple(_layer(item) for item in data["layers"]),
                    "modules": tuple(_module(item) for item in data["modules"]),
                    "opaque": tuple(data["opaque"]),
                    "original": Original(**data["original"]) if data.get("original") else None,
                    "budget": _budget(data["budget"]) if data.get("budget") else None,
                }
            )
        except PlanError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(
                "this is not a plan in JSON",
                why=f"{type(error).__name__}: {error}",
                remedy="Write one with Plan.to_json()",
            ) from error

    def __str__(self) -> str:
        # A name with a line break must not begin a line of its own.
        rows = [[shown(cell) for cell in cells(self, module)] for module in self.modules]
        return "\n".join([*_summary(self), str(text_table(HEADER, rows, LEFT)), *_notes(self)])

    def _repr_html_(self) -> str:
        """Return the plan as a notebook shows it."""
        rows = [cells(self, module) for module in self.modules]
        return html_table(_summary(self), HEADER, rows, LEFT, _notes(self))


def _plain(value: object) -> object:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} has no JSON form")


def _tuple(value: object) -> object:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


def _spec(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(tuple(data["shape"]), getattr(torch, data["dtype"]), data["layout"])


def _budget(data: Mapping[str, Any]) -> Budgeted:
    return Budgeted(**{**data, "choices": tuple(data["choices"])})


def _prediction(data: Mapping[str, Any]) -> Prediction:
    return Prediction(**{**data, "size": tuple(data["size"])})


def _layer(data: Mapping[str, Any]) -> Layer:
    return Layer(**{**data, "input": _spec(data["input"]), "output": _spec(data["output"])})


def _module(data: Mapping[str, Any]) -> LocalModulePlan:
    cascade = data.get("cascade")
    if cascade is not None:
        lists = {name: tuple(cascade[name]) for name in ("reaches", "parameters")}
        cascade = Cascade(**{**cascade, **lists, "auxiliary": _auxiliary(cascade["auxiliary"])})
    return LocalModulePlan(
        **{
            **data,
            "layers": tuple(data["layers"]),
            "parameters": tuple(data["parameters"]),
            "auxiliary": _auxiliary(data["auxiliary"]),
            "cascade": cascade,
            "recompute": tuple(data.get("recompute", ())),
        }
    )


def _auxiliary(data: Mapping[str, Any] | None) -> Auxiliary | None:
    if data is None:
        return None
    return Auxiliary(
        **{
            **data,
            "selected": tuple(data["selected"]),
            "blocks": tuple(AuxiliaryBlock(**block) for block in data["blocks"]),
            "merged": tuple(data.get("merged", ())),
            "terms": tuple(LossTerm(**term) for term in data.get("terms", ())),
            "groups": tuple(tuple((first, end) for first, end in group) for group in data.get("groups", ())),
        }
    )


def _summary(plan: Plan) -> list[str]:
    """Return the lines before the table of local modules."""
    options = ", ".join(f"{key}={value}" for key, value in plan.options.items() if value is not None)
    title = f"{plan.model}: {plan.method}({options}), input {plan.input}{_losses(plan)}"
    totals = (
        f"L={len(plan.layers)} local layers in K={len(plan.modules)} local modules; "
        f"primary {format_count(plan.params)} parameters, {format_count(plan.macs)} MACs{_before(plan)}; "
        f"auxiliary networks {format_count(plan.auxiliary_params)} parameters, {format_count(plan.auxiliary_macs)} MACs"
    )
    if plan.repeated_macs:
        totals += f"; cascades run {format_count(plan.repeated_macs)} MACs of the primary once more"
    return [title, totals]


def _notes(plan: Plan) -> list[str]:
    """Return the lines after the table of local modules."""
    notes = [f"kept whole, could not be traced: {', '.join(plan.opaque)}"] if plan.opaque else []
    notes += [f"module {module.index}: {module.note}" for module in plan.modules if module.note]
    return [*notes, *budget_lines(plan.budget)]


def cells(plan: Plan, module: LocalModulePlan) -> tuple[str, ...]:
    """Return a local module's row of the table: name, layers, output, costs; auxiliary networks, their costs."""
    last = module.index == len(plan.modules) - 1
    totals = plan.module_totals(module.index)
    ends = [f"{i}" for i in dict.fromkeys((*module.layers[:1], *module.layers[-1:]))]
    return (
        f"{module.index} {module.name}",
        " + ".join(filter(None, ["-".join(ends), "classifier" if last else ""])),
        str(plan.output) if last else crossing(plan.layers[module.layers[-1]]),
        format_count(totals.params),
        format_count(totals.macs),
        format_count(totals.activation_bytes),
        losses_of(module),
        format_count(totals.auxiliary_params) if module.networks else "",
        format_count(totals.auxiliary_macs) if module.networks else "",
    )


def _losses(plan: Plan) -> str:
    """Return words on what local losses are computed from; empty for a vector of the model's own logits."""
    usual = plan.prediction.kind == "vector" and plan.output.shape[1:] == (plan.prediction.outputs,)
    return "" if usual or not plan.auxiliary_params else f"; local losses on {plan.prediction}"


def _before(plan: Plan) -> str:
    """Return words on the costs of the user's model; empty where the primary network is that model."""
    if plan.original is None:
        return ""
    return f" (made of {format_count(plan.original.params)} parameters, {format_count(plan.original.macs)} MACs)"
