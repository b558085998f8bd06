"""The training loop: local modules in turn, evaluation on the plain primary network, files that survive a crash."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localize.files import atomic_text
from localize.runtime.error_context import explaining_memory
from localize.runtime.predictions import in_eval_mode
from localize.training.checkpoint import (
    Checkpoint,
    Position,
    check_same_run,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_primary,
)
from localize.training.curves import draw_curves
from localize.training.data.batches import Data, derived_generator
from localize.training.data.images import DataError
from localize.training.events import EpochDone, Event, Interrupted, Started, StepDone, interrupts
from localize.training.metrics import EpochMetrics, Tally, to_csv, to_jsonl
from localize.training.recipe import ADDED_SETTINGS, Recipe
from localize.training.updates import Updates, micro_batches

if TYPE_CHECKING:
    from localize.runtime.local_graph import LocalGraphModule
from passes.errors import LocalizeError


class TrainingError(LocalizeError):
    """A run cannot continue: a loss is no longer finite."""


CHECKPOINT, PLAN, WEIGHTS = "checkpoint.pt", "plan.json", "model.safetensors"
METRICS_JSONL, METRICS_CSV, CURVES = "metrics.jsonl", "metrics.csv", "curves.png"
RUN_FILES = (CHECKPOINT, PLAN, WEIGHTS, METRICS_JSONL, METRICS_CSV, CURVES)
"""Every file that a run writes."""

DRAWING_INTERVAL = 10.0
"""Seconds between two drawings of the curves: with small networks a drawing takes as long as an epoch."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a run."""

    history: tuple[EpochMetrics, ...]
    """Metrics of each epoch."""
    out_dir: Path
    """Folder with the files of the run."""


def train(
    local: LocalGraphModule,
    data: Data,
    recipe: Recipe,
    out_dir: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> TrainingResult:
    """Train a localized model, and write checkpoint, metrics, curves, plan and the primary network's weights.

    Every step runs ``local.steps``: a local module's backward before the next module's forward, then one optimizer
    update, or one per module (``recipe.step``). An interrupt (SIGINT, SIGTERM) is obeyed between steps, after a
    checkpoint; a second one at once. With ``resume`` the run continues from the checkpoint in ``out_dir``; on a CPU,
    with the same number of threads, its weights are bit-identical to those of a run that never stopped. Without
    ``resume``, files of an earlier run are removed.

    Args:
        local: The result of :func:`localize.localize`. It is moved to ``device``, and so is the model in it.
        data: Images; :func:`~localize.training.data.batches.load_data` loads them.
        recipe: Optimizer and learning rates. Its autocast and layout are added to ``local.runtime`` for this run.
        out_dir: Folder for the files of the run; made if it does not exist.
        seed: Seed of the order of images, their augmentation, and the model's random layers (dropout). The initial
            weights are the model's own.
        device: Device to train on.
        resume: Continue the run in ``out_dir``.
        on_event: Called with :class:`Started`, :class:`StepDone`, :class:`EpochDone`.

    Raises:
        CheckpointError: There is no checkpoint to resume from, or it belongs to another run.
        DataError: The model does not return one vector per image, with one output per class of the data.
        TrainingError: A loss is no longer finite.
        Interrupted: SIGINT or SIGTERM arrived; the run is saved.
    """
    run = Run(local, data, recipe, Path(out_dir), seed, torch.device(device), on_event or (lambda event: None))
    run.check()
    before = local.runtime.asked
    try:
        run.start(resume)
        with interrupts() as interrupted:
            while run.position.epoch < recipe.epochs:
                run.epoch(interrupted)
                if interrupted.is_set() and run.position.epoch < recipe.epochs:
                    run.draw()
                    raise Interrupted(run.position, run.out_dir / CHECKPOINT)
        run.draw()
    finally:
        local.runtime = before
    return TrainingResult(tuple(run.history), run.out_dir)


class Run:
    """One run: its state, its epochs and steps, and its files."""

    def __init__(
        self,
        local: LocalGraphModule,
        data: Data,
        recipe: Recipe,
        out_dir: Path,
        seed: int,
        device: torch.device,
        emit: Callable[[Event], None],
    ) -> None:
        self.local, self.data, self.recipe, self.out_dir = local, data, recipe, out_dir
        self.seed, self.device, self.emit = seed, device, emit
        self.plan = local.plan.to_json()
        self.steps = data.steps_per_epoch(recipe.batch_size)
        self.settings = {**recipe.settings(), "seed": seed, **data.settings()}
        self.position = Position(epoch=0, step=0)
        self.history: list[EpochMetrics] = []
        self.tally = Tally()
        self.drawn = -math.inf

    def check(self) -> None:
        """Refuse data that does not fit the model.

        Raises:
            DataError: The model does not return one vector per image, or has another number of outputs than the data
                has classes.
        """
        output, classes = self.local.plan.output, len(self.data.classes)
        if output.layout != "NC":
            raise DataError(
                f"the model returns {output} for an image, but {self.data.source} has one label for each",
                remedy="Train it in a loop of your own: for out in local.steps(x, y): out.loss.backward()",
            )
        outputs = output.channels
        if outputs != classes:
            raise DataError(
                f"the model has {outputs} outputs, but {self.data.source} has {classes} classes",
                remedy=f"Build the model with num_classes={classes}",
            )

    def start(self, resume: bool) -> None:
        """Set model and optimizer to the first step of the run, and write the plan. A refused run changes nothing.

        Raises:
            CheckpointError: There is no checkpoint to resume from, or it belongs to another run.
        """
        path = self.out_dir / CHECKPOINT
        checkpoint = load_checkpoint(path) if resume else None
        if checkpoint is not None:
            saved = replace(checkpoint, settings={**ADDED_SETTINGS, **checkpoint.settings})
            check_same_run(saved, self.plan, self.settings, path)
        self.local.to(self.device)
        self.local.runtime = self.recipe.runtime(self.local.runtime.asked)
        fused = bool(self.local.runtime.on(self.device.type).runtime.fused)
        self.updates = Updates(self.local, self.recipe, fused=fused)
        if checkpoint is None:
            torch.manual_seed(derived_generator(self.seed, "model").initial_seed())
        else:
            self.local.load_state_dict(checkpoint.local)
            self.updates.load_state_dict(checkpoint.optimizer, checkpoint.average)
            restore_random_state(checkpoint.random_state, self.device)
            self.position = checkpoint.position
            self.history = [EpochMetrics.from_dict(entry) for entry in checkpoint.history]
            self.tally = Tally.from_state(checkpoint.partial, self.device)
        self.out_dir.mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            for name in RUN_FILES:  # files of two runs next to each other would mislead
                (self.out_dir / name).unlink(missing_ok=True)
        atomic_text(self.out_dir / PLAN, self.plan)
        self.emit(Started(self.position, checkpoint is not None, self.steps))

    def epoch(self, interrupted: threading.Event) -> None:
        """Train the rest of an epoch, or up to an interrupt; evaluate after the last step; save."""
        epoch, start = self.position.epoch, self.position.step
        self.local.train()
        began = time.perf_counter()
        batches = self.data.train_batches(epoch, self.recipe.batch_size, self.seed, start=start, device=self.device)
        for step, (images, labels) in enumerate(batches, start):
            loss = self.step(epoch * self.steps + step, images, labels)
            self.position = Position(epoch=epoch, step=step + 1)
            self.emit(StepDone(epoch, step, self.steps, len(labels), loss))
            if interrupted.is_set() and step + 1 < self.steps:
                break
        self._wait()
        self.tally.seconds += time.perf_counter() - began
        if self.position.step == self.steps:
            self._finish_epoch()
        self.save()

    def step(self, index: int, images: Tensor, labels: Tensor) -> Tensor:
        """Take one optimizer step.

        Returns:
            The loss of the last local module, a scalar on the device.
        """
        self.updates.set_lr(self.recipe.lr_at(index, self.steps))
        losses = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        done = 0
        for some, theirs, share in micro_batches(images, labels, self.recipe.accumulate):
            done += len(theirs)
            its_losses, logits = self._backward(some, theirs, share, last=done == len(labels))
            losses = losses + its_losses
            correct = correct + (logits.argmax(-1) == theirs).sum()
        with self._explaining("update", images, None):
            self.updates.after_batch()
        self.tally.losses.append(losses)
        self.tally.correct.append(correct)
        self.tally.images.append(len(labels))
        return losses[-1]

    def _backward(self, images: Tensor, labels: Tensor, share: float, *, last: bool) -> tuple[Tensor, Tensor]:
        """Run forward and backward of a micro-batch.

        Returns:
            Its part of each module's mean loss, (K,), and the logits, (N, classes).
        """
        losses: list[Tensor] = []
        logits = images
        # No enumerate() and no zip() here: each would hold the last output, and with it the graph of a module.
        steps = self.local.steps(images, labels)
        while (output := next(steps, None)) is not None:
            loss = output.loss if share == 1 else output.loss * share
            with self._explaining("backward pass", images, len(losses)):
                loss.backward()
            losses.append(loss.detach().float())
            name, logits = output.name, output.logits.detach()
            del output, loss
            if last:
                with self._explaining("update", images, None):
                    self.updates.after_module(name)
        return torch.stack(losses), logits

    def _explaining(self, doing: str, images: Tensor, index: int | None) -> AbstractContextManager[None]:
        """Return a context whose out-of-memory errors name the local module, and what would take less memory."""
        settings = {"amp": self.recipe.amp, "optimizer": self.recipe.optimizer, "step": self.recipe.step}
        return explaining_memory(self.local.plan, images, doing, index, settings)

    def _finish_epoch(self) -> None:
        epoch, tally = self.position.epoch, self.tally
        losses = tally.module_losses()
        for module, loss in zip(self.local.plan.modules, losses, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss of {module.name} became {loss} in epoch {epoch + 1}",
                    remedy="Take a lower learning rate or a longer warm-up",
                )
        with self.updates.averaged():
            test_loss, test_accuracy = evaluate(
                self.local.primary, self.data, batch_size=self.recipe.batch_size, device=self.device
            )
        metrics = EpochMetrics(
            epoch=epoch + 1,
            lr=self.updates.lr,
            train_loss=losses[-1],
            train_accuracy=tally.accuracy(),
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            seconds=tally.seconds,
            images_per_second=sum(tally.images) / tally.seconds,
            module_losses=dict(zip((module.name for module in self.local.plan.modules), losses, strict=True)),
        )
        self.history.append(metrics)
        self.position, self.tally = Position(epoch=epoch + 1, step=0), Tally()
        self._write_reports()
        if time.monotonic() - self.drawn > DRAWING_INTERVAL:
            self.draw()
        self.emit(EpochDone(metrics))

    def draw(self) -> None:
        """Draw the curves, if an epoch is done."""
        if self.history:
            draw_curves(self.history, self.out_dir / CURVES, title=f"{self.local.plan.model}, {self.local.plan.method}")
            self.drawn = time.monotonic()

    def _write_reports(self) -> None:
        atomic_text(self.out_dir / METRICS_JSONL, to_jsonl(self.history))
        atomic_text(self.out_dir / METRICS_CSV, to_csv(self.history))
        metadata = {
            "classes": "\n".join(self.data.classes),
            "mean": " ".join(f"{value:.6f}" for value in self.data.mean.tolist()),
            "std": " ".join(f"{value:.6f}" for value in self.data.std.tolist()),
            "image_shape": " ".join(map(str, self.data.image_shape)),
        }
        with self.updates.averaged():
            save_primary(self.local.primary, self.out_dir / WEIGHTS, metadata)

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint = Checkpoint(
            local=self.local.state_dict(),
            optimizer=self.updates.state_dict(),
            plan=self.plan,
            settings=self.settings,
            position=self.position,
            history=[metrics.to_dict() for metrics in self.history],
            partial=self.tally.state(),
            random_state=random_state(self.device),
            average=self.updates.average.state_dict() if self.updates.average else None,
        )
        save_checkpoint(checkpoint, self.out_dir / CHECKPOINT)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def evaluate(
    model: nn.Module, data: Data, *, batch_size: int, device: str | torch.device = "cpu"
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy (0..1) of a plain model on the test images.

    The model runs in eval mode and without gradients; its mode is the same afterwards.
    """
    loss = torch.zeros((), dtype=torch.float64)
    correct = total = 0
    with in_eval_mode(model):
        for images, labels in data.test_batches(batch_size, device=device):
            logits = model(images)
            loss += F.cross_entropy(logits.float(), labels, reduction="sum").double().cpu()
            correct += int((logits.argmax(-1) == labels).sum())
            total += len(labels)
    return float(loss) / total, correct / total
