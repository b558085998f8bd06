"""Backpropagation: one local module, no auxiliary network. The yardstick, in the same training loop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from localize.methods.base import Context, Method, group_name
from localize.plan.plan import LocalModulePlan
from passes.common.initializer import Initializer
from passes.errors import MethodError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Backpropagation has no options."""


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """One module with all layers and the classifier.

    Raises:
        MethodError: Several modules were asked for.
    """
    one_module(context, "bp")
    layers = tuple(range(len(context.network.layers)))
    return (LocalModulePlan(0, group_name(context.network, layers), layers, None, ()),)


def one_module(context: Context, name: str) -> None:
    """Refuses several modules for a method that has no local losses.

    Raises:
        MethodError: Several were asked for.
    """
    if context.groups is not None and len(context.groups) > 1:
        raise MethodError(
            f"method {name!r} trains one module, and {len(context.groups)} were asked for",
            why="it has no local losses",
            remedy="Leave modules out",
        )


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> nn.Module | None:
    """Nothing to build."""
    return None


METHOD = Method(Options=Options, plan=plan, build=build, local=False)
