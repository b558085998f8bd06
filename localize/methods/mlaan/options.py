"""Options of MLAAN (:mod:`localize.methods.mlaan.rule`); joined with those of the rule that it is put around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from localize.methods.options import (
    is_number,
    is_whole,
    part_of,
    require_bool,
    require_one_of,
    require_weight,
)
from passes.errors import MethodError

LeapPlace = Literal["independent", "cascaded", "both"]
"""Which auxiliary networks of a module read through copies of later layers."""

Variant = Literal["paper", "released"]
"""Whether defaults follow the paper or the released code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaanOptions:
    """MLAAN's options. Options that are None get their value from ``variant``."""

    variant: Variant = "paper"
    """``"paper"``: cascades of three modules, losses of equal weight, copies before the independent auxiliary network,
    all of them pulled. ``"released"``: cascades of two, weights 0.001 and 0.999, copies before the cascaded auxiliary
    network, where the first is added to a pulled twin and none is pulled itself."""
    mlm: bool = True
    """Multilaminar local modules: besides each module's own loss, one that reaches the modules before it too."""
    lam: bool = True
    """Leap augmented modules: copies of later layers in front of auxiliary networks."""
    k: int | None = None
    """Modules of a cascade, the paper's K: 3, or 2 as released. Cut short at the first module."""
    independent: float | None = None
    """Weight of the loss that reaches its own module alone: 0.5, or 0.001 as released. Without effect where ``mlm`` is
    off."""
    cascaded: float | None = None
    """Weight of the loss that reaches the modules of a cascade: 0.5, or 0.999 as released."""
    p: int = 4
    """The most later layers that an auxiliary network copies."""
    leap: LeapPlace | None = None
    """Which auxiliary networks copy later layers: ``"independent"``, ``"cascaded"`` (as released) or ``"both"``.
    Without effect where ``mlm`` is off: there is but one."""
    momentum: float = 0.995
    """Share of its own value that a copy keeps at each pull, after every step of an optimizer."""

    def __post_init__(self) -> None:
        require_one_of("variant", self.variant, get_args(Variant))
        released = self.variant == "released"
        usual = {
            "k": 2 if released else 3,
            "independent": 0.001 if released else 0.5,
            "cascaded": 0.999 if released else 0.5,
            "leap": "cascaded" if released else "independent",
        }
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        require_bool("mlm", self.mlm)
        require_bool("lam", self.lam)
        _require_whole("k", self.k, 2, "mlm=False trains without cascades")
        _require_whole("p", self.p, 1, "lam=False copies no layers")
        require_weight("independent", self.independent)
        require_weight("cascaded", self.cascaded)
        if self.mlm and not self.independent and not self.cascaded:
            raise MethodError("independent=0 and cascaded=0 leave no loss", remedy="Give one of them a weight")
        if not is_number(self.momentum) or not 0 <= self.momentum <= 1:
            raise MethodError(f"momentum must be a number from 0 to 1, got {self.momentum!r}")
        require_one_of("leap", self.leap, get_args(LeapPlace))

    @property
    def leaping(self) -> tuple[bool, bool]:
        """Two flags: the independent auxiliary network copies later layers; the cascaded one does."""
        if not self.lam:
            return False, False
        return not self.mlm or self.leap != "cascaded", self.leap != "independent"

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of the independent and the cascaded loss."""
        assert self.independent is not None
        assert self.cascaded is not None
        return self.independent, self.cascaded


def _require_whole(name: str, value: object, least: int, remedy: str) -> None:
    if not is_whole(value, least):
        raise MethodError(f"{name} must be an integer >= {least}, got {value!r}", remedy=remedy)


def mlaan_options(options: object) -> MlaanOptions:
    """Return MLAAN's part of the options of MLAAN around a rule."""
    return part_of(MlaanOptions, options)
