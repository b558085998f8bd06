"""``Runtime``: what may make steps faster. None of it is in the plan, and none of it changes what is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from passes.errors import LocalizeError


class OptionError(LocalizeError):
    """An option of the runtime is unknown or out of range."""


DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How training steps run. The default is the plain schedule: PyTorch's own operations, one after the other.

    An option that is None is chosen by device (:func:`localize.runtime.schedule.choose`), which says what it chose and
    why. What an option does to results is said with each; everything else is the plain schedule's, bit for bit.

    Raises:
        OptionError: A value that an option cannot have.
    """

    compile: bool | None = False
    """Whether local modules run compiled, one artefact for each distinct block. Losses and gradients are those of the
    plain schedule within rounding (float32: about 1e-5 of their size, more behind many layers), and running statistics
    move once a step; dropout draws from the same generator. Takes effect in train mode with gradients only. A loss goes
    backward once: there is no ``retain_graph``."""

    backend: str | Callable[..., Any] = "inductor"
    """Of ``torch.compile``. With ``"eager"`` and ``"aot_eager"``, for debugging, results are bit for bit the same."""

    channels_last: bool | None = False
    """Whether images and weights lie in memory with channels last. Within rounding, as for ``compile``, but for
    dropout, which draws in the order of memory, and so other masks. Weights are the same parameters with the same
    values, and have this layout until another runtime is set. Torch's fused optimizers go wrong where it changes after
    their first step; those of :func:`localize.runtime.optimizers.build` do not."""

    amp: str | None = None
    """``"bfloat16"`` or ``"float16"``: forward passes and losses compute under autocast, one region a module; backward
    passes run outside. Rounds to 8 or 11 bits, so it is never chosen by itself; float16 needs a ``GradScaler``."""

    fused: bool | None = False
    """Whether optimizers that :func:`localize.runtime.optimizers.build` makes update all parameters in one kernel.
    Within rounding: about 1e-6 of a weight after a step."""

    def __post_init__(self) -> None:
        for name in ("compile", "channels_last", "fused"):
            value = getattr(self, name)
            if value not in (None, True, False):
                raise OptionError(f"{name}={value!r} is none of True, False and None")
        if self.amp not in (None, *DTYPES):
            raise OptionError(f"unknown amp {self.amp!r}", remedy=f"Known: {', '.join(DTYPES)}")
        if not isinstance(self.backend, str) and not callable(self.backend):
            raise OptionError(f"backend={self.backend!r} is neither a name nor a function")

    def __str__(self) -> str:
        """What is not as by default."""
        plain = Runtime()
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        told = [f"{name}={value!r}" for name, value in changed.items() if value != getattr(plain, name)]
        return f"Runtime({', '.join(told)})"


PLAIN = Runtime()
AUTO = Runtime(compile=None, channels_last=None, fused=None)
NAMED = {"plain": PLAIN, "auto": AUTO, "compile": replace(PLAIN, compile=True)}
"""What a name stands for."""


def read_runtime(asked: str | Runtime) -> Runtime:
    """The options of a name.

    Raises:
        OptionError: There is no such name.
    """
    if isinstance(asked, Runtime):
        return asked
    found = NAMED.get(asked) if isinstance(asked, str) else None
    if found is None:
        raise OptionError(f"unknown runtime {asked!r}", remedy=f"Known: {', '.join(NAMED)}, or a localize.Runtime(...)")
    return found
