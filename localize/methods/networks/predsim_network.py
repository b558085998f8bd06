"""PredSim's auxiliary network: a linear classifier on pooled features, and a network for similarity matching.

Nokland, Eidnes: "Training Neural Networks with Local Error Signals", ICML 2019, with the figures that AugLocal (ICLR
2024) compares in appendix A.3 and table 6; its table 7 leaves out batch norm, pooling and the similarity convolution.
With all of them the auxiliary networks of ResNet-110 cost 0.383 G multiply-accumulates instead of 0.25 G.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from localize.methods.networks.features import Features
from localize.methods.networks.linear import build_linear
from localize.methods.networks.local_loss import Batch, Term, WithTerms
from localize.methods.networks.terms import one_hot, similarity_loss
from localize.plan.records import Auxiliary, LossTerm
from passes.common.initializer import Initializer, bare
from passes.errors import InputError


@dataclass(frozen=True, slots=True)
class PredSimNetwork:
    """Classifier and similarity network after features; :func:`predsim_network` computes their sizes."""

    features: Features
    kernel: tuple[int, ...]
    """Height and width of the pooling windows in front of the classifier; empty without positions."""
    beta: float
    """Weight of similarity matching; that of the criterion is 1 - beta."""

    @property
    def pools(self) -> bool:
        """True where the classifier reads pooled features."""
        return math.prod(self.kernel) > 1

    @property
    def inputs(self) -> int:
        """Values that the classifier reads."""
        return self.features.spec.channels * math.prod(_pooled(self.features.spec.spatial, self.kernel))

    def term(self) -> LossTerm:
        """Describe similarity matching for the plan."""
        channels, positions = self.features.spec.channels, math.prod(self.features.spec.spatial)
        params = channels * channels * (1 if self.features.flat else 9)
        kind = "linear" if self.features.flat else "conv3x3"
        spread = ["std"] if positions > 1 else []
        words = [*self.features.words(), f"{kind}({channels}, {channels})", *spread, "cosine similarity"]
        return LossTerm("similarity", self.beta, params, params * positions, " > ".join(words))

    def describe(self, outputs: int) -> Auxiliary:
        """Describe both networks for the plan."""
        term = self.term()
        pool = [f"pool({'x'.join(map(str, self.kernel))})"] if self.pools else []
        return Auxiliary(
            selected=(),
            depth=1,
            params=(self.inputs + 1) * outputs + term.params,
            macs=self.inputs * outputs + term.macs,
            blocks=(),
            head=" > ".join([*self.features.words(), *pool, f"linear({self.inputs}, {outputs})"]),
            weight=1 - self.beta,
            terms=(term,),
        )

    def build(self, outputs: int, draw: Initializer, like: nn.Module | None, zero_init: bool = False) -> WithTerms:
        """Build both networks: from features to (N, outputs), and the similarity term.

        Args:
            outputs: Number of classes.
            draw: Source of weights.
            like: A layer whose initializer the classifier gets; None for torch's.
            zero_init: Whether the classifier starts at zero instead.
        """
        classifier = nn.Sequential()
        for part in self.features.build():
            classifier.add_module("grid", part)
        if self.pools:
            height, width = self.kernel
            classifier.add_module("pool", nn.AvgPool2d((height, width), ceil_mode=True))
        classifier.add_module("flatten", nn.Flatten())
        linear = build_linear(self.inputs, outputs, draw, like)
        if zero_init:
            nn.init.zeros_(linear.get_parameter("weight"))
            nn.init.zeros_(linear.get_parameter("bias"))
        classifier.add_module("classifier", linear)
        term = Similarity(self._compared(draw), outputs)
        return WithTerms(classifier, 1 - self.beta, {"similarity": (self.beta, term)})

    def _compared(self, draw: Initializer) -> nn.Sequential:
        """Build the 3x3 convolution without bias, or linear layer, whose output is compared; it keeps the width."""
        channels = self.features.spec.channels
        if self.features.flat:
            layer = bare(nn.Linear, channels, channels, bias=False)
        else:
            layer = bare(nn.Conv2d, channels, channels, 3, padding=1, bias=False)
        return nn.Sequential(*self.features.build(), draw.plain_(layer))


def predsim_network(features: Features, beta: float = 0.99, pooled_width: int = 512) -> PredSimNetwork:
    """Compute the sizes of PredSim's networks after features.

    Args:
        features: What both networks read.
        beta: Weight of similarity matching.
        pooled_width: The most values that the classifier reads, as far as pooling can achieve it.
    """
    spec = features.spec
    return PredSimNetwork(features, pool_kernel(spec.channels, spec.spatial, pooled_width), beta)


def pool_kernel(channels: int, size: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Return height and width of pooling windows that leave at most ``width`` values, as far as windows can.

    Windows are doubled in height and width by turns, height first, as in the released code.

    Args:
        channels: Channels of the image.
        size: Height and width of the image; empty for features without positions.
        width: The most values.

    >>> pool_kernel(64, (32, 32), 2048)
    (8, 4)
    """
    kernel, turn = [1] * len(size), 0
    while channels * math.prod(_pooled(size, kernel)) > width and any(left > 1 for left in _pooled(size, kernel)):
        if _pooled(size, kernel)[turn] > 1:
            kernel[turn] *= 2
        turn = (turn + 1) % len(size)
    return tuple(min(window, side) for window, side in zip(kernel, size, strict=True))


def _pooled(size: tuple[int, ...], kernel: list[int] | tuple[int, ...]) -> list[int]:
    return [math.ceil(side / window) for side, window in zip(size, kernel, strict=True)]


class Similarity(Term):
    """Similarity matching of a network's output with the labels.

    Args:
        network: Maps features to (N, C), or (N, C, H, W).
        classes: Number of classes.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        self.classes = classes

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the term, a scalar.

        Raises:
            InputError: The target holds neither class indices nor probabilities of classes.
        """
        labels = class_labels(batch.y, features.shape[0], self.classes, batch.name)
        return similarity_loss(self.network(features), labels)


def class_labels(target: object, samples: int, classes: int, name: str) -> torch.Tensor:
    """Return the target as (N, classes): one-hot rows, or the probabilities that it holds.

    Args:
        target: The target as the user gave it.
        samples: N.
        classes: Number of classes.
        name: Name of the local module, for errors.

    Raises:
        InputError: The target holds neither class indices nor probabilities of classes.
    """
    if isinstance(target, torch.Tensor) and target.shape[:1] == (samples,):
        whole = not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
        if whole and target.ndim == 1:
            return one_hot(target, classes)
        if target.is_floating_point() and target.ndim == 2 and target.shape[1] == classes:
            return target
    got = f"a {type(target).__name__}"
    if isinstance(target, torch.Tensor):
        got = f"{target.dtype}, of shape {tuple(target.shape)}"
    raise InputError(
        "the similarity loss of PredSim needs class labels",
        where=name,
        why=f"the target is {got}".replace("torch.", ""),
        remedy=f"Give class indices (N,), or probabilities (N, {classes}); or use method='dgl' or 'auglocal'",
    )
