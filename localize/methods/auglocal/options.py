"""What a user may choose of AugLocal (:mod:`localize.methods.auglocal.rule`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from localize.methods.networks.pooling import POOLINGS, Pooling
from localize.methods.options import is_number, is_whole
from passes.adapt.resolution import Policy
from passes.errors import MethodError

Selection = Literal["uniform", "sequential", "repetitive", "conv1x1", "conv3x3"]
"""How the hidden layers of an auxiliary network come about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """AugLocal's options; the defaults are the paper's and the released CIFAR code's."""

    d: int = 4
    """Depth: trainable layers of an auxiliary network, its classifier included. 1 is a linear classifier."""
    tau: float = 0.5
    """Decay of depth towards the output; 0 switches the pyramid off."""
    last: Literal["joint", "single"] = "joint"
    """How many layers the output loss trains: the last d, or the last one. Without effect when ``modules`` is given."""
    head_norm: bool = True
    """Batch norm before the linear classifier of auxiliary networks with one hidden layer; and before every linear
    classifier a norm of the kind by which the primary network's own normalizes what it reads, if it does."""
    pool: Pooling = "average"
    """What the linear classifier reads of positions: their average; ``"token"``, the class token, and the average where
    there is none yet; or ``"attention"``, their mean as weighted by a learned query."""
    head: Literal["linear", "classifier"] = "linear"
    """The end of an auxiliary network: a linear classifier, or a copy of the primary network's own classifier, hidden
    layers, norms and class token included, with weights of its own."""
    head_width: int | None = None
    """Width of the hidden layers of copied classifiers; None for their own."""
    selection: Selection = "uniform"
    """Hidden layers: copies of later layers spread evenly, of those right after, or of the module's last layer, again
    and again; or plain 1x1 or 3x3 convolutions + norm + ReLU (linear layers where channels come last)."""
    width: float | None = None
    """Channels of plain convolutions as a multiple of those that the module gives; by default such that an auxiliary
    network costs as many multiply-accumulates as its ``"uniform"`` one, as nearly as whole channels allow."""
    downsampling: Policy = "deferred"
    """When a copy halves resolution: as the primary has done by the layer copied, one halving a block at most; as often
    as width doubles (``"channels"``), one a block at most; as the primary has done, at once (``"match"``); never."""
    max_aux_macs: int | float | None = None
    """The most multiply-accumulates of all auxiliary networks together, gamma: a whole number of them at batch 1, or,
    as a float, a multiple of the primary network's."""
    aux_init: Literal["fresh", "copy"] = "fresh"
    """Weights of copies: drawn anew in the scale of the copied layer's, or its very values (norm statistics included)
    where the shape is kept. Heads, projections and adapters are always drawn."""

    def __post_init__(self) -> None:
        if not is_whole(self.d, 1):
            raise MethodError(f"d={self.d!r} is no depth", remedy="Give a whole number of at least 1")
        if not is_number(self.tau) or not 0 <= self.tau <= 1:
            raise MethodError(f"tau={self.tau!r} is no decay", remedy="Give a number from 0 (no pyramid) to 1")
        _require("last", self.last, ("joint", "single"))
        _require("selection", self.selection, get_args(Selection))
        _require("downsampling", self.downsampling, get_args(Policy))
        _require("aux_init", self.aux_init, ("fresh", "copy"))
        if self.pool not in POOLINGS:
            raise MethodError(f"pool={self.pool!r} is unknown", remedy=f"Give one of {', '.join(map(repr, POOLINGS))}")
        _require("head", self.head, ("linear", "classifier"))
        self._check_head()
        self._check_width()
        if self.max_aux_macs is not None and not _is_budget(self.max_aux_macs):
            raise MethodError(
                f"max_aux_macs={self.max_aux_macs!r} is no budget",
                remedy="Give a whole number of multiply-accumulates, or a float below 1000: a multiple of the primary "
                "network's",
            )

    def _check_head(self) -> None:
        width = self.head_width
        if width is not None and not is_whole(width, 1):
            raise MethodError(f"head_width={width!r} is no width", remedy="Give a whole number of at least 1")
        if width is not None and self.head == "linear":
            raise MethodError(
                f"head_width={width!r} has no effect with head='linear'",
                why="a linear classifier has no hidden layers",
                remedy="Leave it out, or choose head='classifier'",
            )
        if self.head == "classifier" and self.pool != "average":
            raise MethodError(
                f"pool={self.pool!r} has no effect with head='classifier'",
                why="a copied classifier pools as the model's own does",
                remedy="Leave pool out, or choose head='linear'",
            )

    def _check_width(self) -> None:
        if self.width is not None and not (is_number(self.width) and self.width > 0):
            raise MethodError(f"width={self.width!r} is no multiple of a width", remedy="Give a number above 0")
        copied = self.selection not in ("conv1x1", "conv3x3")
        if copied and self.width is not None:
            raise MethodError(
                f"width={self.width!r} has no effect with selection={self.selection!r}",
                why="copied layers have the width of the layers they copy",
                remedy="Leave it out, or choose selection='conv1x1' or 'conv3x3'",
            )
        if not copied and self.aux_init == "copy":
            raise MethodError(
                f"aux_init='copy' has no effect with selection={self.selection!r}",
                why="plain convolutions copy no layer",
                remedy="Leave it out, or choose another selection",
            )


def _is_budget(value: Any) -> bool:
    # A float such as 1e9 is a slip: as a multiple of the primary network's cost it would bound nothing.
    return is_number(value) and value > 0 and (isinstance(value, int) or value < 1000)


def _require(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        options = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        raise MethodError(f"{name}={value!r} is unknown", remedy=f"Give {options}")
