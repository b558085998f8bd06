"""Accuracy of a plain model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from localize.runtime.predictions import in_eval_mode
from localize.training.data.batches import Data


def evaluate(
    model: nn.Module, data: Data, *, batch_size: int, device: str | torch.device = "cpu"
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0..1) of a plain model on the test images.

    It runs in eval mode and without gradients; its mode is restored.
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
