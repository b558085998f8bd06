"""DGL: auxiliary networks of 1x1 convolutions at a quarter of the resolution, then a multilayer perceptron.

Belilovsky, Eickenberg, Oyallon: "Decoupled Greedy Learning of CNNs", ICML 2020. Each module is trained by the criterion
of its own auxiliary network, all at once. The auxiliary network is the paper's "MLP-SR-aux"; its figures are those
compared in AugLocal (ICLR 2024), appendix A.3 and table 6.

Deviations, and choices the paper leaves open:

- Sides that are not multiples of four are pooled to a quarter rounded up, as in the released code.
- Where fewer than 2x2 positions are left, they are not repeated: the paper's networks are never that small.
- The paper knows images with channels first. Images with channels last, and tokens, are rearranged to such; the mean of
  class tokens and registers is added to every position. Features without positions get the linear layers alone.
- By default every local layer is a module by itself, and a layer whose parameters are all frozen joins the next layer
  that learns.
- Convolutions are drawn as AugLocal's (its appendix A.2), linear layers as torch does, and the last one as the primary
  network's own output layer was.
- Maps of logits are refused: two fully connected layers leave no positions.
- The paper's asynchronous training, with a replay buffer between modules, is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from localize.methods.base import Context, Method
from localize.methods.layerwise import plan_modules, require_vector
from localize.methods.networks.dgl_network import DglNetwork, dgl_network
from localize.methods.networks.features import features_of
from localize.methods.options import require_count
from localize.plan.records import LocalModulePlan
from passes.common.initializer import Initializer


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """DGL's options; the defaults are the paper's MLP-SR."""

    convolutions: int = 3
    """Number of 1x1 convolutions + norm + ReLU at a quarter of the resolution. 0 is the paper's MLP-aux."""
    hidden: int = 2
    """Number of hidden linear layers + norm + ReLU."""
    hidden_width: int | None = None
    """Width of the hidden linear layers; None for as many as the first one reads: 4 times the channels of an image."""

    def __post_init__(self) -> None:
        require_count("convolutions", self.convolutions, 0)
        require_count("hidden", self.hidden, 0)
        require_count("hidden_width", self.hidden_width, 1, optional=True)


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Plan the local modules, each but the last with an MLP-SR auxiliary network.

    Raises:
        MethodError: The network predicts maps, or a layer's output is a volume or has an unknown layout.
    """
    require_vector(context, "dgl", "fully connected layers leave no positions")
    outputs = context.prediction.outputs
    return plan_modules(context, lambda place: _network(context, options, place.layer).describe(outputs))


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> nn.Module:
    """Build the auxiliary network of a planned module."""
    network = _network(context, options, module.layers[-1])
    return network.build(context.prediction.outputs, draw, context.adapter.output_layer())


def _network(context: Context, options: Options, layer: int) -> DglNetwork:
    features = features_of(context.network, layer)
    return dgl_network(features, options.convolutions, options.hidden, options.hidden_width)


METHOD = Method(name="dgl", Options=Options, plan=plan, build=build)
