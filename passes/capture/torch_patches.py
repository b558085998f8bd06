"""Patches of torch while tracing, so that what fx would miss is rejected or recorded."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sized
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.utils.checkpoint import CheckpointFunction

from passes.capture.size_decisions import Undecided

_MADE_OF_SIZES = (
    "arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "randperm", "tensor",
    "tril_indices", "triu_indices", "zeros",
)  # fmt: skip
"""Functions of torch that make a tensor from numbers and do not accept a proxy unless they are patched."""


class Recorder(Protocol):
    """A tracer, which records operations."""

    deciding: bool
    """Whether code runs on values now, so that nothing may be recorded."""

    def assign(self, owner: nn.Module, name: str, value: fx.Proxy) -> None:
        """Record ``owner.name = value``, where ``name`` is a buffer."""

    def is_number(self, obj: fx.Proxy) -> bool:
        """Return whether a proxy is known to stand for a number."""

    def create_proxy(
        self, kind: str, target: fx.node.Target, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Any:
        """Record a node and return its proxy."""


@contextlib.contextmanager
def slow_attention() -> Iterator[None]:
    """Turn off torch's inference-only fast path of attention, whose conditions cannot be traced."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def patched(tracer: Recorder) -> Iterator[None]:
    """Patch torch inside: assignments to buffers and functions that create tensors are recorded.

    Two things that a graph does not show raise :class:`Undecided`, so that the module becomes a leaf: a function with a
    backward of its own, and a change of autocasting. Of torch's activation checkpointing only the function that it runs
    is recorded.

    Args:
        tracer: The tracer that is recording.
    """
    set_attribute, apply = nn.Module.__setattr__, torch.autograd.Function.__dict__["apply"]
    enter = torch.amp.autocast_mode.autocast.__enter__

    def assign(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and name in module._buffers:
            tracer.assign(module, name, value)
        else:
            set_attribute(module, name, value)

    def apply_traced(cls: Any, *args: Any, **kwargs: Any) -> object:
        if not _holds_proxy((args, kwargs)):
            # A method of C in some versions of torch, which has no __func__.
            return apply.__get__(None, cls)(*args, **kwargs)
        if cls is CheckpointFunction:
            return args[0](*args[2:], **kwargs)
        if cls.__module__ == CheckpointFunction.__module__:
            # A result without grad_fn makes torch run the checkpointed function as it is.
            return torch.empty(0)
        raise Undecided(f"it calls {cls.__name__}, whose backward pass a graph does not show")

    def enter_traced(mode: torch.autocast) -> object:
        if tracer.deciding:
            return enter(mode)
        raise Undecided("it changes autocasting, which a graph does not show")

    patches: tuple[tuple[type | ModuleType, str, object], ...] = (
        (nn.Module, "__setattr__", assign),
        (torch.autograd.Function, "apply", classmethod(apply_traced)),
        (torch.amp.autocast_mode.autocast, "__enter__", enter_traced),
        *((torch, name, _recorded(tracer, getattr(torch, name))) for name in _MADE_OF_SIZES),
    )
    before = [owner.__dict__[name] for owner, name, _ in patches]
    try:
        for owner, name, value in patches:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(patches, before, strict=True):
            setattr(owner, name, value)


class Builtins:
    """Replaces ``len`` and ``int`` in the Python modules whose code is traced.

    ``x.view(len(x), -1)`` and ``int(x.shape[0])`` are then recorded, and hold for every batch size.
    """

    def __init__(self, tracer: Recorder) -> None:
        def length(value: Sized | fx.Proxy) -> object:
            return (
                tracer.create_proxy("call_function", len, (value,), {}) if isinstance(value, fx.Proxy) else len(value)
            )

        class Kind(type):
            def __call__(cls, *args: Any, **kwargs: Any) -> object:
                if args and isinstance(args[0], fx.Proxy) and tracer.is_number(args[0]):
                    return tracer.create_proxy("call_function", int, args, kwargs)
                return int(*args, **kwargs)

            def __instancecheck__(cls, instance: object) -> bool:
                return isinstance(instance, int)

            def __subclasscheck__(cls, subclass: type) -> bool:
                return issubclass(subclass, int)

            def __eq__(cls, other: object) -> bool:
                return other is cls or other is int

            def __hash__(cls) -> int:
                return hash(int)

        self.replaced = {"len": length, "int": Kind("int", (int,), {})}
        self.changed: list[tuple[dict[str, object], str]] = []

    def replace_in(self, function: Callable[..., object]) -> None:
        """Replace both functions in the file that ``function`` is from, unless it belongs to torch or this package."""
        names = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__globals__", None)
        if names is None or str(names.get("__name__")).startswith(("torch.", "passes.")):
            return
        for name, value in self.replaced.items():
            if name not in names:
                names[name] = value
                self.changed.append((names, name))

    def restore(self) -> None:
        """Remove all replacements."""
        for names, name in self.changed:
            names.pop(name, None)
        self.changed.clear()


def _recorded(tracer: Recorder, function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def record(*args: object, **kwargs: object) -> object:
        if not _holds_proxy((args, kwargs)):
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return record


def _holds_proxy(value: object) -> bool:
    if isinstance(value, fx.Proxy):
        return True
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return any(_holds_proxy(item) for item in items)
