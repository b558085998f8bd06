"""Figures of an epoch: collected step by step, and written as JSON lines and CSV."""

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
    """The results of one epoch."""

    epoch: int
    """Number of the epoch, from 1."""

    lr: float
    """Learning rate of the epoch's last step."""

    train_loss: float
    """Loss of the last local module: mean over the training images, each at the step that used it."""

    train_accuracy: float
    """Accuracy (0..1) of the last local module on augmented training images, each at the step that used it."""

    test_loss: float
    """Mean cross-entropy of the plain primary network on the test images, in eval mode."""

    test_accuracy: float
    """Accuracy (0..1) of the plain primary network on the test images, in eval mode."""

    seconds: float
    """Training time in seconds, without evaluation."""

    images_per_second: float

    module_losses: Mapping[str, float]
    """Loss of every local module by name, from input to output."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON takes them."""
        return {**dataclasses.asdict(self), "module_losses": dict(self.module_losses)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochMetrics:
        """Read what :meth:`to_dict` returned."""
        return cls(**values)


@dataclass(slots=True, eq=False)
class Tally:
    """Figures of an epoch collected so far, kept as tensors so that no step waits for the device."""

    losses: list[Tensor] = field(default_factory=list)
    """K mean losses for each step, one per local module."""

    correct: list[Tensor] = field(default_factory=list)
    """Number of images classified correctly, for each step."""
    images: list[int] = field(default_factory=list)
    """Number of images, for each step."""
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """Return plain values and CPU tensors, for a checkpoint."""
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0)
        correct = torch.stack(self.correct).cpu() if self.correct else torch.empty(0)
        return {"losses": losses, "correct": correct, "images": list(self.images), "seconds": self.seconds}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Tally:
        """Read what :meth:`state` returned."""
        losses, correct = (list(state[name].to(device)) for name in ("losses", "correct"))
        return cls(losses, correct, list(state["images"]), state["seconds"])

    def module_losses(self) -> list[float]:
        """Return the mean loss of each local module over the images."""
        weights = torch.tensor(self.images, dtype=torch.float64)
        return list((torch.stack(self.losses).cpu().double() * weights[:, None]).sum(0).div(weights.sum()).tolist())

    def accuracy(self) -> float:
        """Return the share of training images that were classified correctly, each at the step that used it."""
        return float(torch.stack(self.correct).sum()) / sum(self.images)


def to_jsonl(history: Sequence[EpochMetrics]) -> str:
    """Write one JSON object per line, an epoch each."""
    return "".join(json.dumps(metrics.to_dict()) + "\n" for metrics in history)


def to_csv(history: Sequence[EpochMetrics]) -> str:
    """Write one CSV row per epoch; the losses of local modules are the last columns, named ``loss.<module>``."""
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
