"""Loss functions, and the check of the user's criterion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from passes.errors import InputError, first_line, ran_out_of_memory

Criterion = Callable[[Any, Any], torch.Tensor]
"""Computes a loss, a scalar, from (logits, target)."""


@dataclass(frozen=True, slots=True)
class Criteria:
    """The user's losses."""

    local: Criterion
    """Loss of each local module, from (logits, target) to a scalar."""
    output: Criterion | None = None
    """Loss of the last local module, from (what the model returns, target) to a scalar; None where ``local`` serves
    there too."""


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy, over pixels too where logits are a map.

    It is the local loss of AugLocal (ICLR 2024), section 2.

    Args:
        logits: (N, classes), or (N, classes, H, W).
        target: Class indices (N,) or (N, H, W), or class probabilities of the logits' shape.

    Returns:
        A scalar.
    """
    return F.cross_entropy(logits, target)


def cross_entropy_of_last(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return :func:`cross_entropy` of a map whose last dimension is classes: (N, H, W, classes)."""
    return F.cross_entropy(logits.movedim(-1, 1), target)


def checked(criterion: Criterion, logits: Any, target: Any, name: str) -> torch.Tensor:
    """Return the criterion's value; explain its errors in terms of the user's input.

    Args:
        criterion: The user's criterion.
        logits: Logits, or the model's whole output.
        target: The target as the user gave it.
        name: Name of the local module, for errors.

    Raises:
        InputError: The criterion refuses its arguments, or does not return a scalar.
    """
    try:
        loss = criterion(logits, target)
    except (IndexError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        if ran_out_of_memory(error):
            raise
        if criterion is cross_entropy_of_last:
            logits = logits.movedim(-1, 1)
        raise InputError(
            f"the loss cannot be computed from {_describe(logits, 'logits')} and {_described_target(target, logits)}",
            where=name,
            why=first_line(error),
            remedy=_remedy(criterion, logits, target),
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
        raise InputError(f"the criterion must return a scalar tensor; it returned {got}", where=name)
    return loss


def check_target(criterion: Criterion, target: Any, classes: int) -> None:
    """Refuse targets of several classes a sample where the criterion takes them for probabilities of one class.

    Cross-entropy would accept them and train something else: its float targets are distributions over classes. They are
    recognised by holding only 0 and 1, and not exactly one 1 in each sample.

    Raises:
        InputError: The targets are of several classes a sample, and the criterion is cross-entropy.
    """
    softmax = criterion in (cross_entropy, cross_entropy_of_last, F.cross_entropy) or isinstance(
        criterion, nn.CrossEntropyLoss
    )
    if not softmax or not isinstance(target, torch.Tensor) or isinstance(target, FakeTensor) or target.is_meta:
        return
    if target.is_floating_point() and target.ndim > 1 and target.shape[1] == classes:
        binary = ((target == 0) | (target == 1)).all()
        if bool(binary & (target.sum(1) != 1).any()):
            raise InputError(
                "the targets are of several classes a sample, and the criterion is cross-entropy",
                why="cross-entropy takes float targets for the probabilities of one class, which sum to 1",
                remedy="Give criterion=torch.nn.BCEWithLogitsLoss()",
            )


def _describe(value: Any, what: str) -> str:
    if isinstance(value, torch.Tensor):
        return f"{what} {tuple(value.shape)}"
    return f"an output of type {type(value).__name__}"


def _described_target(target: Any, logits: Any) -> str:
    if not isinstance(target, torch.Tensor):
        return f"a target of type {type(target).__name__}"
    text = f"a target of shape {tuple(target.shape)}, {str(target.dtype).removeprefix('torch.')}"
    labels = _labels_out_of_range(target, logits)
    if labels is not None:
        text += f", with labels from {labels[0]} to {labels[1]} where the model knows 0 to {logits.shape[1] - 1}"
    return text


def _labels_out_of_range(target: torch.Tensor, logits: Any) -> tuple[int, int] | None:
    if not isinstance(logits, torch.Tensor) or logits.ndim < 2 or target.device.type != "cpu":
        return None
    if not target.numel() or target.is_floating_point() or isinstance(target, FakeTensor):
        return None
    low, high = int(target.min()), int(target.max())
    return (low, high) if low < 0 or high >= logits.shape[1] else None


def _remedy(criterion: Criterion, logits: Any, target: Any) -> str:
    if not isinstance(logits, torch.Tensor):
        return "output_criterion is given what the model returns, and the target as it was handed in"
    if not isinstance(target, torch.Tensor) or logits.ndim < 2:
        return "The target must be what your criterion expects"
    if isinstance(criterion, (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)) or (
        criterion is F.binary_cross_entropy_with_logits
    ):
        shape = tuple(logits.shape)
        return f"This criterion takes float targets of the logits' shape {shape}, 1 where a class is present"
    classes, places = logits.shape[1], tuple(logits.shape[2:])
    labels = _labels_out_of_range(target, logits)
    if places and labels is not None:
        return (
            f"Labels must be class indices from 0 to {classes - 1}; where {labels[0] if labels[0] < 0 else labels[1]} "
            "marks pixels that do not count, give criterion=torch.nn.CrossEntropyLoss(ignore_index=...)"
        )
    if places and tuple(target.shape) != (logits.shape[0], *places):
        return f"The model predicts a map: labels must be class indices of shape {(logits.shape[0], *places)}"
    return f"Labels must be class indices from 0 to {classes - 1}, or what your criterion expects"
