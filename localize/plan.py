"""Plan: everything that was decided, frozen, printable, comparable, and to JSON and back. No tensors in here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from localize.prediction import Prediction
from passes.errors import PlanError
from passes.ir import Layer, TensorSpec

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True, slots=True)
class AuxiliaryBlock:
    """One hidden layer of an auxiliary network: a layer's architecture behind another input, or a plain block."""

    source: int | None
    """Index of the local layer whose architecture it copies; None for a plain block."""
    in_channels: int
    out_channels: int
    stride: int
    """Downsampling it performs: 1, 2, or a higher power of two."""
    projection: bool
    """Whether its shortcut has a projection (1x1 convolution + norm)."""
    adapter: str | None
    """What stands in front of an unchanged copy where the copy itself could not be made to fit; None where it could."""
    kind: str = "copy"
    """``"copy"``, or what a plain block (with norm and ReLU) is: ``"conv1x1"``, ``"conv3x3"`` or ``"linear"``."""


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """The auxiliary network of a local module: hidden layers, then a head."""

    selected: tuple[int, ...]
    """Indices of the layers it copies, in order; empty where its hidden layers are plain blocks."""
    depth: int
    """Trainable layers, the head included (d in the paper)."""
    params: int
    """Number of parameter elements, the head's included."""
    macs: int
    """Convolution and linear multiply-accumulates at batch 1, the head's included."""
    blocks: tuple[AuxiliaryBlock, ...]
    head: str
    """The head's layers in words, such as ``pool > batch_norm > linear(64, 10)``."""
    merged: tuple[str, ...] = ()
    """Where a cut is several tensors wide: the adapters through which it reads tensors beside the newest, in words."""


@dataclass(frozen=True, slots=True)
class LocalModulePlan:
    """One local module: consecutive local layers trained by one local loss."""

    index: int
    name: str
    layers: tuple[int, ...]
    """Indices of its local layers."""
    auxiliary: Auxiliary | None
    """None for the last module, which is trained through the classifier."""
    parameters: tuple[str, ...]
    """Names of the primary network's parameters that this module's loss reaches."""
    note: str = ""
    """What the method had to do otherwise than asked, and why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every decision of the compiler. Indices count from 0; ``macs`` are convolution and linear ones at batch 1."""

    model: str
    """Class name of the primary network."""
    method: str
    options: Mapping[str, Any]
    input: TensorSpec
    output: TensorSpec
    prediction: Prediction
    """What local losses are computed from: what the heads of auxiliary networks give."""
    layers: tuple[Layer, ...]
    classifier_params: int
    classifier_macs: int
    modules: tuple[LocalModulePlan, ...]
    opaque: tuple[str, ...] = ()
    """Submodules that could not be traced, and were kept whole."""

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
        return sum(module.auxiliary.params for module in self.modules if module.auxiliary)

    @property
    def auxiliary_macs(self) -> int:
        """Multiply-accumulates of all auxiliary networks."""
        return sum(module.auxiliary.macs for module in self.modules if module.auxiliary)

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as JSON text; :meth:`from_json` reads it."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=indent, default=_plain)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads what :meth:`to_json` wrote.

        Raises:
            PlanError: The text is no JSON, of another format version, or lacks a field.
        """
        try:
            data = json.loads(text)
            version = data.pop("format")
            if version != FORMAT:
                raise PlanError(f"the plan has format {version!r}; this version reads {FORMAT}")
            return cls(
                **{
                    **data,
                    "input": _spec(data["input"]),
                    "output": _spec(data["output"]),
                    "prediction": _prediction(data["prediction"]),
                    "layers": tuple(_layer(item) for item in data["layers"]),
                    "modules": tuple(_module(item) for item in data["modules"]),
                    "opaque": tuple(data["opaque"]),
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
        return _table(self)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} has no JSON form")


def _spec(data: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(tuple(data["shape"]), getattr(torch, data["dtype"]), data["layout"])


def _prediction(data: Mapping[str, Any]) -> Prediction:
    return Prediction(**{**data, "size": tuple(data["size"])})


def _layer(data: Mapping[str, Any]) -> Layer:
    return Layer(**{**data, "input": _spec(data["input"]), "output": _spec(data["output"])})


def _module(data: Mapping[str, Any]) -> LocalModulePlan:
    auxiliary = data["auxiliary"]
    if auxiliary is not None:
        blocks = tuple(AuxiliaryBlock(**block) for block in auxiliary["blocks"])
        merged = tuple(auxiliary.get("merged", ()))
        auxiliary = Auxiliary(
            **{**auxiliary, "selected": tuple(auxiliary["selected"]), "blocks": blocks, "merged": merged}
        )
    return LocalModulePlan(
        **{
            **data,
            "layers": tuple(data["layers"]),
            "parameters": tuple(data["parameters"]),
            "auxiliary": auxiliary,
        }
    )


def _table(plan: Plan) -> str:
    options = ", ".join(f"{key}={value}" for key, value in plan.options.items() if value is not None)
    title = f"{plan.model}: {plan.method}({options}), input {plan.input}{_losses(plan)}"
    totals = (
        f"L={len(plan.layers)} local layers in K={len(plan.modules)} local modules; "
        f"primary {_si(plan.params)} parameters, {_si(plan.macs)} MACs; "
        f"auxiliary networks {_si(plan.auxiliary_params)} parameters, {_si(plan.auxiliary_macs)} MACs"
    )
    header = (
        "module",
        "layers",
        "output",
        "params",
        "MACs",
        "act. bytes",
        "auxiliary network",
        "aux. params",
        "aux. MACs",
    )
    rows = [header, *(_row(plan, module) for module in plan.modules)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    left = (0, 1, 2, 6)
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"kept whole, could not be traced: {', '.join(plan.opaque)}"] if plan.opaque else []
    notes += [f"module {module.index}: {module.note}" for module in plan.modules if module.note]
    return "\n".join([title, totals, *lines, *notes])


def _row(plan: Plan, module: LocalModulePlan) -> tuple[str, ...]:
    layers = [plan.layers[i] for i in module.layers]
    last = module.index == len(plan.modules) - 1
    params = sum(layer.params for layer in layers) + last * plan.classifier_params
    macs = sum(layer.macs for layer in layers) + last * plan.classifier_macs
    span = f"{module.layers[0]}" if len(layers) == 1 else f"{module.layers[0]}-{module.layers[-1]}"
    auxiliary = module.auxiliary
    return (
        f"{module.index} {module.name}",
        span + (" + classifier" if last else ""),
        str(plan.output) if last else _crossing(layers[-1]),
        _si(params),
        _si(macs),
        _si(sum(layer.activation_bytes for layer in layers)),
        describe(auxiliary) if auxiliary else "(output loss)",
        _si(auxiliary.params) if auxiliary else "",
        _si(auxiliary.macs) if auxiliary else "",
    )


def _losses(plan: Plan) -> str:
    """What local losses are computed from, where that is no vector of the model's own logits."""
    usual = plan.prediction.kind == "vector" and plan.output.shape[1:] == (plan.prediction.outputs,)
    return "" if usual or not plan.auxiliary_params else f"; local losses on {plan.prediction}"


def _crossing(layer: Layer) -> str:
    return f"{layer.output} (+{layer.width - 1})" if layer.width > 1 else str(layer.output)


def describe(auxiliary: Auxiliary) -> str:
    """An auxiliary network in a few words: ``d=3: 8/2 15 head``, with ``/2`` where a block downsamples.

    A number is the layer that is copied; a plain block shows its output channels, as in ``conv3x3(32)/2``. ``+2`` in
    front says that two more tensors of the cut are merged into what it reads.
    """
    blocks = " ".join(
        f"{f'{block.kind}({block.out_channels})' if block.source is None else block.source}"
        f"{f'/{block.stride}' if block.stride > 1 else ''}{'+adapter' if block.adapter else ''}"
        for block in auxiliary.blocks
    )
    merged = f"+{len(auxiliary.merged)} " if auxiliary.merged else ""
    return f"d={auxiliary.depth}: {merged}{blocks} head".replace("  ", " ")


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000 or unit == "T":
            return f"{value:.0f}" if not unit else f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")
