"""Loss functions, and the guard round the user's criterion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from passes.errors import InputError, first_line


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, the local loss of AugLocal (ICLR 2024), section 2.

    Args:
        logits: (N, classes), or (N, classes, H, W).
        target: Class indices (N,) or (N, H, W), or class probabilities of the logits' shape.

    Returns:
        A scalar.
    """
    return F.cross_entropy(logits, target)


def checked(
    criterion: Callable[[torch.Tensor, Any], torch.Tensor], logits: torch.Tensor, target: Any, name: str
) -> torch.Tensor:
    """The criterion's value; its errors are put in terms of the user's input.

    Raises:
        InputError: The criterion refuses its arguments, or does not return a scalar.
    """
    try:
        loss = criterion(logits, target)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"the loss cannot be computed from logits {tuple(logits.shape)} and {_describe(target, logits)}",
            where=name,
            why=first_line(error),
            remedy="Labels must be class indices from 0 to classes - 1, or what your criterion expects",
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
        raise InputError(f"the criterion must return a scalar tensor; it returned {got}", where=name)
    return loss


def _describe(target: Any, logits: torch.Tensor) -> str:
    if not isinstance(target, torch.Tensor):
        return f"a target of type {type(target).__name__}"
    text = f"a target of shape {tuple(target.shape)}, {str(target.dtype).removeprefix('torch.')}"
    if target.numel() and not target.is_floating_point() and target.device.type == "cpu":
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= logits.shape[1]:
            text += f", with labels from {low} to {high} where the model knows 0 to {logits.shape[1] - 1}"
    return text
