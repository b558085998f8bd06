"""Training settings: optimizer and learning rates. AugLocal (ICLR 2024), appendix A.2, is the default."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from localize.runtime.named_optimizers import OPTIMIZERS, build_named
from localize.runtime.options import Runtime
from passes.errors import LocalizeError


class RecipeError(LocalizeError):
    """A training setting is out of range or unknown."""


PAPER_EPOCHS = 400
PAPER_BATCH_SIZE = 1024
PAPER_LR = 0.8
PAPER_WARMUP_EPOCHS = 10
PAPER_WARMUP_LR = 0.01
CLIP_BY = ("global", "module")
STEPS = ("batch", "module")
ADDED_SETTINGS = {"accumulate": 1, "clip": None, "clip_by": "global", "ema": None, "step": "batch"}
"""Settings that checkpoints of earlier versions lack, and what those versions did."""
ADAM_LR = 1e-3  # Adam's and AdamW's usual rate; no paper of this field gives one for them.


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train; the defaults are those of AugLocal (ICLR 2024), appendix A.2.

    Raises:
        RecipeError: The optimizer is unknown, or a setting is out of its range.
    """

    epochs: int = PAPER_EPOCHS
    """Passes over the training set."""

    batch_size: int = PAPER_BATCH_SIZE
    """Images per step, at most: an epoch is split into batches whose sizes differ by at most one image."""

    optimizer: str = "sgd"
    """``sgd`` (with Nesterov momentum), ``adam`` or ``adamw``."""

    lr: float | None = None
    """Peak learning rate. ``None``: with SGD 0.8 * batch_size / 1024, which is the paper's 0.8 on CIFAR-10 and,
    at batch 128, the paper's 0.1 on STL-10; with Adam and AdamW 0.001."""

    momentum: float = 0.9
    """Momentum of SGD; Adam and AdamW keep torch's betas."""

    weight_decay: float = 1e-4
    """L2 penalty on every parameter (AdamW: decoupled decay)."""

    warmup_epochs: float | None = None
    """Epochs of linear warm-up. ``None``: the paper's 10; runs of fewer than 100 epochs take a tenth of their
    epochs, so that a short run is not all warm-up."""

    warmup_lr: float | None = None
    """Learning rate of the first step. ``None``: the paper's 0.01, or a tenth of ``lr`` where that is less."""

    amp: str | None = None
    """``"bfloat16"`` computes forward passes and losses under autocast; parameters and gradients stay float32."""

    channels_last: bool = False
    """Whether images and weights lie in memory with channels last, which many CPUs and GPUs convolve faster."""

    accumulate: int = 1
    """Micro-batches that a batch is split into, one after the other: gradients are those of the mean over the batch,
    activations are kept of one micro-batch at a time. Batch norm sees micro-batches."""

    clip: float | None = None
    """Largest 2-norm of gradients; larger gradients are scaled down to it. ``None``: no limit."""

    clip_by: str = "global"
    """Gradients that share a norm: ``"global"``, all of them; ``"module"``, those of each local module, so that no
    module's step depends on another's loss."""

    ema: float | None = None
    """Decay of an exponential moving average of the primary network's weights, taken after every step from the first
    on. The average is evaluated and exported. ``None``: no average."""

    step: str = "batch"
    """When weights are updated: ``"batch"``, all of them after the last module's backward; ``"module"``, each module's
    after its own, so that gradients are kept of one module at a time. The weights are the same bit for bit."""

    def __post_init__(self) -> None:
        _require(
            self.optimizer in OPTIMIZERS, f"unknown optimizer {self.optimizer!r}", f"Known: {', '.join(OPTIMIZERS)}"
        )
        _require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        _require(self.batch_size >= 1, f"batch size must be at least 1, got {self.batch_size}")
        for name, low_excluded in (
            ("lr", True),
            ("warmup_lr", False),
            ("weight_decay", False),
            ("warmup_epochs", False),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            fits = math.isfinite(value) and (value > 0 if low_excluded else value >= 0)
            _require(fits, f"{name} must be {'above' if low_excluded else 'at least'} 0, got {value}")
        _require(self.amp in (None, "bfloat16"), f"unknown amp {self.amp!r}", "Known: bfloat16")
        self._check_updates()
        _require(0 <= self.momentum < 1, f"momentum must be at least 0 and below 1, got {self.momentum}")
        _require(
            self.warmup <= self.epochs,
            f"warm-up of {self.warmup:g} epochs is longer than the run of {self.epochs}",
        )

    def _check_updates(self) -> None:
        splits = 1 <= self.accumulate <= self.batch_size
        _require(splits, f"a batch of {self.batch_size} cannot be split into {self.accumulate} micro-batches")
        _require(
            self.clip is None or (math.isfinite(self.clip) and self.clip > 0), f"clip must be above 0, got {self.clip}"
        )
        _require(self.ema is None or 0 <= self.ema < 1, f"ema must be at least 0 and below 1, got {self.ema}")
        for name, known in (("clip_by", CLIP_BY), ("step", STEPS)):
            value = getattr(self, name)
            _require(value in known, f"unknown {name} {value!r}", f"Known: {', '.join(known)}")
        _require(
            self.step == "batch" or self.clip is None or self.clip_by == "module",
            "step 'module' frees gradients before those of later modules are known; a global norm needs all",
            "Take clip_by 'module', or step 'batch'",
        )

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of the warm-up."""
        if self.lr is not None:
            return self.lr
        return PAPER_LR * self.batch_size / PAPER_BATCH_SIZE if self.optimizer == "sgd" else ADAM_LR

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, with the default filled in."""
        return min(PAPER_WARMUP_EPOCHS, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def first_lr(self) -> float:
        """Learning rate of the first step, if there is a warm-up."""
        return min(PAPER_WARMUP_LR, self.peak_lr / 10) if self.warmup_lr is None else self.warmup_lr

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step: linear warm-up, then a cosine that would reach 0 one step after the last.

        It depends on the position alone, so a resumed run needs no state of a scheduler.

        >>> recipe = Recipe(epochs=100, lr=0.8)
        >>> [round(recipe.lr_at(epoch, 1), 4) for epoch in (0, 5, 10, 55, 99)]
        [0.01, 0.405, 0.8, 0.4, 0.0002]

        Args:
            step: Steps done since the start of the run.
            steps_per_epoch: Steps in one epoch.
        """
        warmup_steps = round(self.warmup * steps_per_epoch)
        if step < warmup_steps:
            return self.first_lr + (self.peak_lr - self.first_lr) * step / warmup_steps
        progress = (step - warmup_steps) / max(1, self.epochs * steps_per_epoch - warmup_steps)
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def build_optimizer(self, parameters: Iterable[nn.Parameter], fused: bool = False) -> torch.optim.Optimizer:
        """Make an optimizer over those of ``parameters`` that need a gradient.

        Args:
            parameters: Parameters of the model.
            fused: Whether one kernel updates all of them.
        """
        return build_named(
            self.optimizer,
            parameters,
            lr=self.peak_lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=fused,
        )

    def runtime(self, asked: Runtime) -> Runtime:
        """Return how steps run: as ``asked``, with this recipe's autocast and channels last added."""
        return replace(asked, amp=self.amp or asked.amp, channels_last=self.channels_last or asked.channels_last)

    def settings(self) -> dict[str, Any]:
        """Return every setting by name, defaults filled in; a resumed run must have the same ones."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": self.optimizer,
            "lr": self.peak_lr,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "warmup_epochs": self.warmup,
            "warmup_lr": self.first_lr,
            "amp": self.amp,
            "channels_last": self.channels_last,
            **{name: getattr(self, name) for name in ADDED_SETTINGS},
        }


def _require(fits: bool, what: str, remedy: str | None = None) -> None:
    if not fits:
        raise RecipeError(what, remedy=remedy)
