"""What a benchmark found, as records: figures of each contender, ratios between them, JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localize.bench.timing import Timing

BP, CHECKPOINT = "bp", "checkpoint"
"""Methods that the others are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One contender."""

    label: str
    """The method, and its depth if it has one."""
    method: str
    modules: int
    """K."""
    params: int
    """Parameter elements, those of auxiliary networks included."""
    plan_macs: int
    """Multiply-accumulates of one forward pass at batch 1: primary, auxiliary networks, and what cascades run again."""
    fvcore_flops: int
    """The same as the papers count them (:func:`localize.bench.flops.step_flops`), cascades left out."""
    step_macs: int
    """Multiply-accumulates of forward and backward, a sample (:func:`localize.bench.work.step_macs`)."""
    peak_bytes: int
    """Live tensors of a step at most, counted (:func:`localize.memory.live_bytes.peak_step_bytes`)."""
    allocated_bytes: int | None = None
    """What torch's allocator gave out at most during a step; on CUDA only."""
    reserved_bytes: int | None = None
    """What it held at most; on CUDA only."""
    timing: Timing | None = None
    """Of a step; None where it could not run."""
    note: str = ""
    """Why it could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """A contender's figures over another's; None where either is not known."""

    memory_to_bp: float | None
    memory_to_checkpoint: float | None
    time_to_bp: float | None
    time_to_checkpoint: float | None
    macs_to_bp: float | None
    """Of forward and backward: how many times BP's time a step would take if time followed multiply-accumulates."""
    time_to_bound: float | None
    """``time_to_bp / macs_to_bp``: below 1 where a step is faster than its multiply-accumulates say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A benchmark of one model."""

    model: str
    settings: dict[str, Any]
    """How it was run, by name: plain values."""
    environment: dict[str, str]
    """Where and when it was run."""
    entries: tuple[Entry, ...]

    def find(self, method: str) -> Entry | None:
        """The contender of a method that has no depth."""
        return next((entry for entry in self.entries if entry.method == method), None)

    def ratios(self, entry: Entry) -> Ratios:
        """A contender beside backpropagation and checkpointing, as far as they took part."""
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
        """The Pareto front: contenders than which none takes both less memory and less time. By memory, rising."""
        return pareto([entry for entry in self.entries if entry.timing is not None])

    def to_json(self) -> str:
        """All figures, with their ratios."""
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
    """Those that no other beats in memory and time at once, by memory, rising. All of them must have been timed."""
    found: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (memory_of(e), seconds_of(e))):
        if not found or seconds_of(entry) < seconds_of(found[-1]):
            found.append(entry)
    return tuple(found)


def memory_of(entry: Entry) -> int:
    """Peak bytes: measured where they were, else counted."""
    return entry.peak_bytes if entry.allocated_bytes is None else entry.allocated_bytes


def seconds_of(entry: Entry) -> float:
    """Median seconds of a step."""
    assert entry.timing is not None, f"{entry.label} was not timed"
    return entry.timing.median


def _memory(entry: Entry, other: Entry | None) -> float | None:
    # What is compared must have been found in the same way.
    if other is None or (entry.allocated_bytes is None) != (other.allocated_bytes is None):
        return entry.peak_bytes / other.peak_bytes if other else None
    return memory_of(entry) / memory_of(other)


def _time(entry: Entry, other: Entry | None) -> float | None:
    return entry.timing.over(other.timing) if other and entry.timing and other.timing else None
