"""Figures of an epoch: gathered step by step, and in their two file forms."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochMetrics:
    """What one epoch came to."""

    epoch: int
    """Counts from 1: epochs done."""

    lr: float
    """Learning rate of the epoch's last step."""

    train_loss: float
    """Loss of the last local module, mean over the images as they were trained on."""

    train_accuracy: float
    """0..1, of the last local module, on augmented images while the weights were still moving."""

    test_loss: float
    """Cross-entropy of the plain primary network in eval mode."""

    test_accuracy: float
    """0..1, of the plain primary network in eval mode."""

    seconds: float
    """Training time, without evaluation."""

    images_per_second: float

    module_losses: Mapping[str, float]
    """Loss of every local module by name, input to output."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {**dataclasses.asdict(self), "module_losses": dict(self.module_losses)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochMetrics:
        """Reads what :meth:`to_dict` gave."""
        return cls(**values)


@dataclass(slots=True, eq=False)
class Tally:
    """What an epoch has gathered so far; tensors, so that no step waits for the device."""

    losses: list[Tensor] = field(default_factory=list)
    """Of each step: K mean losses, one of each local module."""

    correct: list[Tensor] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """Plain values and CPU tensors, for a checkpoint."""
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0)
        correct = torch.stack(self.correct).cpu() if self.correct else torch.empty(0)
        return {"losses": losses, "correct": correct, "images": list(self.images), "seconds": self.seconds}

    @classmethod
    def from_state(cls, state: Any, device: torch.device) -> Tally:
        """Reads what :meth:`state` gave."""
        losses, correct = (list(state[name].to(device)) for name in ("losses", "correct"))
        return cls(losses, correct, list(state["images"]), state["seconds"])

    def module_losses(self) -> list[float]:
        """Mean over the images of each local module's loss."""
        weights = torch.tensor(self.images, dtype=torch.float64)
        return list((torch.stack(self.losses).cpu().double() * weights[:, None]).sum(0).div(weights.sum()).tolist())

    def accuracy(self) -> float:
        """Share of images classified correctly, as they were when trained on."""
        return float(torch.stack(self.correct).sum()) / sum(self.images)


def to_jsonl(history: Sequence[EpochMetrics]) -> str:
    """One JSON object a line and epoch."""
    return "".join(json.dumps(metrics.to_dict()) + "\n" for metrics in history)


def to_csv(history: Sequence[EpochMetrics]) -> str:
    """One row an epoch; the losses of the local modules come last, a column each, as ``loss.<module>``."""
    table = io.StringIO()
    rows = [_row(metrics) for metrics in history]
    writer = csv.DictWriter(table, fieldnames=list(rows[0]) if rows else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def _row(metrics: EpochMetrics) -> dict[str, Any]:
    values = metrics.to_dict()
    losses = values.pop("module_losses")
    return {**values, **{f"loss.{name}": loss for name, loss in losses.items()}}
