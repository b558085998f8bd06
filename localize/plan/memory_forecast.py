"""The memory forecast of a training step: its peak, and that of each local module. No tensors in here."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from localize.text import GAP, column_widths, format_bytes, parse_bytes, shortened, shown, text_table

Phase = Literal["forward", "backward", "update"]
"""Phase of a training step; ``"update"`` is the optimizer's."""

Schedule = Literal["batch", "module"]
"""Time of updates: of all parameters at the end of the step, or of each local module right after its backward."""

WIDTH = 100
"""Most characters in a line of the table."""
NAME_WIDTH = 30
"""Most characters of a local module's name in the table."""


@dataclass(frozen=True, slots=True)
class Moment:
    """An operation of the training step, and the memory in use after it."""

    live: int
    """Bytes of all tensors alive after the operation."""
    phase: Phase
    operation: str
    """ATen operator, such as ``convolution_backward``."""
    path: str
    """Name, in the ``LocalGraphModule``, of the module that ran the operation; in the backward pass, of the module
    whose forward it belongs to: ``primary.layer1.0.conv1``, ``module_0.auxiliary.head``, or ``module_0`` for that local
    module's own code. Empty for an operation in no module: a loss, an update."""
    shape: tuple[int, ...]
    """Shape of the tensor that the operation returned; of the first of several."""

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        what = " ".join(filter(None, [self.phase, self.operation, sizes]))
        return f"{what} in {self.path.removeprefix('primary.')}" if self.path else what


@dataclass(frozen=True, slots=True)
class ModuleMemory:
    """Memory of the training step while one local module runs."""

    index: int
    name: str
    kept: int
    """Bytes that the module's forward pass keeps for its backward pass and for later modules."""
    at: Moment
    """The operation after which most bytes are alive while the module's forward and backward run."""

    @property
    def peak(self) -> int:
        """Bytes alive at the module's peak, residents and tensors kept by other modules included."""
        return self.at.live


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryForecast:
    """Bytes of live tensors in one training step: forward, backward and update, local module by local module.

    It counts tensors: workspaces of kernels and waste of the allocator come on top.
    """

    model: str
    method: str
    batch_size: int
    input: str
    """Shape and type of one sample."""
    dtype: str
    """Type of parameters and images."""
    amp: str | None
    """Type of autocast in the forward passes; None for none."""
    optimizer: str
    step: Schedule
    parameters: int
    """Auxiliary networks' included, as all that follows."""
    buffers: int
    optimizer_state: int
    batch: int
    """Bytes of images and target."""
    gradients: int
    """The most bytes of gradients of parameters at one time."""
    modules: tuple[ModuleMemory, ...]
    update: Moment | None
    """The peak of the optimizer's update at the end; None where each module is updated by itself."""
    rivals: tuple[MemoryForecast, ...] = ()
    """The same step of the user's model by backpropagation (``"bp"``), and by backpropagation with activations
    recomputed (``"checkpoint"``)."""
    search: Callable[[int], int] | None = field(default=None, repr=False, compare=False)
    """Returns the largest batch size for a number of bytes."""

    @property
    def peak(self) -> int:
        """Most bytes alive at one time."""
        return self.at.live

    @property
    def at(self) -> Moment:
        """The first operation after which most bytes are alive."""
        moments = [module.at for module in self.modules] + ([self.update] if self.update else [])
        return max(moments, key=lambda moment: moment.live)

    @property
    def binding(self) -> ModuleMemory | None:
        """The local module that sets the peak; None where the optimizer's update does."""
        return next((module for module in self.modules if module.at is self.at), None)

    @property
    def resident(self) -> int:
        """Bytes alive throughout: parameters, buffers, optimizer state and the batch."""
        return self.parameters + self.buffers + self.optimizer_state + self.batch

    def largest_batch(self, budget: int | str) -> int:
        """Return the largest batch size whose step takes no more than a budget; 0 if there is none.

        Args:
            budget: Bytes, or a size such as ``"8GB"`` (8e9 bytes) or ``"8GiB"``.

        Raises:
            LocalizeError: ``budget`` is not a size of memory.
        """
        assert self.search is not None, "a forecast is made with its search"
        return self.search(parse_bytes(budget))

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name, ready for JSON; for rivals, the peaks."""
        own = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in ("modules", "update", "rivals", "search")
        }
        return {
            **own,
            "peak": self.peak,
            "resident": self.resident,
            "binding": self.binding.index if self.binding else None,
            "at": dataclasses.asdict(self.at),
            "modules": [
                {"index": m.index, "name": m.name, "peak": m.peak, "kept": m.kept, "at": dataclasses.asdict(m.at)}
                for m in self.modules
            ],
            "update": dataclasses.asdict(self.update) if self.update else None,
            "rivals": {rival.method: rival.peak for rival in self.rivals},
        }

    def __str__(self) -> str:
        return "\n".join([*_summary(self), "", _table(self)])


class Forecasting(Protocol):
    """Something that forecasts the memory of a plan's training step: ``localize.memory.forecast.Forecaster``."""

    def forecast(self, plan: Any, batch_size: int, rivals: bool, settings: Mapping[str, Any]) -> MemoryForecast:
        """Forecast a step; see :meth:`localize.Plan.memory`."""


_NAMES = {"bp": "backpropagation", "checkpoint": "with checkpointing"}


def _summary(forecast: MemoryForecast) -> list[str]:
    binding, update = forecast.binding, "updated module by module" if forecast.step == "module" else ""
    amp = f"{forecast.amp} autocast" if forecast.amp else ""
    step = ", ".join(filter(None, [forecast.dtype, amp, forecast.optimizer, update]))
    residents = {
        "parameters": forecast.parameters,
        "buffers": forecast.buffers,
        "optimizer state": forecast.optimizer_state,
        "batch": forecast.batch,
    }
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in residents.items())
    where = f"module {binding.index} ({binding.name})" if binding else "the update"
    rivals = [
        f"{_NAMES.get(rival.method, rival.method)} {format_bytes(rival.peak)} (peak: "
        f"{100 * forecast.peak / rival.peak:.0f} % of that)"
        for rival in forecast.rivals
    ]
    lines = {
        "step": f"{forecast.model} by {forecast.method}, {forecast.batch_size} x {forecast.input}, {step}",
        "peak": f"{format_bytes(forecast.peak)} in {where}: {forecast.at}",
        "resident": f"{format_bytes(forecast.resident)} ({parts}), gradients up to {format_bytes(forecast.gradients)}",
        "beside": ", ".join(rivals),
    }
    return [line for name, text in lines.items() if text for line in _wrapped(name, text)]


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{name:10}", subsequent_indent=" " * 10)


def _table(forecast: MemoryForecast) -> str:
    header, rows = ("module", "peak", "kept", "at its peak"), []
    for module in forecast.modules:
        at = str(module.at).replace(f" module_{module.index}.", " ")
        name = f"{'> ' if module is forecast.binding else '  '}{module.index} {module.name}"
        rows.append((shortened(shown(name), NAME_WIDTH), format_bytes(module.peak), format_bytes(module.kept), at))
    if forecast.update:
        name = f"{'  ' if forecast.binding else '> '}update"
        rows.append((name, format_bytes(forecast.update.live), "", str(forecast.update)))
    # Each module keeps its one line: what is too long for it is cut off.
    room = WIDTH - sum(column_widths([header, *rows])[:3]) - 3 * GAP
    rows = [(*row[:3], shortened(shown(row[3]), room)) for row in rows]
    return str(text_table(header, rows, (0, 3)))
