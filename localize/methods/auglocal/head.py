"""The end of AugLocal's auxiliary networks: a linear classifier, or a copy of the primary network's own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from localize.methods.auglocal.options import Options
from localize.methods.base import Context
from localize.methods.networks.heads import build_head, describe_head, head_cost
from localize.methods.networks.pooling import Pooling
from localize.plan.prediction import prediction_of
from passes.adapt.copy_recipe import CopyRecipe
from passes.adapt.rebuild import rebuild
from passes.adapt.resolution import tokens_with_class
from passes.common.initializer import Initializer
from passes.errors import AdaptError, MethodError
from passes.ir import TensorSpec


@dataclass(frozen=True, slots=True)
class Head:
    """The end of an auxiliary network with ``hidden`` hidden layers, on features of the form ``spec``."""

    context: Context
    options: Options
    spec: TensorSpec
    hidden: int

    @property
    def _norms(self) -> tuple[bool, bool]:
        """Two flags: a batch norm, or a layer norm, precedes the linear classifier."""
        own = self.context.adapter.classifier_norm() if self.options.head_norm else None
        # A layer norm over a single channel would return a constant.
        layer = own == "layer" and self.context.prediction.kind == "vector" and self.spec.channels > 1
        return own == "batch" or (self.options.head_norm and self.hidden == 1 and not layer), layer

    @property
    def _pool(self) -> Pooling:
        # The class token is the first token only in layers after it was added: before, the average is taken.
        if self.options.pool == "token":
            tokens = tokens_with_class(self.context.network)
            if self.spec.layout != "NLC" or self.spec.shape[1] != tokens:
                return "average"
        return self.options.pool

    def _copy(self) -> CopyRecipe | None:
        """Return the recipe that places the primary's classifier here; None if not asked for, or impossible."""
        if self.options.head == "linear":
            return None
        try:
            return self.context.adapter.adapt_classifier(self.spec, self.options.head_width)
        except AdaptError:
            return None

    def cost(self) -> tuple[int, int]:
        """Return parameters and multiply-accumulates."""
        recipe = self._copy()
        if recipe is not None:
            return recipe.params, recipe.macs
        batch, layer = self._norms
        return head_cost(self.spec, self.context.prediction, batch, self._pool, layer)

    def describe(self) -> str:
        """Describe the layers in words."""
        recipe = self._copy()
        if recipe is not None:
            return f"classifier({self.spec.channels}, {self.context.prediction.outputs})"
        batch, layer = self._norms
        return describe_head(self.spec, self.context.prediction, batch, self._pool, layer)

    def note(self) -> str:
        """Return a note on what differs from what was asked for; empty if nothing does."""
        if self.options.head == "linear" or self._copy() is not None:
            return ""
        return "a linear classifier, since the model's own cannot be placed here"

    def build(self, draw: Initializer) -> nn.Module:
        """Build the module, from ``spec`` to the prediction."""
        recipe = self._copy()
        if recipe is not None:
            return rebuild(self.context.adapter, recipe, draw)
        like = self.context.adapter.output_layer()
        prediction, (batch, layer) = self.context.prediction, self._norms
        pool = self._pool
        return build_head(self.spec, prediction, batch_norm=batch, layer_norm=layer, draw=draw, pool=pool, like=like)


def check_head(context: Context, options: Options) -> None:
    """Check that options of the head fit the network.

    Raises:
        MethodError: ``pool`` or ``head`` does not fit what local losses are computed from.
    """
    if options.pool != "average" and context.prediction.kind == "dense":
        raise MethodError(f"pool={options.pool!r} has no effect on local losses on maps", remedy="Leave pool out")
    if options.pool == "token" and not tokens_with_class(context.network):
        raise MethodError(
            "pool='token' needs a class token, and the model's own classifier reads none",
            remedy="Give pool='average' or pool='attention'",
        )
    own = prediction_of(context.network.shapes.output)
    if options.head == "classifier" and (own != context.prediction or own.kind != "vector"):
        raise MethodError(
            "head='classifier' copies the model's own classifier, and it gives no vector of logits",
            why=f"the model returns {context.network.shapes.output}",
            remedy="Leave head='linear'",
        )
