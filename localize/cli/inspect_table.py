"""``localize-cli inspect``: the table of local modules, and totals compared with backpropagation."""

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
"""Columns of words."""
SHOWN_LIKE = 4
"""Most indices of equal modules that are listed one by one."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Costs of all local modules together, and of backpropagation of the user's model."""

    params: tuple[int, int, int]
    """Parameter elements of the primary network, of auxiliary networks, and of the user's model."""
    macs: tuple[int, int, int, int]
    """Multiply-accumulates of a forward pass: primary network, auxiliary networks, second runs by cascades, and the
    user's model."""
    activations: tuple[int, int]
    """Bytes of layers' outputs for one sample that are held at a time: by the modules of one local loss, and by
    backpropagation."""
    module: int
    """Index of the local module whose loss holds most bytes."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by name."""
        params = dict(zip(("primary", "auxiliary", "backpropagation"), self.params, strict=True))
        macs = dict(zip(("primary", "auxiliary", "repeated", "backpropagation"), self.macs, strict=True))
        local, whole = self.activations
        held = {"local": local, "module": self.module, "backpropagation": whole}
        return {"params": params, "macs": macs, "activation_bytes": held}


def totals(plan: Plan) -> Totals:
    """Return the sums of a plan."""
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
    """Print the sums, and the peak memory of a step if it was forecast."""
    sums = totals(plan)
    (held, whole), macs = sums.activations, sum(sums.macs[:3])
    rows = [
        (
            "parameters",
            format_count(sum(sums.params[:2])),
            format_count(sums.params[2]),
            _times(sum(sums.params[:2]), sums.params[2]),
        ),
        ("MACs of a forward pass", format_count(macs), format_count(sums.macs[3]), _times(macs, sums.macs[3])),
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
    """Print a row for each local module, or one row for all equal ones."""
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
    """Name the modules that a row stands for: ``9 alike: 3, 5, ..., 19``."""
    return f"{len(indices)} alike: {format_indices(indices, most=SHOWN_LIKE)}"


def _networks(row: Sequence[str]) -> str:
    """Describe a module's auxiliary networks in one line."""
    network, params, macs = row
    return f"{network}; {params} params, {macs} MACs" if params else network


def _activations(plan: Plan, module: LocalModulePlan) -> int:
    """Return the bytes of its layers' outputs that a module holds for its backward pass, for one sample."""
    layers = [plan.layers[i] for i in module.layers]
    if "layers" not in module.recompute or not layers:
        return sum(layer.activation_bytes for layer in layers)
    # The inputs of layers are kept, and one layer's output at a time is computed again: the largest counts.
    return sum(layer.input.bytes_per_sample for layer in layers) + max(layer.activation_bytes for layer in layers)


def _times(value: float, other: float) -> str:
    return f"{value / other:.2f}" if other else ""
