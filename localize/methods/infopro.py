"""InfoPro: a classifier of one convolution, and a decoder that reconstructs the input from features.

Wang, Ni, Song, Yang, Huang: "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training", ICLR 2021:
"InfoPro (Softmax)". Local loss: ``alpha * reconstruction + beta * criterion``
(:func:`localize.methods.networks.terms.reconstruction_loss`), both weights linear in the index of the module.
Networks as compared in AugLocal (ICLR 2024), appendix A.3 and table 6.

Deviations, and choices the paper leaves open:

- The default weights are those for ResNet-32 with one layer a module. Each network and number of modules has weights of
  its own; for ResNet-110 with 55 modules alpha goes from 5 to 0.5, and beta from 0 to 1.
- The classifier's convolution is as wide as the first later layer that halves resolution, and halves it too; where none
  does, it keeps width and resolution. On the paper's ResNets this is the released code's table.
- AugLocal's table 7 leaves out the decoder; with it the auxiliary networks of ResNet-110 cost 0.577 G
  multiply-accumulates instead of 0.34 G.
- The decoder gives logits, and the loss is computed from them, as half precision needs; its sigmoid is the image.
- Interpolation aligns corners, as in the released code.
- Images are taken to be in [0, 1] unless ``mean`` and ``std`` say how they were normalized. Values outside are cut off;
  where more than a tenth of the first batch's are, the loss refuses it.
- Images with channels last, and tokens, are rearranged to images with channels first; the mean of class tokens and
  registers is added to every position. Features without positions are classified by linear layers, and decoded from
  one position.
- Where the primary network gives a map of logits, the classifier keeps its resolution and ends in a 1x1 convolution and
  interpolation to the map's size.
- By default every local layer is a module by itself, and a layer whose parameters are all frozen joins the next layer
  that learns.
- The contrastive variant, InfoPro (Contrast), is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from localize.methods.base import Context, Method
from localize.methods.layerwise import Place, plan_modules
from localize.methods.networks.features import Features, features_of
from localize.methods.networks.heads import build_head, describe_head, head_cost
from localize.methods.networks.linear import build_block, build_two_linear, describe_block, describe_two_linear
from localize.methods.networks.local_loss import WithTerms
from localize.methods.options import require_count
from localize.methods.reconstruction import (
    ReconstructionOptions,
    build_reconstruction,
    require_images,
    with_reconstruction,
)
from localize.plan.records import Auxiliary, LocalModulePlan
from passes.adapt.resolution import reduction
from passes.common.initializer import Initializer
from passes.ir import TensorSpec
from passes.layers.plain_blocks import Plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ReconstructionOptions):
    """InfoPro's options; the defaults are the paper's for ResNet-32 with one layer a module."""

    hidden_width: int = 128
    """Width of the classifier's hidden linear layer."""

    def __post_init__(self) -> None:
        ReconstructionOptions.__post_init__(self)
        require_count("hidden_width", self.hidden_width, 1)


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classifier on features: a block, pooling, two linear layers; or, for maps of logits, a dense head."""

    context: Context
    features: Features
    block: Plain
    hidden_width: int

    @property
    def _dense(self) -> bool:
        return self.context.prediction.kind == "dense"

    def describe(self) -> Auxiliary:
        """Describe the classifier for the plan, without decoder."""
        prediction, block = self.context.prediction, self.block
        if not self._dense:
            return describe_two_linear(block, self.hidden_width, prediction.outputs)
        params, macs = head_cost(block.output, prediction, False)
        return Auxiliary(
            selected=(),
            depth=2,
            params=block.params + params,
            macs=block.macs + macs,
            blocks=(describe_block(block),),
            head=describe_head(block.output, prediction, False),
        )

    def build(self, draw: Initializer) -> nn.Sequential:
        """Build the classifier, from features to the prediction."""
        prediction, like = self.context.prediction, self.context.adapter.output_layer()
        if not self._dense:
            return build_two_linear(self.features, self.block, self.hidden_width, prediction.outputs, draw, like)
        network = build_block(self.features, self.block, draw)
        network.add_module("head", build_head(self.block.output, prediction, batch_norm=False, draw=draw, like=like))
        return network


def _classifier(context: Context, options: Options, layer: int) -> Classifier:
    features = features_of(context.network, layer)
    spec = features.spec
    if features.flat:
        block = Plain("linear", spec, spec.channels, 1)
    elif context.prediction.kind == "dense":
        block = Plain("conv3x3", spec, spec.channels, 1)
    else:
        halved = _next_halved(context, layer)
        block = Plain("conv3x3", spec, halved.channels if halved else spec.channels, 2 if halved else 1)
    return Classifier(context, features, block, options.hidden_width)


def _next_halved(context: Context, layer: int) -> TensorSpec | None:
    """Return the output of the first later layer that has a lower resolution; None if there is none."""
    here, *later = (each.output for each in context.network.layers[layer:])
    return next((output for output in later if reduction(here, output) > 1), None)


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Plan the local modules, each but the last with a classifier and a decoder.

    Raises:
        MethodError: The input is not a batch of images, or a layer's output is a volume or has an unknown layout.
    """
    require_images(context, options, "infopro")

    def auxiliary(place: Place) -> Auxiliary:
        classifier = _classifier(context, options, place.layer).describe()
        return with_reconstruction(context, classifier, options, place)

    return plan_modules(context, auxiliary)


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> WithTerms:
    """Build the classifier and the decoder of a planned module."""
    classifier = _classifier(context, options, module.layers[-1]).build(draw)
    return build_reconstruction(context, module, classifier, options, draw)


METHOD = Method(name="infopro", Options=Options, plan=plan, build=build)
