"""While tracing: what fx lets pass is caught, or recorded."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.utils.checkpoint import CheckpointFunction

from passes.capture.size_decisions import Undecided

_MADE_OF_SIZES = (
    "arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "randperm", "tensor",
    "tril_indices", "triu_indices", "zeros",
)  # fmt: skip
"""Functions of torch that make a tensor from numbers: they take no proxy of their own accord."""


class Recorder(Protocol):
    """What records: a tracer."""

    deciding: bool
    """Whether code runs for real just now."""

    def assign(self, owner: nn.Module, name: str, value: fx.Proxy) -> None:
        """Records ``owner.name = value``, where ``name`` is a buffer."""

    def is_number(self, obj: fx.Proxy) -> bool:
        """Whether a proxy is known to stand for a number."""

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Records a node."""


@contextlib.contextmanager
def slow_attention() -> Iterator[None]:
    """Turns off torch's inference-only fast path of attention, whose conditions cannot be traced."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def watched(tracer: Recorder) -> Iterator[None]:
    """Catches assignments to buffers, functions with a backward of their own and autocast; records new tensors."""
    set_attribute, apply = nn.Module.__setattr__, torch.autograd.Function.apply
    enter = torch.amp.autocast_mode.autocast.__enter__

    def assign(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and name in module._buffers:
            tracer.assign(module, name, value)
        else:
            set_attribute(module, name, value)

    def apply_traced(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if not _holds_proxy((args, kwargs)):
            return apply.__func__(cls, *args, **kwargs)
        if cls is CheckpointFunction:
            return args[0](*args[2:], **kwargs)
        if cls.__module__ == CheckpointFunction.__module__:
            # Without a grad_fn it makes torch run the checkpointed function as it is.
            return torch.empty(0)
        raise Undecided(f"it calls {cls.__name__}, whose backward pass a graph does not show")

    def enter_traced(mode: Any) -> Any:
        if tracer.deciding:
            return enter(mode)
        raise Undecided("it changes autocasting, which a graph does not show")

    patched: tuple[tuple[Any, str, Any], ...] = (
        (nn.Module, "__setattr__", assign),
        (torch.autograd.Function, "apply", classmethod(apply_traced)),
        (torch.amp.autocast_mode.autocast, "__enter__", enter_traced),
        *((torch, name, _recorded(tracer, getattr(torch, name))) for name in _MADE_OF_SIZES),
    )
    before = [kind.__dict__[name] for kind, name, _ in patched]
    try:
        for kind, name, value in patched:
            setattr(kind, name, value)
        yield
    finally:
        for (kind, name, _), value in zip(patched, before, strict=True):
            setattr(kind, name, value)


class Builtins:
    """Functions of Python that give plain numbers, replaced in the modules whose code is traced.

    ``x.view(len(x), -1)`` and ``int(x.shape[0])`` then stay in the graph, and hold for every batch.
    """

    def __init__(self, tracer: Recorder) -> None:
        def length(value: Any) -> Any:
            return (
                tracer.create_proxy("call_function", len, (value,), {}) if isinstance(value, fx.Proxy) else len(value)
            )

        class Kind(type):
            def __call__(cls, *args: Any, **kwargs: Any) -> Any:
                if args and isinstance(args[0], fx.Proxy) and tracer.is_number(args[0]):
                    return tracer.create_proxy("call_function", int, args, kwargs)
                return int(*args, **kwargs)

            def __instancecheck__(cls, instance: Any) -> bool:
                return isinstance(instance, int)

            def __subclasscheck__(cls, subclass: type) -> bool:
                return issubclass(subclass, int)

            def __eq__(cls, other: object) -> bool:
                return other is cls or other is int

            def __hash__(cls) -> int:
                return hash(int)

        self.replaced = {"len": length, "int": Kind("int", (int,), {})}
        self.changed: list[tuple[dict[str, Any], str]] = []

    def replace_in(self, function: Any) -> None:
        """Replaces them in the file that ``function`` is from."""
        names = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__globals__", None)
        if names is None or str(names.get("__name__")).startswith(("torch.", "passes.")):
            return
        for name, value in self.replaced.items():
            if name not in names:
                names[name] = value
                self.changed.append((names, name))

    def restore(self) -> None:
        """Takes them out again."""
        for names, name in self.changed:
            names.pop(name, None)
        self.changed.clear()


def _recorded(tracer: Recorder, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def record(*args: Any, **kwargs: Any) -> Any:
        if not _holds_proxy((args, kwargs)):
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, kwargs)

    return record


def _holds_proxy(value: Any) -> bool:
    if isinstance(value, fx.Proxy):
        return True
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return any(_holds_proxy(item) for item in items)
