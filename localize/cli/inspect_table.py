"""``localize-cli inspect``: the table of local modules, and totals beside backpropagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localize.cli.terminal import Page
from localize.export.drawing.fold import Repeat, runs
from localize.plan.memory_forecast import MemoryForecast
from localize.plan.plan import LocalModulePlan, Plan, cells
from localize.text import format_bytes, format_count, format_indices, shown

AUXILIARY = ("auxiliary network", "aux. params", "aux. MACs")
HEADER = ("", "module", "layers", "output", "params", "MACs", "act. bytes", *AUXILIARY)
NAMES = (1, 2, 3, 7)
"""Columns that are no numbers."""
SHOWN_LIKE = 4
"""Most indices of alike modules that are listed one by one."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What all local modules take together, beside backpropagation of the user's model."""

    params: tuple[int, int, int]
    """Parameter elements: of the primary network, of auxiliary networks, and of the user's model."""
    macs: tuple[int, int, int, int]
    """Multiply-accumulates of a forward pass: of the primary network, of auxiliary networks, of what cascades run once
    more, and of the user's model."""
    activations: tuple[int, int]
    """Bytes of what layers give, for one sample, that are held at a time: of the local modules of one loss, and all."""
    module: int
    """The local module whose loss holds most."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, by name."""
        params = dict(zip(("primary", "auxiliary", "backpropagation"), self.params, strict=True))
        macs = dict(zip(("primary", "auxiliary", "repeated", "backpropagation"), self.macs, strict=True))
        local, whole = self.activations
        held = {"local": local, "module": self.module, "backpropagation": whole}
        return {"params": params, "macs": macs, "activation_bytes": held}


def totals(plan: Plan) -> Totals:
    """The sums of a plan."""
    own = [_activations(plan, module) for module in plan.modules]
    held = [sum(own[j] for j in (*(m.cascade.reaches if m.cascade else ()), m.index)) for m in plan.modules]
    user = plan.original or plan
    most = max(range(len(held)), key=held.__getitem__)
    return Totals(
        (plan.params, plan.auxiliary_params, user.params),
        (plan.macs, plan.auxiliary_macs, plan.repeated_macs, user.macs),
        (held[most], sum(layer.activation_bytes for layer in plan.layers)),
        most,
    )


def print_totals(page: Page, plan: Plan, forecast: MemoryForecast | None) -> None:
    """Prints the sums, and the peak memory of a step if it was forecast."""
    found = totals(plan)
    (held, whole), macs = found.activations, sum(found.macs[:3])
    rows = [
        (
            "parameters",
            format_count(sum(found.params[:2])),
            format_count(found.params[2]),
            _times(sum(found.params[:2]), found.params[2]),
        ),
        ("MACs of a forward pass", format_count(macs), format_count(found.macs[3]), _times(macs, found.macs[3])),
        ("activation bytes at a time", format_count(held), format_count(whole), _times(held, whole)),
    ]
    if forecast is not None:
        rivals = {rival.method: rival.peak for rival in forecast.rivals}
        for name, key in (("peak memory of a step", "bp"), ("  beside checkpointing", "checkpoint")):
            if key in rivals:
                row = (name, format_bytes(forecast.peak), format_bytes(rivals[key]), _times(forecast.peak, rivals[key]))
                rows.append(row)
    page.table(("", plan.method, "backpropagation", "ratio"), rows)


def print_modules(page: Page, plan: Plan, *, fold: bool) -> None:
    """Prints a row for each local module, or once for those that are alike."""
    listed = [(run, index) for run in runs(plan, fold=fold) for index in run.shown]
    rows = [_row(plan, plan.modules[index], run) for run, index in listed]
    if page.fits(HEADER, rows):
        page.table(HEADER, rows, NAMES)
        return
    own = len(HEADER) - len(AUXILIARY)
    page.table(HEADER[:own], [row[:own] for row in rows], NAMES[:-1], [_networks(row[own:]) for row in rows])


def _row(plan: Plan, module: LocalModulePlan, run: Repeat) -> tuple[str, ...]:
    alike = f"\n{_alike(run.like(module.index))}" if run.count > 1 else ""
    return (str(module.index), shown(module.name) + alike, *cells(plan, module)[1:])


def _alike(indices: Sequence[int]) -> str:
    """Which modules a row stands for: ``9 alike: 3, 5, ..., 19``."""
    return f"{len(indices)} alike: {format_indices(indices, most=SHOWN_LIKE)}"


def _networks(row: Sequence[str]) -> str:
    """A module's auxiliary networks in a line of their own."""
    network, params, macs = row
    return f"{network}; {params} params, {macs} MACs" if params else network


def _activations(plan: Plan, module: LocalModulePlan) -> int:
    """Bytes that a module holds for its backward pass, of what its layers give for one sample."""
    layers = [plan.layers[i] for i in module.layers]
    if "layers" not in module.recompute or not layers:
        return sum(layer.activation_bytes for layer in layers)
    # What layers read is kept, and of what they compute again the largest layer's at a time.
    return sum(layer.input.bytes_per_sample for layer in layers) + max(layer.activation_bytes for layer in layers)


def _times(value: float, other: float) -> str:
    return f"{value / other:.2f}" if other else ""
