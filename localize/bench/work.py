"""Multiply-accumulates of a training step, counted on what runs: forward, backward and whatever is computed twice."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from localize.memory.live_bytes import Step, fake_copy, train_step

SAMPLES = 2
"""Samples of the counted step: batch norm refuses one value a channel."""
FLOPS_PER_MAC = 2


def step_macs(
    module: nn.Module,
    *,
    image_shape: tuple[int, ...] = (3, 32, 32),
    label_shape: tuple[int, ...] = (),
    step: Step | None = None,
) -> int:
    """Multiply-accumulates of forward and backward of one sample: those of convolutions, matrix products and attention.

    Counted on fake tensors at the level of ATen operators, so that recomputed activations and layers that cascades run
    again count as often as they run, and gradients that nobody asks for (of the images, of a cut) do not count.

    Args:
        module: A localized model, or a plain one.
        image_shape: Shape of one image, C x H x W.
        label_shape: Shape of one label: () for classes.
        step: Forward and backward of a batch; by default :func:`~localize.memory.live_bytes.train_step`.
    """
    with fake_copy(module) as replica, torch.enable_grad(), FlopCounterMode(display=False) as counter:
        replica.train()
        images = torch.empty(SAMPLES, *image_shape)
        labels = torch.zeros((SAMPLES, *label_shape), dtype=torch.int64)
        (step or train_step)(replica, images, labels)
    return int(counter.get_total_flops()) // (FLOPS_PER_MAC * SAMPLES)
