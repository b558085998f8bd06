"""Errors for users: what is wrong, where, why, and what to do next. Bugs of our own are assertions instead."""

from __future__ import annotations

from typing import Any

import torch


class LocalizeError(ValueError):
    """Root of every error that a user of the compiler can cause and mend.

    Args:
        what: The fact, in one clause.
        where: Module path in the user's model, such as ``layer1.0``.
        source: Source line, ``file.py:12``.
        why: The cause, when it is not evident from ``what``.
        remedy: What to do next.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        source: str | None = None,
        why: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.source = source
        self.why = why
        self.remedy = remedy
        super().__init__(self._text())

    @property
    def reason(self) -> str:
        """Fact and cause, without place and remedy."""
        return f"{self.what}: {self.why}" if self.why else self.what

    def _text(self) -> str:
        place = ", ".join(
            part for part in (self.where and f"in {self.where}", self.source and f"at {self.source}") if part
        )
        text = self.what + (f" ({place})" if place else "")
        if self.why:
            text += f": {self.why}"
        text = " ".join(text.split())
        if self.remedy:
            text += f". {self.remedy}" if not text.endswith((".", "?", "!")) else f" {self.remedy}"
        return text


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, in one line; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error is for want of memory, on whatever device: the CPU's allocator has no class of its own."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


class OutOfMemoryError(LocalizeError, torch.OutOfMemoryError):
    """A training step needs more memory than there is.

    Also one of torch's, with the original's words in it, so that what looks for the largest batch by trial finds it.
    """


class CaptureError(LocalizeError):
    """The model cannot be turned into a graph."""

    opaque: tuple[Any, ...] = ()
    """Submodules found untraceable before."""


class PartitionError(LocalizeError):
    """The graph cannot be cut as asked."""


class AdaptError(LocalizeError):
    """A layer cannot be made to fit behind another input."""


class SplitError(LocalizeError):
    """The layers of a network cannot be split in groups of channels."""


class MethodError(LocalizeError):
    """A learning rule is unknown, or its options or the model do not fit it."""


class InputError(LocalizeError):
    """A tensor handed to the localized model does not fit it."""


class PlanError(LocalizeError):
    """A plan cannot be read, or does not belong to this model."""
