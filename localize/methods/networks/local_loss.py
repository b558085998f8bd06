"""What an auxiliary network is asked for in a training step: the prediction, and the local loss."""

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
    """What a local loss is computed from, beside features."""

    x: torch.Tensor
    """Input of the primary network, batch first."""
    y: Any
    """Target, as the user handed it in."""
    criterion: Criterion
    """The user's."""
    name: str
    """Of the local module, for errors."""

    def loss(self, logits: Any) -> torch.Tensor:
        """The user's criterion, a scalar.

        Raises:
            InputError: The criterion refuses its arguments, or does not return a scalar.
        """
        return checked(self.criterion, logits, self.y, self.name)


@runtime_checkable
class Supervising(Protocol):
    """An auxiliary network whose local loss is more than the criterion of its output."""

    def supervise(self, batch: Batch, *features: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Prediction and local loss, a scalar, of what the local module gives."""


def supervise(network: nn.Module, batch: Batch, *features: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Prediction and local loss of an auxiliary network; the loss is the criterion unless it says otherwise."""
    if isinstance(network, Supervising):
        return network.supervise(batch, *features)
    logits = network(*features)
    return logits, batch.loss(logits)


class Term(nn.Module, ABC):
    """A further term of a local loss, with a network of its own."""

    network: nn.Module
    """From features to what the term is computed from."""

    @abstractmethod
    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The term, a scalar, of what the local module gives."""


class WithTerms(nn.Module):
    """A classifier, and further terms of the local loss: ``weight * criterion + sum of weight_i * term_i``.

    Args:
        classifier: From features to the prediction.
        weight: Of the criterion.
        terms: By name, each with its weight. A term of weight 0 is not computed.
    """

    def __init__(self, classifier: nn.Module, weight: float, terms: Mapping[str, tuple[float, Term]]) -> None:
        super().__init__()
        self.classifier = classifier
        self.weight = weight
        self.weights = {name: factor for name, (factor, _) in terms.items()}
        self.terms = nn.ModuleDict({name: term for name, (_, term) in terms.items()})

    def forward(self, features: torch.Tensor) -> Any:
        """The prediction."""
        return self.classifier(features)

    def supervise(self, batch: Batch, *features: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Prediction, and the weighted sum of criterion and terms."""
        logits, loss = supervise(self.classifier, batch, *features)
        total = self.weight * loss
        for name, term in self.terms.items():
            if self.weights[name]:
                total = total + self.weights[name] * term(*features, batch)
        return logits, total

    def extra_repr(self) -> str:
        """The weights."""
        return ", ".join(f"{name}={value:g}" for name, value in {"criterion": self.weight, **self.weights}.items())
