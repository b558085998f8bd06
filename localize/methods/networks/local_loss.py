"""Local losses: what an auxiliary network returns in a training step, the prediction and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from localize.methods.networks.losses import Criterion, checked


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of a local loss besides features."""

    x: torch.Tensor
    """Input of the primary network, batch first."""
    y: Any
    """Target, as the user gave it."""
    criterion: Criterion
    """The user's criterion, of (logits, target)."""
    name: str
    """Name of the local module, for errors."""

    def loss(self, logits: Any) -> torch.Tensor:
        """Return the user's criterion of logits and target, a scalar.

        Raises:
            InputError: The criterion refuses its arguments, or does not return a scalar.
        """
        return checked(self.criterion, logits, self.y, self.name)


@runtime_checkable
class Supervising(Protocol):
    """An auxiliary network whose local loss is more than the criterion of its output."""

    def supervise(self, batch: Batch, *features: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return the prediction and the local loss, a scalar.

        Args:
            batch: Input of the network, target and criterion.
            features: Outputs of the local module, the newest first; only one in networks without wide cuts.
        """


def supervise(network: nn.Module, batch: Batch, *features: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Return prediction and local loss of an auxiliary network: its own loss if it is :class:`Supervising`.

    Otherwise the loss is the criterion of its output.
    """
    if isinstance(network, Supervising):
        return network.supervise(batch, *features)
    logits = network(*features)
    return logits, batch.loss(logits)


class Term(nn.Module, ABC):
    """A further term of a local loss, with a network of its own.

    A subclass sets ``network`` and computes the term in ``forward``; :class:`WithTerms` adds it to the loss.
    """

    network: nn.Module
    """Maps features to what the term is computed from."""

    @abstractmethod
    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the term, a scalar.

        Args:
            features: Output of the local module.
            batch: Input of the primary network, target and criterion.
        """


class WithTerms(nn.Module):
    """A classifier and further terms of the local loss: ``weight * criterion + sum of weight_i * term_i``.

    Args:
        classifier: Maps features to the prediction.
        weight: Weight of the criterion.
        terms: Weight and term by name. A term of weight 0 is not computed.
    """

    def __init__(self, classifier: nn.Module, weight: float, terms: Mapping[str, tuple[float, Term]]) -> None:
        super().__init__()
        self.classifier = classifier
        self.weight = weight
        self.weights = {name: factor for name, (factor, _) in terms.items()}
        self.terms = nn.ModuleDict({name: term for name, (_, term) in terms.items()})

    def forward(self, features: torch.Tensor) -> Any:
        """Return the prediction."""
        return self.classifier(features)

    def supervise(self, batch: Batch, *features: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return the prediction, and the weighted sum of criterion and terms."""
        logits, loss = supervise(self.classifier, batch, *features)
        total = self.weight * loss
        for name, term in self.terms.items():
            if self.weights[name]:
                total = total + self.weights[name] * term(*features, batch)
        return logits, total

    def extra_repr(self) -> str:
        """Return the weights."""
        return ", ".join(f"{name}={value:g}" for name, value in {"criterion": self.weight, **self.weights}.items())
