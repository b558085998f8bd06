"""Further terms of local losses, as functions of tensors: similarity matching, reconstruction and diversity."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn import functional as F

_LEAST_NORM = 1e-8
"""Shorter rows have no direction: they are similar to no other row, and get no gradient."""
_FEW_CHANNELS = 3
"""With at most this many channels, standard deviations over space leave too little to compare: all values are used."""


def similarity_matrix(features: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity of samples: S_ij = <c_i, c_j> / (|c_i| |c_j|), where c_i = x_i - mean(x_i).

    Nokland, Eidnes: "Training Neural Networks with Local Error Signals", ICML 2019, S in the similarity
    matching loss. Of features with positions, x_i is the standard deviation of each channel over them (n - 1 in its
    denominator), as in the released code; with up to 3 channels, or one position, x_i is every value.

    Args:
        features: (N, C), or (N, C, ...) with positions.

    Returns:
        (N, N), from -1 to 1; 0 for samples all of whose x_i are alike. At least single precision.
    """
    rows = features.flatten(2) if features.ndim > 2 else features
    with _full_precision(features):
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        if rows.ndim == 3:
            whole = rows.shape[1] <= _FEW_CHANNELS or rows.shape[2] == 1
            rows = rows.flatten(1) if whole else rows.std(2)
        rows = rows - rows.mean(1, keepdim=True)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        # The norm of a constant row has the gradient 0/0: without vector_norm and where, one dead sample would make all
        # weights NaN.
        directions = torch.where(norms > _LEAST_NORM, rows / norms.clamp(min=_LEAST_NORM), torch.zeros_like(rows))
        return directions @ directions.T


def similarity_loss(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the similarity matching loss: the mean over i, j of (S(features) - S(labels))_ij^2.

    Nokland, Eidnes, ICML 2019; the mean is taken as in the released code, where the paper has a sum. S is
    :func:`similarity_matrix`.

    Args:
        features: (N, C), or (N, C, ...) with positions.
        labels: One-hot labels, or probabilities of classes: (N, classes).

    Returns:
        A scalar.
    """
    similarity = similarity_matrix(features)
    return (similarity - similarity_matrix(labels.to(similarity.dtype))).square().mean()


def one_hot(target: torch.Tensor, classes: int) -> torch.Tensor:
    """Return labels as float rows: (N,) class indices -> (N, classes); a row of zeros for other numbers.

    Args:
        target: Integers (N,).
        classes: Number of classes.

    >>> one_hot(torch.tensor([1, -1]), 3)
    tensor([[0., 1., 0.],
            [0., 0., 0.]])
    """
    return (target[:, None] == torch.arange(classes, device=target.device)).to(torch.float32)


def reconstruction_loss(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of an image: the mean of -(t log p + (1 - t) log(1 - p)), p = sigmoid(logits).

    Wang et al.: "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training" (InfoPro), ICLR 2021,
    the reconstruction loss. Computed from logits, which half precision can do.

    Args:
        logits: (N, C, H, W).
        images: Of the same shape, in [0, 1].

    Returns:
        A scalar.
    """
    with _full_precision(logits):
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return F.binary_cross_entropy_with_logits(logits, images.to(logits.dtype))


def denormalized(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Undo a normalization: images * std + mean, cut off at 0 and 1.

    Args:
        images: (N, C, H, W).
        mean: Mean of each channel, or one number for all.
        std: Standard deviation of each channel, or one number for all.
    """
    shift, scale = (images.new_tensor(value).view(1, -1, 1, 1) for value in (mean, std))
    return (images * scale + shift).clamp(0, 1)


def diversity(logits: Sequence[torch.Tensor], target: torch.Tensor, temperature: float = 3.0) -> torch.Tensor:
    """Return the diversity-promoting penalty of GN-DGL, which drives the groups' wrong answers apart.

    Patel et al.: "Local Learning with Neuron Groups", section 3.4, equation 1. Each group's class probabilities are the
    softmax of logits / temperature, with the true class set to zero and the others scaled to sum to one. The penalty is
    the cosine similarity of one group's probabilities with another's (detached), averaged over ordered pairs of groups
    and over samples.

    Args:
        logits: Logits (N, classes) of each of at least two groups. With two classes the penalty is always 1.
        target: Class indices (N,).
        temperature: Divisor of the logits.

    Returns:
        A scalar between 0 and 1.
    """
    assert len(logits) > 1, "one group has nobody to differ from"
    true = F.one_hot(target, logits[0].shape[1]).bool()
    # A softmax without the true class equals zeroing that class and scaling the rest to sum to one, and it does not
    # divide by almost nothing where the true class has nearly all of the probability.
    wrong = [(values / temperature).masked_fill(true, -torch.inf).softmax(1) for values in logits]
    directions = [F.normalize(values, dim=1) for values in wrong]
    total = logits[0].new_zeros(())
    for i, one in enumerate(directions):
        for j, other in enumerate(directions):
            if i != j:
                total = total + (one * other.detach()).sum(1).mean()
    return total / (len(logits) * (len(logits) - 1))


def _full_precision(x: torch.Tensor) -> AbstractContextManager[object]:
    """Switch autocast off; the meta device has none."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)
