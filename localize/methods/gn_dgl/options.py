"""Options of GN-DGL (:mod:`localize.methods.gn_dgl.rule`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from localize.methods.options import (
    is_number,
    is_whole,
    require_bool,
    require_count,
    require_one_of,
    require_weight,
)
from passes.errors import MethodError

HeadKind = Literal["decoupled", "joint"]
"""How the classifier is trained."""
NetworkKind = Literal["conv", "dgl", "predsim"]
"""Form of the groups' auxiliary networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """GN-DGL's options; defaults are those of the paper's multi-layer experiments (section 4.2).

    Raises:
        MethodError: A value is out of its range.
    """

    groups: int | Sequence[int] = 2
    """G: groups of neurons in each local module; or the groups of each module, such as (2, 4, 2, 1). 1 leaves a module
    whole; with 1 everywhere the user's own model is trained."""
    stop_gradient: bool = True
    """Whether each group's auxiliary network reads the other groups' channels too, detached (section 3.3)."""
    diversity: float = 0.5
    """Weight of the diversity-promoting penalty (section 3.4); 0 leaves it out."""
    temperature: float = 3.0
    """Temperature of the softmax in the penalty."""
    auxiliary: NetworkKind = "conv"
    """Auxiliary networks, and their losses: ``"conv"``, a strided 3x3 convolution and two linear layers; those of
    method ``"dgl"``; or those of ``"predsim"``, similarity loss included (section 4.1)."""
    hidden: int = 128
    """Width of the hidden linear layer of ``"conv"``."""
    head: HeadKind = "decoupled"
    """``"decoupled"``: the classifier is a module of its own, and the last layers learn from auxiliary networks
    (section 3.2). ``"joint"``: the last module stays whole and is trained with the classifier by the output loss."""

    def __post_init__(self) -> None:
        groups = self.groups
        if isinstance(groups, (list, tuple)):
            # A plan must compare equal to one that was read from JSON, which has lists only.
            object.__setattr__(self, "groups", tuple(groups))
        each = self.groups if isinstance(self.groups, tuple) else (self.groups,)
        if not each or not all(is_whole(count, 1) for count in each):
            raise MethodError(f"groups must be an integer >= 1, or one for each module, got {groups!r}")
        require_bool("stop_gradient", self.stop_gradient)
        require_weight("diversity", self.diversity)
        if not is_number(self.temperature) or self.temperature <= 0:
            raise MethodError(f"temperature must be a number > 0, got {self.temperature!r}")
        require_count("hidden", self.hidden, 1)
        require_one_of("auxiliary", self.auxiliary, get_args(NetworkKind))
        require_one_of("head", self.head, get_args(HeadKind))
