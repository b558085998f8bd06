"""``Compiled``: what a localized model was compiled from. Copies, forecasts and exports start from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn

from localize.methods.base import ChosenMethod, Context
from localize.methods.networks.losses import Criteria, Criterion
from localize.plan.plan import Plan
from passes.adapt.adapter import Adapter
from passes.ir import Network


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compiled:
    """The source of a localized model: everything that its plan and its code were made of."""

    method: ChosenMethod
    """The learning rule and its options."""
    context: Context
    """What the rule planned on: the network that is trained, its layers, and their grouping."""
    criteria: Criteria
    """The user's losses."""
    original: Network | None
    """The network of the user's model, where the rule trains another one made of it."""
    emit: Callable[[Plan, Compiled], fx.GraphModule]
    """The compiler's last stage, which makes a localized model of a plan and this record; copies are made by it."""

    @property
    def network(self) -> Network:
        """The network that is trained."""
        return self.context.network

    def on(self, network: Network) -> Compiled:
        """Return the same record for another network of the same layers."""
        return dataclasses.replace(
            self, context=dataclasses.replace(self.context, network=network, adapter=Adapter(network))
        )

    def over(self, model: nn.Module, output: Criterion | None) -> Compiled:
        """Return the same record over a copy of the primary network.

        Args:
            model: A copy of the primary network.
            output: The loss of the last local module, or a copy of it.
        """
        moved = self.on(
            dataclasses.replace(self.network, captured=dataclasses.replace(self.network.captured, model=model))
        )
        return dataclasses.replace(moved, criteria=dataclasses.replace(self.criteria, output=output))
