"""Backpropagation, the yardstick for local rules: one local module without auxiliary network, with two memory profiles.

``bp`` keeps every activation. ``checkpoint`` is backpropagation with activation checkpointing (Chen, Xu, Zhang,
Guestrin: "Training Deep Nets with Sublinear Memory Cost", 2016): each local layer is one segment, only the tensors that
cross between layers are kept, and the backward pass computes the rest again, for the price of one more forward pass.
Its gradients are those of ``bp``, bit for bit, and running statistics move once a step.
"""

from __future__ import annotations

import dataclasses

from localize.methods.base import Context, Method, group_name
from localize.plan.plan import LocalModulePlan
from passes.errors import MethodError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Backpropagation has no options."""


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Plan one module with all layers and the classifier.

    Raises:
        MethodError: More than one module is asked for.
    """
    return (_whole(context, "bp"),)


def plan_checkpointed(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Plan one module with all layers and the classifier, whose activations are computed again in the backward pass.

    Raises:
        MethodError: More than one module is asked for.
    """
    return (dataclasses.replace(_whole(context, "checkpoint"), recompute=("layers",)),)


def _whole(context: Context, name: str) -> LocalModulePlan:
    """Return the only module: the whole network.

    Raises:
        MethodError: More than one module is asked for.
    """
    if context.groups is not None and len(context.groups) > 1:
        raise MethodError(
            f"method {name!r} trains one module, and {len(context.groups)} were asked for",
            why="it has no local losses",
            remedy="Leave modules out",
        )
    layers = tuple(range(len(context.network.layers)))
    return LocalModulePlan(index=0, name=group_name(context.network, layers), layers=layers)


METHOD = Method(
    name="bp",
    Options=Options,
    plan=plan,
    local=False,
    about="Backpropagation: one local module, no auxiliary network. The yardstick, in the same training loop.",
)
CHECKPOINT = Method(
    name="checkpoint",
    Options=Options,
    plan=plan_checkpointed,
    local=False,
    about="Backpropagation with activation checkpointing: the honest rival in memory.",
)
