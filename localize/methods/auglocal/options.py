"""Options of AugLocal (:mod:`localize.methods.auglocal.rule`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from localize.methods.networks.pooling import POOLINGS, Pooling
from localize.methods.options import is_number, require_count, require_one_of
from passes.adapt.resolution import Policy
from passes.errors import MethodError

Selection = Literal["uniform", "sequential", "repetitive", "conv1x1", "conv3x3"]
"""Origin of the hidden layers of an auxiliary network."""


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
    classifier a norm of the kind that the primary network's own classifier has before its linear layer, if any."""
    pool: Pooling = "average"
    """What the linear classifier reads: the average over positions; ``"token"``, the class token, or the average where
    there is none yet; or ``"attention"``, the mean over positions weighted by a learned query."""
    head: Literal["linear", "classifier"] = "linear"
    """The end of an auxiliary network: a linear classifier, or a copy of the primary network's own classifier, hidden
    layers, norms and class token included, with weights of its own."""
    head_width: int | None = None
    """Width of the hidden layers of copied classifiers; None for their own."""
    selection: Selection = "uniform"
    """Hidden layers: copies of later layers spread evenly (``"uniform"``), of the layers right after, or of the last
    layer of the module, repeated; or plain 1x1 or 3x3 convolutions + norm + ReLU (linear layers where channels come
    last)."""
    width: float | None = None
    """Channels of plain convolutions as a multiple of the module's output channels; None for the width at which an
    auxiliary network costs as many multiply-accumulates as its ``"uniform"`` one, as nearly as whole channels allow."""
    downsampling: Policy = "deferred"
    """When a copy halves resolution: as often as the primary network has done by the copied layer, at most once a block
    (``"deferred"``); as often as width doubles, at most once a block (``"channels"``); as often as the primary network
    has done, all at once (``"match"``); or never."""
    max_aux_macs: int | float | None = None
    """The most multiply-accumulates of all auxiliary networks together, gamma: an integer at batch 1, or a float, a
    multiple of the primary network's; None for no limit."""
    aux_init: Literal["fresh", "copy"] = "fresh"
    """Weights of copies: drawn in the scale of the copied layer's weights, or equal to them (norm statistics included)
    where the shape is kept. Heads, projections and adapters are always drawn."""

    def __post_init__(self) -> None:
        require_count("d", self.d, 1)
        if not is_number(self.tau) or not 0 <= self.tau <= 1:
            raise MethodError(f"tau must be a number from 0 to 1, got {self.tau!r}")
        require_one_of("last", self.last, ("joint", "single"))
        require_one_of("selection", self.selection, get_args(Selection))
        require_one_of("downsampling", self.downsampling, get_args(Policy))
        require_one_of("aux_init", self.aux_init, ("fresh", "copy"))
        require_one_of("pool", self.pool, POOLINGS)
        require_one_of("head", self.head, ("linear", "classifier"))
        self._check_head()
        self._check_width()
        if self.max_aux_macs is not None and not _is_budget(self.max_aux_macs):
            raise MethodError(
                f"max_aux_macs must be an integer > 0, got {self.max_aux_macs!r}",
                remedy="Give multiply-accumulates, or a float between 0 and 1000: a multiple of the primary network's",
            )

    def _check_head(self) -> None:
        require_count("head_width", self.head_width, 1, optional=True)
        if self.head_width is not None and self.head == "linear":
            raise MethodError(
                f"head_width={self.head_width!r} has no effect with head='linear'",
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
            raise MethodError(f"width must be a number > 0 or None, got {self.width!r}")
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


def _is_budget(value: object) -> bool:
    # A float such as 1e9 is a slip: as a multiple of the primary network's cost it would bound nothing.
    return is_number(value) and value > 0 and (isinstance(value, int) or value < 1000)
