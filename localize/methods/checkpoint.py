"""Backpropagation with activation checkpointing: the honest rival in memory.

Chen, Xu, Zhang, Guestrin: "Training Deep Nets with Sublinear Memory Cost", 2016. Each local layer is one segment: only
what crosses between layers is kept, and the backward pass computes the rest anew, for the price of a forward pass.
Gradients are backpropagation's, bit for bit, and running statistics move once a step.
"""

from __future__ import annotations

import dataclasses

from localize.methods import bp
from localize.methods.base import Context, Method
from localize.plan.plan import LocalModulePlan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Checkpointing has no options."""


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """One module with all layers and the classifier, its activations recomputed.

    Raises:
        MethodError: Several modules were asked for.
    """
    bp.one_module(context, "checkpoint")
    (module,) = bp.plan(context, bp.Options())
    return (dataclasses.replace(module, recompute=("layers",)),)


METHOD = Method(Options=Options, plan=plan, build=bp.build, local=False)
