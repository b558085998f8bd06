"""What a learning rule is: options and a few functions, listed in :data:`localize.methods.METHODS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from localize.plan.plan import LocalModulePlan
from localize.plan.prediction import Prediction
from passes.adapt.adapter import Adapter
from passes.common.initializer import Initializer
from passes.common.parameters import own_tensors
from passes.errors import MethodError
from passes.ir import Network


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What a method plans on."""

    network: Network
    adapter: Adapter
    prediction: Prediction
    """What heads are made for: the form of the primary network's output."""
    groups: tuple[tuple[int, ...], ...] | None
    """The user's grouping of layers; None where the method decides."""
    merging: Callable[[Sequence[Sequence[int]]], Sequence[int]]
    """For groups of layers, from the first: the multiply-accumulates of merging what leaves each one, where several
    tensors do. They come on top of what the method plans."""


Builder = Callable[[Context, LocalModulePlan, Any, Initializer], nn.Module | None]
"""Makes an auxiliary network of a planned module."""


def _no_network(context: Context, module: LocalModulePlan, options: Any, draw: Initializer) -> None:
    """A rule without cascades."""


def _no_model(context: Context, options: Any, draw: Initializer) -> None:
    """A rule that trains the model as it is."""


def _nothing(local: Any, context: Context, options: Any) -> None:
    """A rule that does nothing beside losses."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A learning rule; each file of this package defines one as ``METHOD``."""

    Options: type[Any]
    """Frozen dataclass; its defaults are the paper's."""
    plan: Callable[[Context, Any], tuple[LocalModulePlan, ...]]
    """Local modules in order, the last without auxiliary network; ``parameters`` are filled in by the caller."""
    build: Builder
    """The auxiliary network of a planned module, from the module's output to the prediction; a
    :class:`localize.methods.networks.local_loss.Supervising` one where the local loss is more than the criterion of
    that."""
    local: bool = True
    """Whether it has local losses; backpropagation has none."""
    build_cascaded: Builder = _no_network
    """The auxiliary network of the cascaded loss, for modules planned with a cascade."""
    attach: Callable[[Any, Context, Any], None] = _nothing
    """Called with the finished ``LocalGraphModule``, for what a rule does beside losses."""
    prepare: Callable[[Context, Any, Initializer], nn.Module | None] = _no_model
    """The primary network to train in place of the user's, where the rule changes it; None to train the user's. It is
    analysed anew, and has the same layers in the same groups, if its graph is the same."""


def read_options(name: str, kind: type[Any], given: Mapping[str, Any]) -> Any:
    """Makes a method's options, refusing unknown ones with the list of the known.

    Raises:
        MethodError: An option is unknown or has a value that ``kind`` refuses.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = [key for key in given if key not in known]
    if unknown:
        options = ", ".join(known) if known else "none"
        raise MethodError(
            f"method {name!r} has no option {', '.join(map(repr, unknown))}", remedy=f"Its options: {options}"
        )
    return kind(**given)


def with_depth(kind: type[Any], d: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, and the depth first where the method has one."""
    has_depth = "d" in {field.name for field in dataclasses.fields(kind)}
    return {**({"d": d} if has_depth else {}), **given}


def group_name(network: Network, layers: Sequence[int]) -> str:
    """Name of a local module: its layer's, or the first and the last one's; without layers it is the classifier."""
    if not layers:
        return "classifier"
    first, last = network.layers[layers[0]].name, network.layers[layers[-1]].name
    return first if len(layers) == 1 else f"{first}..{last}"


def trained_layers(network: Network) -> list[bool]:
    """For each local layer whether it has trainable parameters, also such that it shares with others."""
    captured, part = network.captured, network.partition
    found = []
    for names in part.nodes:
        nodes = {*names, *captured.feeding(names, part.shared)}
        tensors = (t for name in nodes for t in own_tensors(captured, captured.by_name[name]))
        found.append(any(t.requires_grad for t in tensors))
    return found
