"""Errors for users: what is wrong, where, why, and what to do next. Bugs of the compiler are assertions instead."""

from __future__ import annotations

import torch


class LocalizeError(ValueError):
    """Base class of all errors that a user can cause and mend.

    Args:
        what: What is wrong, in one clause.
        where: Path of the module in the user's model, such as ``layer1.0``.
        source: Line of the user's code, such as ``file.py:12``.
        why: The cause, when it is not evident from ``what``.
        remedy: What to do next.

    >>> print(LocalizeError("stride must be 1", where="layer1.0", source="net.py:12", why="it is 2"))
    stride must be 1 (in layer1.0, at net.py:12): it is 2
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
    """Return the first line of an error's message; its class where the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on any device: the CPU's allocator has no class for it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


class OutOfMemoryError(LocalizeError, torch.OutOfMemoryError):
    """A training step needs more memory than there is.

    It is also one of torch's own errors and quotes the original message, so that programs which look for the largest
    batch size by trial recognize it.
    """


class CaptureError(LocalizeError):
    """The model cannot be turned into a graph."""

    opaque: tuple[object, ...] = ()
    """Submodules that had been found untraceable before this error."""


class PartitionError(LocalizeError):
    """The graph cannot be cut as asked."""


class AdaptError(LocalizeError):
    """A layer cannot be made to fit after another input."""


class SplitError(LocalizeError):
    """The layers of a network cannot be split into groups of channels."""


class MethodError(LocalizeError):
    """A learning rule is unknown, or does not work with these options or this model."""


class InputError(LocalizeError):
    """A tensor given to the localized model has a wrong shape, type or value."""


class PlanError(LocalizeError):
    """A plan cannot be read, or does not belong to this model."""
