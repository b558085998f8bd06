"""Peak memory of one training step, counted on fake tensors, which have a shape but no content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localize.memory.dry_run import DryRun
from localize.memory.forecast import forecast
from localize.memory.live_bytes import LiveBytes
from localize.memory.replicas import fake_copy, meta_copy
from localize.memory.settings import MakeOptimizer, StepSettings
from localize.plan.memory_forecast import MemoryForecast, Schedule
from localize.runtime.local_graph import LocalGraphModule
from passes.common.fake_tensors import device_of

Step = Callable[[nn.Module, Tensor, Tensor], None]
"""Runs forward and backward of one batch, and leaves the gradients on the parameters."""

WARMUP_STEPS = 1
"""Steps before the measured one: the first makes the optimizer's state, which lives through every later step."""


def peak_step_bytes(
    module: nn.Module,
    batch: int,
    *,
    image_shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    step: Step | None = None,
) -> int:
    """Count the peak bytes of live tensors in one training step: forward, backward and optimizer update.

    Nothing is computed and no GPU is needed: the step runs in train mode on fake tensors, over a fake copy of the
    module, which itself is not changed. The count is exact and the same on every machine. It leaves out the workspaces
    of kernels and what an allocator wastes.

    >>> from localize.api import localize
    >>> from localize.models import cifar_resnet
    >>> from localize.text import format_bytes
    >>> model = cifar_resnet(20)
    >>> format_bytes(peak_step_bytes(model, 1024))  # by backpropagation
    '1.64 GB'
    >>> local = localize(model, d=2, example_inputs=torch.empty(2, 3, 32, 32))
    >>> format_bytes(peak_step_bytes(local, 1024))  # AugLocal, at 2.6 times the multiply-accumulates
    '757 MB'

    Args:
        module: A localized model, or a plain one, which is trained by backpropagation of the cross-entropy.
        batch: Images in the batch.
        image_shape: Shape of one image, (C, H, W).
        classes: Number of classes.
        optimizer: Function from parameters to an optimizer; by default SGD with Nesterov momentum, as in AugLocal
            (ICLR 2024), appendix A.2.
        step: Forward and backward of one batch, for a training loop other than :func:`train_step`.

    Returns:
        Bytes, with parameters, buffers, gradients, optimizer state (momentum) and the batch.
    """
    with fake_copy(module) as replica, torch.enable_grad():
        replica.train()
        images = torch.empty(batch, *image_shape)
        plan: Any = getattr(module, "plan", None)
        # One label an image, or one a pixel.
        labels = torch.zeros((batch, *(plan.prediction.size if plan else ())), dtype=torch.int64)
        parameters = [p for p in replica.parameters() if p.requires_grad]
        updates = (optimizer or _nesterov)(parameters)
        run = step or train_step
        counter = LiveBytes()
        counter.track(list(replica.parameters()), list(replica.buffers()), images, labels)
        with counter:
            for index in range(WARMUP_STEPS + 1):
                if index == WARMUP_STEPS:
                    counter.peak = counter.live
                run(replica, images, labels)
                updates.step()
                updates.zero_grad(set_to_none=True)
        return counter.peak


def train_step(module: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Run forward and backward of one batch: by local modules if ``module`` has any, else by backpropagation."""
    steps: Any = getattr(module, "steps", None)
    if steps is not None:
        for output in steps(images, labels):
            output.loss.backward()
    else:
        F.cross_entropy(module(images), labels).backward()


def _nesterov(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


def measure(
    local: LocalGraphModule,
    batch_size: int,
    *,
    dtype: torch.dtype | str | None = None,
    amp: torch.dtype | str | None = None,
    optimizer: str | MakeOptimizer = "sgd",
    step: Schedule = "batch",
    target: Callable[[int], object] | None = None,
) -> MemoryForecast:
    """Forecast the memory of a localized model as it is now, without the rivals of :meth:`localize.Plan.memory`.

    A forecast takes about as long as one training step of a small batch. The model is not changed.

    Args:
        local: The localized model, on any device, the meta device included.
        batch_size: Number of samples.
        dtype: Type of parameters, buffers and images; by default they stay as they are.
        amp: Autocast type of the forward passes; by default none.
        optimizer: ``"sgd"`` (Nesterov momentum), ``"adam"``, ``"adamw"``, or a function from parameters to an
            optimizer.
        step: ``"batch"`` updates all parameters at the end of the step; ``"module"`` updates each local module's, and
            frees their gradients, right after the last backward that reaches them.
        target: Function from the batch size to a target for the criterion; by default class indices.

    Raises:
        PlanError: The step cannot be run on fake tensors, or a setting is out of range.
        OptionError: ``optimizer`` is a string and not a known name.
    """
    settings = StepSettings(dtype=dtype, amp=amp, optimizer=optimizer, step=step, target=target)
    twin = meta_copy(local)
    assert isinstance(twin, LocalGraphModule)
    return forecast(DryRun(twin, settings, device_of(local)), batch_size)
