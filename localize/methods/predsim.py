"""PredSim: a linear classifier on pooled features, and similarity matching, each with a network of its own.

Nokland, Eidnes: "Training Neural Networks with Local Error Signals", ICML 2019, the "predsim" loss:
``(1 - beta) * cross-entropy + beta * similarity matching``, beta = 0.99
(:func:`localize.methods.networks.terms.similarity_loss`). Networks as compared in AugLocal (ICLR 2024), appendix A.3
and table 6.

Deviations, and choices the paper leaves open:

- The sum of squares (Frobenius norm) of the similarity loss is a mean, as in the released code: the loss does not grow
  with the batch.
- The classifier reads averages over windows that are doubled in height and width by turns, height first, until their
  values are no more than ``pooled_width`` (the released code's rule). Sides that are no multiple of the window end in a
  smaller one; the released code pads with zeros there.
- A row of features that is constant has no direction: its similarity, and the gradient, are 0. The released code adds
  1e-8 to its length, and its gradient is no number.
- ``zero_init=True`` starts classifiers at zero, as the released code does; by default they are drawn as the primary
  network's own output layer was.
- Probabilities of classes (mixup) serve as labels as they are.
- Images with channels last, and tokens, are made images with channels first; the mean of class tokens and registers is
  added to every position. Features without positions are compared through a linear layer instead of the convolution, as
  in the paper.
- By default every local layer is a module by itself, and a layer whose parameters are all frozen goes with the next one
  that learns. Losses of single layers within a module are not offered.
- The paper's variants without any backpropagation (random projections of labels, feedback alignment) are not offered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from localize.methods.base import Context, Method
from localize.methods.checks import is_number, require_count
from localize.methods.layerwise import (
    Features,
    build_linear,
    features_of,
    plan_modules,
    require_vector,
)
from localize.methods.networks.local_loss import Batch, Term, WithTerms
from localize.methods.networks.terms import one_hot, similarity_loss
from localize.plan.plan import Auxiliary, LocalModulePlan, LossTerm
from passes.common.initializer import Initializer, bare
from passes.errors import InputError, MethodError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """PredSim's options; the defaults are the paper's."""

    beta: float = 0.99
    """Weight of similarity matching; that of the criterion is 1 - beta."""
    pooled_width: int = 512
    """The most values that the linear classifier reads, as long as pooling can see to it."""
    zero_init: bool = False
    """Whether classifiers of local losses start at zero."""

    def __post_init__(self) -> None:
        if not is_number(self.beta) or not 0 <= self.beta <= 1:
            raise MethodError(f"beta={self.beta!r} is no weight", remedy="Give a number from 0 to 1")
        require_count("pooled_width", self.pooled_width, 1)
        if not isinstance(self.zero_init, bool):
            raise MethodError(f"zero_init={self.zero_init!r} is unknown", remedy="Give True or False")


def pool_kernel(channels: int, size: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Height and width of pooling windows that leave at most ``width`` values, where windows can see to it.

    Args:
        channels: Of the image.
        size: Its height and width; empty for features without positions.
        width: The most values.
    """
    kernel, turn = [1] * len(size), 0
    while channels * math.prod(_pooled(size, kernel)) > width and any(left > 1 for left in _pooled(size, kernel)):
        if _pooled(size, kernel)[turn] > 1:
            kernel[turn] *= 2
        turn = (turn + 1) % len(size)
    return tuple(min(window, side) for window, side in zip(kernel, size, strict=True))


def _pooled(size: tuple[int, ...], kernel: list[int] | tuple[int, ...]) -> list[int]:
    return [math.ceil(side / window) for side, window in zip(size, kernel, strict=True)]


@dataclass(frozen=True, slots=True)
class Network:
    """Classifier and similarity network behind features."""

    features: Features
    kernel: tuple[int, ...]
    """Of the pooling windows; empty without positions."""

    @property
    def pools(self) -> bool:
        """Whether there is anything to pool."""
        return math.prod(self.kernel) > 1

    @property
    def inputs(self) -> int:
        """Of the classifier."""
        return self.features.spec.channels * math.prod(_pooled(self.features.spec.spatial, self.kernel))

    def term(self, weight: float) -> LossTerm:
        """Similarity matching in the plan."""
        channels = self.features.spec.channels
        params = channels * channels * (1 if self.features.flat else 9)
        kind = "linear" if self.features.flat else "conv3x3"
        spread = ["std"] if math.prod(self.features.spec.spatial) > 1 else []
        words = [*self.features.words(), f"{kind}({channels}, {channels})", *spread, "cosine similarity"]
        return LossTerm("similarity", weight, params, params * math.prod(self.features.spec.spatial), " > ".join(words))

    def describe(self, options: Options, outputs: int) -> Auxiliary:
        """The auxiliary networks in the plan."""
        term = self.term(options.beta)
        pool = [f"pool({'x'.join(map(str, self.kernel))})"] if self.pools else []
        return Auxiliary(
            selected=(),
            depth=1,
            params=(self.inputs + 1) * outputs + term.params,
            macs=self.inputs * outputs + term.macs,
            blocks=(),
            head=" > ".join([*self.features.words(), *pool, f"linear({self.inputs}, {outputs})"]),
            weight=1 - options.beta,
            terms=(term,),
        )


def network_behind(features: Features, options: Options) -> Network:
    """Classifier and similarity network behind features."""
    spec = features.spec
    return Network(features, pool_kernel(spec.channels, spec.spatial, options.pooled_width))


class Similarity(Term):
    """Similarity matching of what ``network`` gives with the labels.

    Args:
        network: From features to (N, C), or (N, C, H, W).
        classes: Number of classes.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network = network
        self.classes = classes

    def forward(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The term, a scalar.

        Raises:
            InputError: The target holds no class labels.
        """
        labels = class_labels(batch.y, features.shape[0], self.classes, batch.name)
        return similarity_loss(self.network(features), labels)


def class_labels(target: object, samples: int, classes: int, name: str) -> torch.Tensor:
    """The target as (N, classes).

    Raises:
        InputError: It holds neither class indices nor probabilities of classes.
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


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Local modules with their auxiliary networks.

    Raises:
        MethodError: The network predicts no classes, or features are neither images, tokens nor plain.
    """
    require_vector(context, "predsim", "similarity is that of class labels, one a sample")
    outputs = context.prediction.outputs
    if outputs < 2:
        raise MethodError(
            "method 'predsim' compares labels of at least two classes, and the model gives one logit",
            remedy="Use method='dgl', 'auglocal' or 'bp'",
        )
    return plan_modules(
        context,
        lambda place: network_behind(features_of(context, place.layer), options).describe(options, outputs),
    )


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> nn.Module | None:
    """Classifier and similarity network of a planned module."""
    if module.auxiliary is None:
        return None
    return build_network(context, network_behind(features_of(context, module.layers[-1]), options), options, draw)


def build_network(context: Context, network: Network, options: Options, draw: Initializer) -> WithTerms:
    """Classifier and similarity network, from features to (N, outputs)."""
    classifier = nn.Sequential()
    for part in network.features.build():
        classifier.add_module("grid", part)
    if network.pools:
        height, width = network.kernel
        classifier.add_module("pool", nn.AvgPool2d((height, width), ceil_mode=True))
    classifier.add_module("flatten", nn.Flatten())
    linear = build_linear(context, network.inputs, draw)
    if options.zero_init:
        nn.init.zeros_(linear.get_parameter("weight"))
        nn.init.zeros_(linear.get_parameter("bias"))
    classifier.add_module("classifier", linear)
    term = Similarity(_compared(network.features, draw), context.prediction.outputs)
    return WithTerms(classifier, 1 - options.beta, {"similarity": (options.beta, term)})


def _compared(features: Features, draw: Initializer) -> nn.Sequential:
    """3x3 convolution without bias, or linear layer, that keeps the width."""
    channels = features.spec.channels
    if features.flat:
        layer = bare(nn.Linear, channels, channels, bias=False)
    else:
        layer = bare(nn.Conv2d, channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(*features.build(), draw.plain_(layer))


METHOD = Method(Options=Options, plan=plan, build=build)
