"""How alike the predictions of several groups of neurons are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def diversity(logits: Sequence[torch.Tensor], target: torch.Tensor, temperature: float = 3.0) -> torch.Tensor:
    """The diversity-promoting penalty of GN-DGL.

    Patel et al.: "Local Learning with Neuron Groups", section 3.4, equation 1. Of each group the class probabilities,
    softmax of logits / temperature, with the true class's set to zero and the others made to sum to one again; then the
    cosine similarity of each group's with each other group's, which is detached; the mean over ordered pairs of groups
    and over samples. Minimizing it drives wrong answers apart.

    Args:
        logits: Of each of at least two groups, (N, classes); at least two classes. With two it is 1, whatever they are.
        target: Class indices (N,).
        temperature: Divides the logits.

    Returns:
        A scalar between 0 and 1.
    """
    assert len(logits) > 1, "one group has nobody to differ from"
    true = F.one_hot(target, logits[0].shape[1]).bool()
    # A softmax without the true class is the same as one that is zeroed there and made to sum to one again, and does
    # not divide by what little is left where the true class has it all.
    wrong = [(values / temperature).masked_fill(true, -torch.inf).softmax(1) for values in logits]
    directions = [F.normalize(values, dim=1) for values in wrong]
    total = logits[0].new_zeros(())
    for i, one in enumerate(directions):
        for j, other in enumerate(directions):
            if i != j:
                total = total + (one * other.detach()).sum(1).mean()
    return total / (len(logits) * (len(logits) - 1))
