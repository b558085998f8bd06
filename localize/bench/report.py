"""The results of a benchmark as records: figures of each contender, ratios between them, circumstances; JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from localize.bench.timing import Timing

BP, CHECKPOINT = "bp", "checkpoint"
"""Methods that all others are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The figures of one contender."""

    label: str
    """The method, and its depth if it has one."""
    method: str
    modules: int
    """Number of local modules, K."""
    params: int
    """Parameter elements, auxiliary networks included."""
    plan_macs: int
    """Multiply-accumulates of one forward pass at batch 1: all networks, and second runs by cascades."""
    fvcore_flops: int
    """Cost of one forward pass as the papers count it (:func:`localize.bench.flops.step_flops`), cascades left out."""
    step_macs: int
    """Multiply-accumulates of forward and backward per sample (:func:`localize.bench.flops.step_macs`)."""
    peak_bytes: int
    """Most bytes of live tensors in a step, counted (:func:`localize.memory.peak.peak_step_bytes`)."""
    allocated_bytes: int | None = None
    """Most bytes that torch's allocator gave out during a step; CUDA only."""
    reserved_bytes: int | None = None
    """Most bytes that torch's allocator held during a step; CUDA only."""
    timing: Timing | None = None
    """Step times; None where the step could not run."""
    note: str = ""
    """Why the step could not run; empty if it ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """A contender's figures divided by another's; None where either is unknown."""

    memory_to_bp: float | None
    memory_to_checkpoint: float | None
    time_to_bp: float | None
    time_to_checkpoint: float | None
    macs_to_bp: float | None
    """Ratio of forward and backward MACs: the ratio of step times to expect if time followed multiply-accumulates."""
    time_to_bound: float | None
    """``time_to_bp / macs_to_bp``: below 1 where a step is faster than its multiply-accumulates say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A benchmark of one model."""

    model: str
    settings: dict[str, Any]
    """The settings of the run by name, as plain values."""
    environment: dict[str, str]
    """Date, machine and versions of the run."""
    entries: tuple[Entry, ...]

    def find(self, method: str) -> Entry | None:
        """Return the first contender of a method; None if the method took no part."""
        return next((entry for entry in self.entries if entry.method == method), None)

    def ratios(self, entry: Entry) -> Ratios:
        """Return a contender's figures divided by those of backpropagation and of checkpointing."""
        bp, checkpoint = self.find(BP), self.find(CHECKPOINT)
        time = _time(entry, bp)
        macs = entry.step_macs / bp.step_macs if bp else None
        return Ratios(
            memory_to_bp=_memory(entry, bp),
            memory_to_checkpoint=_memory(entry, checkpoint),
            time_to_bp=time,
            time_to_checkpoint=_time(entry, checkpoint),
            macs_to_bp=macs,
            time_to_bound=time / macs if time and macs else None,
        )

    def front(self) -> tuple[Entry, ...]:
        """Return the Pareto front of the timed contenders; see :func:`pareto`."""
        return pareto([entry for entry in self.entries if entry.timing is not None])

    def to_json(self) -> str:
        """Write all figures, with their ratios, as JSON."""
        front = {entry.label for entry in self.front()}
        entries = []
        for entry in self.entries:
            figures = dataclasses.asdict(entry)
            timing = entry.timing
            figures["timing"] = timing and {
                "median_s": timing.median,
                "iqr_s": timing.spread,
                "samples_s": list(timing.samples),
            }
            ratios = dataclasses.asdict(self.ratios(entry))
            entries.append({**figures, "ratios": ratios, "pareto": entry.label in front})
        whole = {"model": self.model, "settings": self.settings, "environment": self.environment, "entries": entries}
        return json.dumps(whole, indent=2)


def pareto(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return the entries that no other beats in both memory and time, in order of rising memory.

    Args:
        entries: Contenders, all of them timed.
    """
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (memory_of(e), seconds_of(e))):
        if not front or seconds_of(entry) < seconds_of(front[-1]):
            front.append(entry)
    return tuple(front)


def memory_of(entry: Entry) -> int:
    """Return the peak bytes of a step: measured if they were, else counted."""
    return entry.peak_bytes if entry.allocated_bytes is None else entry.allocated_bytes


def seconds_of(entry: Entry) -> float:
    """Return the median seconds of a step."""
    assert entry.timing is not None, f"{entry.label} was not timed"
    return entry.timing.median


def _memory(entry: Entry, other: Entry | None) -> float | None:
    # Measured bytes are compared with measured ones only, and counted bytes with counted ones.
    if other is None or (entry.allocated_bytes is None) != (other.allocated_bytes is None):
        return entry.peak_bytes / other.peak_bytes if other else None
    return memory_of(entry) / memory_of(other)


def _time(entry: Entry, other: Entry | None) -> float | None:
    return entry.timing.over(other.timing) if other and entry.timing and other.timing else None


def environment(device: str = "cpu") -> dict[str, str]:
    """Return date, machine and versions by name; nothing that identifies the machine or its user."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(device),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
    }


def machine(device: str = "cpu") -> str:
    """Return the kind of processor, its number of cores and, for a CUDA device, the name of the GPU, in one line."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(names, "") or platform.processor() or platform.machine()
    accelerator = f", {torch.cuda.get_device_name(device)}" if torch.device(device).type == "cuda" else ""
    return f"{processor}, {os.cpu_count()} cores{accelerator}"
