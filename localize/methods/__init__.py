"""Learning rules, and the building blocks for rules of one's own. May import ``localize.plan`` and ``passes``.

A rule is one file and one line in :data:`RULES`; a rule from outside is a :class:`Method` object in any file, given to
``localize(model, method=rule)``: see docs/guide/writing-a-method.md. Names are found on first use, so that the command
line knows the rules without loading torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from localize.methods.base import (
        ChosenMethod,
        Context,
        Method,
        group_name,
        read_options,
        trained_layers,
        with_depth,
    )
    from localize.methods.layerwise import Place, plan_modules, ramp, require_vector
    from localize.methods.networks.blocks import AuxiliaryBlocks
    from localize.methods.networks.dense import ToGrid
    from localize.methods.networks.features import Features, features_of
    from localize.methods.networks.heads import build_head, describe_head, head_cost
    from localize.methods.networks.linear import build_block, build_linear, build_two_linear, describe_two_linear
    from localize.methods.networks.local_loss import Batch, Supervising, Term, WithTerms, supervise
    from localize.methods.networks.losses import Criterion, cross_entropy
    from localize.methods.networks.pooling import build_pool, describe_pool, pool_cost
    from localize.methods.networks.terms import one_hot, reconstruction_loss, similarity_loss, similarity_matrix
    from localize.methods.options import (
        is_number,
        is_whole,
        join_options,
        part_of,
        require_bool,
        require_count,
        require_one_of,
        require_weight,
    )
    from localize.plan.records import Auxiliary, AuxiliaryBlock, Cascade, LocalModulePlan, LossTerm
    from passes.common.initializer import Initializer, bare
    from passes.layers.plain_blocks import Plain, build_plain, stack

    METHODS: Mapping[str, Method[Any]]


class Rule(NamedTuple):
    """Where a learning rule is defined."""

    home: str
    """Module under ``localize.methods``, a colon, and the name of the :class:`Method` in it."""
    words: str
    """The rule in a few words, for the command line's completion."""


RULES = {
    "auglocal": Rule("auglocal.rule:METHOD", "copies of later layers"),
    "auglocal+infopro": Rule("auglocal.with_infopro:METHOD", "AugLocal, with reconstruction"),
    "bp": Rule("bp:METHOD", "backpropagation"),
    "checkpoint": Rule("bp:CHECKPOINT", "backpropagation, activations computed again"),
    "dgl": Rule("dgl:METHOD", "1x1 convolutions, then linear layers"),
    "dgl+mlaan": Rule("mlaan.rule:DGL", "DGL, with cascades and leaps"),
    "gn-dgl": Rule("gn_dgl.rule:METHOD", "groups of neurons, each with a loss"),
    "infopro": Rule("infopro:METHOD", "a small classifier, and reconstruction"),
    "infopro+mlaan": Rule("mlaan.rule:INFOPRO", "InfoPro, with cascades and leaps"),
    "mlaan": Rule("mlaan.rule:METHOD", "cascades and leaps"),
    "predsim": Rule("predsim:METHOD", "a linear classifier, and similarity matching"),
}
"""Learning rules of this package by the names of their methods."""

__all__ = [
    "METHODS",
    "RULES",
    "Auxiliary",
    "AuxiliaryBlock",
    "AuxiliaryBlocks",
    "Batch",
    "Cascade",
    "ChosenMethod",
    "Context",
    "Criterion",
    "Features",
    "Initializer",
    "LocalModulePlan",
    "LossTerm",
    "Method",
    "Place",
    "Plain",
    "Rule",
    "Supervising",
    "Term",
    "ToGrid",
    "WithTerms",
    "bare",
    "build_block",
    "build_head",
    "build_linear",
    "build_plain",
    "build_pool",
    "build_two_linear",
    "cross_entropy",
    "describe_head",
    "describe_pool",
    "describe_two_linear",
    "features_of",
    "get_method",
    "group_name",
    "head_cost",
    "is_number",
    "is_whole",
    "join_options",
    "one_hot",
    "part_of",
    "plan_modules",
    "pool_cost",
    "ramp",
    "read_options",
    "reconstruction_loss",
    "require_bool",
    "require_count",
    "require_one_of",
    "require_vector",
    "require_weight",
    "similarity_loss",
    "similarity_matrix",
    "stack",
    "supervise",
    "trained_layers",
    "with_depth",
]

_HOMES = (
    "localize.methods.base",
    "localize.methods.layerwise",
    "localize.methods.networks.blocks",
    "localize.methods.networks.dense",
    "localize.methods.networks.features",
    "localize.methods.networks.heads",
    "localize.methods.networks.linear",
    "localize.methods.networks.local_loss",
    "localize.methods.networks.losses",
    "localize.methods.networks.pooling",
    "localize.methods.networks.terms",
    "localize.methods.options",
    "localize.plan.records",
    "passes.common.initializer",
    "passes.layers.plain_blocks",
)
"""Modules that define the building blocks."""


def get_method(name: str) -> Method[Any]:
    """Return the learning rule of that name.

    Raises:
        MethodError: The name is unknown; the message lists the known ones.

    >>> get_method("dgl").Options()
    Options(convolutions=3, hidden=2, hidden_width=None)
    """
    if name not in RULES:
        from passes.errors import MethodError

        raise MethodError(f"unknown method {name!r}", remedy=f"Known methods: {', '.join(RULES)}")
    module, _, attribute = RULES[name].home.partition(":")
    method: Method[Any] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    assert method.name == name, f"RULES lists {method.name!r} as {name!r}"
    return method


def _find(name: str) -> object:
    """Return a name of this package on its first use (PEP 562)."""
    if name == "METHODS":
        value: object = {rule: get_method(rule) for rule in RULES}
    elif name in __all__:
        home = next(module for module in map(importlib.import_module, _HOMES) if name in vars(module))
        value = vars(home)[name]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a checker that saw it would take any name for one of the package's
    __getattr__ = _find
