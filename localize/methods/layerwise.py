"""Plan local modules for rules whose auxiliary networks depend on the features of one layer alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from localize.methods.base import Context, group_name, trained_layers
from localize.plan.grouping import join_untrained
from localize.plan.records import Auxiliary, LocalModulePlan
from passes.errors import MethodError


@dataclass(frozen=True, slots=True)
class Place:
    """Position of an auxiliary network among the local modules."""

    index: int
    """Index of the local module that it trains."""
    modules: int
    """Number of local modules, K."""
    layer: int
    """Index of the local layer whose output it reads."""


def plan_modules(context: Context, auxiliary: Callable[[Place], Auxiliary]) -> tuple[LocalModulePlan, ...]:
    """Plan local modules: the user's groups of layers, or else one module a layer.

    By default a layer whose parameters are all frozen joins the next layer that learns.

    Args:
        context: What to plan on.
        auxiliary: Describes the auxiliary network at a place; called for each module but the last.
    """
    network = context.network
    groups = context.groups or tuple((layer,) for layer in range(len(network.layers)))
    if context.groups is None:
        groups = join_untrained(groups, trained_layers(network))
    planned = []
    for index, layers in enumerate(groups):
        last = index == len(groups) - 1
        described = None if last else auxiliary(Place(index, len(groups), layers[-1]))
        planned.append(
            LocalModulePlan(index=index, name=group_name(network, layers), layers=layers, auxiliary=described)
        )
    return tuple(planned)


def ramp(first: float, last: float, place: Place) -> float:
    """Return a weight that is linear in the index of the module.

    Args:
        first: Weight in the first module.
        last: Weight in the last module with an auxiliary network, K - 2.
        place: Position of the auxiliary network.

    >>> [ramp(5.0, 1.0, Place(index, 4, index)) for index in range(3)]
    [5.0, 3.0, 1.0]
    """
    steps = place.modules - 2
    return first + (last - first) * place.index / steps if steps > 0 else first


def require_vector(context: Context, method: str, why: str) -> None:
    """Refuse networks that predict maps of logits.

    Args:
        context: What to plan on.
        method: Name of the method, for the error.
        why: Reason why the method needs a vector of logits, for the error.

    Raises:
        MethodError: Local losses are computed from maps.
    """
    if context.prediction.kind == "dense":
        raise MethodError(
            f"method {method!r} is for networks that classify images, and this one predicts {context.prediction}",
            why=why,
            remedy="Use method='auglocal', 'auglocal+infopro', 'infopro' or 'bp'",
        )
