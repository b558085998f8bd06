"""``Runtime``: options that may make steps faster. They are no part of the plan, and do not change what is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from passes.errors import LocalizeError


class OptionError(LocalizeError):
    """A runtime or one of its options is unknown, or has a value that it cannot have."""


DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How training steps run. The default is the plain schedule: PyTorch's own operations, one after the other.

    An option that is None is chosen by device (:func:`localize.runtime.schedule.choose`), and ``print(local.runtime)``
    says what was chosen and why. Results are those of the plain schedule bit for bit, except as noted at an option.

    >>> print(Runtime(channels_last=True, amp="bfloat16"))
    Runtime(channels_last=True, amp='bfloat16')

    Raises:
        OptionError: An option has a value that it cannot have.
    """

    compile: bool | None = False
    """Whether local modules run compiled, one artefact for each distinct block. Losses and gradients are those of the
    plain schedule within rounding (float32: about 1e-5 of their size, more after many layers), and running statistics
    move once a step; dropout draws from the same generator. Takes effect in train mode with gradients only. Each loss
    can go backward once: ``retain_graph`` is not supported."""

    backend: str | Callable[..., object] = "inductor"
    """Backend of ``torch.compile``. With ``"eager"`` and ``"aot_eager"``, for debugging, results are bit-identical."""

    channels_last: bool | None = False
    """Whether images and weights lie in memory with channels last. Results are equal within rounding, as for
    ``compile``, except with dropout: it draws in the order of memory, so its masks differ. Weights are the same
    parameters with the same values, and keep this layout until another runtime is set. Torch's fused optimizers compute
    wrongly if the layout changes after their first step; those of :func:`localize.runtime.optimizers.build` do not.
    Turned off on CPUs for networks that torch computes wrongly in this layout (:mod:`localize.runtime.layout`)."""

    amp: str | None = None
    """``"bfloat16"`` or ``"float16"``: forward passes and losses run under autocast, one region a module; backward
    passes run outside. Rounds to 8 or 11 bits, so it must be asked for; float16 needs a ``GradScaler``."""

    fused: bool | None = False
    """Whether optimizers of :func:`localize.runtime.optimizers.build` update all parameters in one kernel. Weights are
    equal within rounding: about 1e-6 of a weight after a step."""

    def __post_init__(self) -> None:
        for name in ("compile", "channels_last", "fused"):
            value = getattr(self, name)
            if value not in (None, True, False):
                raise OptionError(f"{name} must be True, False or None, got {value!r}")
        if self.amp not in (None, *DTYPES):
            raise OptionError(f"unknown amp {self.amp!r}", remedy=f"Known: {', '.join(DTYPES)}")
        if not isinstance(self.backend, str) and not callable(self.backend):
            raise OptionError(f"backend must be a name or a function, got {self.backend!r}")

    def __str__(self) -> str:
        """Return the options that differ from the default."""
        plain = Runtime()
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = [f"{name}={value!r}" for name, value in values.items() if value != getattr(plain, name)]
        return f"Runtime({', '.join(changed)})"


PLAIN = Runtime()
AUTO = Runtime(compile=None, channels_last=None, fused=None)
NAMED = {"plain": PLAIN, "auto": AUTO, "compile": replace(PLAIN, compile=True)}
"""Runtimes that have a name."""


def read_runtime(asked: str | Runtime) -> Runtime:
    """Return the options that a name stands for; options are returned as they are.

    >>> read_runtime("compile")
    Runtime(compile=True, backend='inductor', channels_last=False, amp=None, fused=False)

    Raises:
        OptionError: ``asked`` is neither a known name nor a Runtime.
    """
    if isinstance(asked, Runtime):
        return asked
    options = NAMED.get(asked) if isinstance(asked, str) else None
    if options is None:
        raise OptionError(f"unknown runtime {asked!r}", remedy=f"Known: {', '.join(NAMED)}, or a localize.Runtime(...)")
    return options
