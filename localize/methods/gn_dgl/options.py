"""What a user may choose of GN-DGL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from localize.methods.options import is_number, is_whole
from passes.errors import MethodError

Head = Literal["decoupled", "joint"]
Kind = Literal["conv", "dgl", "predsim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """GN-DGL's options; defaults are those of the paper's multi-layer experiments (section 4.2).

    Raises:
        MethodError: A value is not possible.
    """

    groups: int | Sequence[int] = 2
    """G: groups of neurons in each local module; or the groups of each module, such as (2, 4, 2, 1). 1 leaves a module
    whole; with 1 everywhere the user's own model is trained."""
    stop_gradient: bool = True
    """Whether each group's auxiliary network reads the other groups' channels too, detached (section 3.3)."""
    diversity: float = 0.5
    """Weight of the diversity-promoting penalty (section 3.4); 0 leaves it out."""
    temperature: float = 3.0
    """Of the softmax in the penalty."""
    auxiliary: Kind = "conv"
    """Auxiliary networks, and their losses: ``"conv"``, a strided 3x3 convolution and two linear layers; those of
    method ``"dgl"``; or those of ``"predsim"``, similarity loss included (section 4.1)."""
    hidden: int = 128
    """Width of the hidden linear layer of ``"conv"``."""
    head: Head = "decoupled"
    """``"decoupled"``: the classifier is a module of its own, and the last layers learn from auxiliary networks
    (section 3.2). ``"joint"``: the last module stays whole and is trained with the classifier by the output loss."""

    def __post_init__(self) -> None:
        """Checks values."""
        groups = self.groups
        if isinstance(groups, (list, tuple)):
            # What JSON makes of it, and what can be compared.
            object.__setattr__(self, "groups", tuple(groups))
        each = self.groups if isinstance(self.groups, tuple) else (self.groups,)
        if not each or not all(is_whole(count, 1) for count in each):
            raise MethodError(
                f"groups={groups!r} is no number of groups", remedy="Give a whole number of at least 1, or one a module"
            )
        if not isinstance(self.stop_gradient, bool):
            raise MethodError(f"stop_gradient={self.stop_gradient!r} is not possible", remedy="Give True or False")
        if not is_number(self.diversity) or self.diversity < 0:
            raise MethodError(f"diversity={self.diversity!r} is no weight", remedy="Give a number of at least 0")
        if not is_number(self.temperature) or self.temperature <= 0:
            raise MethodError(f"temperature={self.temperature!r} is not possible", remedy="Give a number above 0")
        if not is_whole(self.hidden, 1):
            raise MethodError(f"hidden={self.hidden!r} is no width", remedy="Give a whole number of at least 1")
        if self.auxiliary not in get_args(Kind):
            raise MethodError(f"auxiliary={self.auxiliary!r} is unknown", remedy="Give 'conv', 'dgl' or 'predsim'")
        if self.head not in get_args(Head):
            raise MethodError(f"head={self.head!r} is unknown", remedy="Give 'decoupled' or 'joint'")
