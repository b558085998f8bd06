"""PredSim: a linear classifier on pooled features, and similarity matching, each with a network of its own.

Nokland, Eidnes: "Training Neural Networks with Local Error Signals", ICML 2019, the "predsim" loss:
``(1 - beta) * cross-entropy + beta * similarity matching``, beta = 0.99
(:func:`localize.methods.networks.terms.similarity_loss`). Networks as compared in AugLocal (ICLR 2024), appendix A.3
and table 6.

Deviations, and choices the paper leaves open:

- The sum of squares (Frobenius norm) of the similarity loss is a mean, as in the released code: the loss does not grow
  with the batch.
- The classifier reads averages over windows that are doubled in height and width by turns, height first, until they
  are no more than ``pooled_width`` values (the released code's rule). Sides that are not multiples of the window end
  in a smaller one; the released code pads with zeros there.
- A row of features that is constant has no direction: its similarity, and the gradient, are 0. The released code adds
  1e-8 to its length, and its gradient is not a number.
- ``zero_init=True`` starts classifiers at zero, as the released code does; by default they are drawn as the primary
  network's own output layer was.
- Probabilities of classes (mixup) serve as labels as they are.
- Images with channels last, and tokens, are rearranged to images with channels first; the mean of class tokens and
  registers is added to every position. Features without positions are compared through a linear layer instead of the
  convolution, as in the paper.
- By default every local layer is a module by itself, and a layer whose parameters are all frozen joins the next layer
  that learns. Losses of single layers within a module are not offered.
- The paper's variants without any backpropagation (random projections of labels, feedback alignment) are not offered.
"""

from __future__ import annotations

from dataclasses import dataclass

from localize.methods.base import Context, Method
from localize.methods.layerwise import plan_modules, require_vector
from localize.methods.networks.features import features_of
from localize.methods.networks.local_loss import WithTerms
from localize.methods.networks.predsim_network import PredSimNetwork, predsim_network
from localize.methods.options import is_number, require_count
from localize.plan.records import LocalModulePlan
from passes.common.initializer import Initializer
from passes.errors import MethodError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """PredSim's options; the defaults are the paper's."""

    beta: float = 0.99
    """Weight of similarity matching; that of the criterion is 1 - beta."""
    pooled_width: int = 512
    """The most values that the linear classifier reads, as far as pooling can achieve it."""
    zero_init: bool = False
    """Whether classifiers of local losses start at zero."""

    def __post_init__(self) -> None:
        if not is_number(self.beta) or not 0 <= self.beta <= 1:
            raise MethodError(f"beta must be a number from 0 to 1, got {self.beta!r}")
        require_count("pooled_width", self.pooled_width, 1)
        if not isinstance(self.zero_init, bool):
            raise MethodError(f"zero_init must be True or False, got {self.zero_init!r}")


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Plan the local modules, each but the last with a classifier and a similarity network.

    Raises:
        MethodError: The network predicts maps or a single logit, or a layer's output is a volume or has an unknown
            layout.
    """
    require_vector(context, "predsim", "similarity is that of class labels, one a sample")
    outputs = context.prediction.outputs
    if outputs < 2:
        raise MethodError(
            "method 'predsim' compares labels of at least two classes, and the model gives one logit",
            remedy="Use method='dgl', 'auglocal' or 'bp'",
        )
    return plan_modules(context, lambda place: _network(context, options, place.layer).describe(outputs))


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> WithTerms:
    """Build the classifier and the similarity network of a planned module."""
    network = _network(context, options, module.layers[-1])
    return network.build(context.prediction.outputs, draw, context.adapter.output_layer(), options.zero_init)


def _network(context: Context, options: Options, layer: int) -> PredSimNetwork:
    return predsim_network(features_of(context.network, layer), options.beta, options.pooled_width)


METHOD = Method(name="predsim", Options=Options, plan=plan, build=build)
