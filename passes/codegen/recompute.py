"""Activations that are computed anew in the backward pass instead of being kept.

Chen, Xu, Zhang, Guestrin: "Training Deep Nets with Sublinear Memory Cost", 2016: of a piece of a network only what goes
in and what comes out is kept. Leaner than ``torch.utils.checkpoint``: what a piece gives is alive anyway, so it is not
made a second time, and the second run ends as soon as the last tensor that is missing has been made, mostly before the
last norm of a piece.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import get_device_states, set_device_states

from passes.codegen.buffers import Buffer, buffers_kept


def recomputed(run: Callable[..., Any], arguments: Sequence[Any], statistics: Sequence[Buffer] = ()) -> Any:
    """What ``run(*arguments)`` gives; its backward runs it once more for the tensors that it needs.

    Args:
        run: Gives the same for the same arguments and state of the random generators, and changes none of them.
        arguments: Kept until the backward pass.
        statistics: Buffers that it changes, which the second run leaves alone.
    """
    if not torch.is_grad_enabled():
        return run(*arguments)
    record = _Record(run, arguments, statistics)
    versions = [a._version for a in arguments if isinstance(a, torch.Tensor)]
    _RUNNING.records.append(record)
    try:
        with saved_tensors_hooks(record.pack, record.unpack):
            result = run(*arguments)
    finally:
        _RUNNING.records.pop()
    assert versions == [a._version for a in arguments if isinstance(a, torch.Tensor)], "an argument was overwritten"
    record.keep(result)
    return result


def part_here() -> None:
    """Called inside of a run: what is needed from here on, and what was needed before, is not made anew at one time.

    The backward pass needs the former first. It costs one more run of the first part.
    """
    if _RUNNING.records:
        record = _RUNNING.records[-1]
        record.border = len(record.slots)


class _Enough(BaseException):
    """Nothing is missing any more, the second run may end. No Exception, which a forward might catch."""


class _Slot:
    """One tensor that the graph needs."""

    __slots__ = ("__weakref__", "given", "index", "kept", "storage", "value", "version", "view")

    def __init__(self, tensor: torch.Tensor, index: int) -> None:
        self.index = index
        self.storage = weakref.ref(tensor.untyped_storage())
        self.view = _view(tensor)
        self.version = tensor._version
        self.kept = False
        self.value: torch.Tensor | None = None
        self.given: weakref.ref[torch.UntypedStorage] | None = None

    def keep(self, tensor: torch.Tensor) -> None:
        """Holds a tensor that is alive for other reasons."""
        self.kept, self.value = True, tensor

    def give(self) -> torch.Tensor | None:
        """Hands the tensor to the backward pass, which may ask again while it holds it; nobody else keeps it alive."""
        if self.value is None:
            memory = self.given() if self.given is not None else None
            offset, size, stride, dtype = self.view
            if memory is None:
                return None
            return torch.empty(0, dtype=dtype, device=memory.device).set_(memory, offset, size, stride)
        value = self.value
        if not self.kept:
            self.value, self.given = None, weakref.ref(value.untyped_storage())
        return value

    def saved(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is the one that was saved, unchanged since."""
        same = tensor._version == self.version and self.storage() is tensor.untyped_storage()
        return same and _view(tensor) == self.view


class _Record:
    """One run of a piece, and how to run it again."""

    def __init__(self, run: Callable[..., Any], arguments: Sequence[Any], statistics: Sequence[Buffer]) -> None:
        self.run, self.statistics = run, statistics
        self.arguments: tuple[Any, ...] | None = tuple(arguments)
        self.slots: list[weakref.ref[_Slot]] = []
        self.border = 0
        kinds = {a.device.type for a in arguments if isinstance(a, torch.Tensor)}
        self.autocasts = [_autocast_now(kind) for kind in sorted({"cpu", *kinds} - {"meta"})]
        self.random = torch.get_rng_state()
        self.devices, self.device_random = get_device_states(*arguments)
        self.device_type = next(iter(kinds - {"cpu", "meta"}), "cuda")

    def pack(self, tensor: torch.Tensor) -> _Slot:
        """Called for each tensor that the graph needs, in the first run."""
        slot = _Slot(tensor, len(self.slots))
        if isinstance(tensor, nn.Parameter):
            slot.keep(tensor)
        elif _is_small(tensor) or any(_shares(tensor, argument) for argument in self.arguments or ()):
            slot.keep(tensor.detach())
        self.slots.append(weakref.ref(slot))
        return slot

    def keep(self, result: Any) -> None:
        """Holds what the piece gives, where the graph needs it."""
        slots = [slot for ref in self.slots if (slot := ref()) is not None and not slot.kept]
        for tensor in tree_leaves(result):
            for slot in slots:
                if isinstance(tensor, torch.Tensor) and slot.saved(tensor):
                    slot.keep(tensor.detach())
        if all(slot.kept for slot in slots):
            self.arguments = None

    def unpack(self, slot: _Slot) -> torch.Tensor:
        """Called in the backward pass, whenever it comes to a tensor that it needs."""
        value = slot.give()
        if value is None:
            self._run_again(slot.index >= self.border)
            value = slot.give()
        assert value is not None
        if slot.kept and value._version != slot.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(value.shape)} that the backward pass needs has been changed in place since "
                f"the forward pass: it is at version {value._version}, and was at {slot.version}"
            )
        return value

    def _run_again(self, behind: bool) -> None:
        if self.arguments is None:
            raise RuntimeError("a graph that is freed was to go backward a second time; give retain_graph=True")
        empty = {i: s for i, ref in enumerate(self.slots) if (s := ref()) is not None and s.value is None}
        missing = {i: slot for i, slot in empty.items() if (i >= self.border) == behind}
        last, count = max(missing), 0

        def pack(tensor: torch.Tensor) -> None:
            nonlocal count
            slot = missing.get(count)
            if slot is not None:
                if _view(tensor) != slot.view:
                    raise RuntimeError(f"the second run gave {_view(tensor)} where the first gave {slot.view}")
                slot.value = tensor.detach()
            count += 1
            if count > last:
                raise _Enough

        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(self.devices, device_type=self.device_type))
            torch.set_rng_state(self.random)
            if self.devices:
                set_device_states(self.devices, self.device_random, device_type=self.device_type)
            for autocast in self.autocasts:
                stack.enter_context(autocast())
            stack.enter_context(buffers_kept(self.statistics))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(contextlib.suppress(_Enough))
            stack.enter_context(saved_tensors_hooks(pack, _never))
            self.run(*self.arguments)
        if len(missing) == len(empty) and not torch._C._autograd._get_current_graph_task_keep_graph():
            # What the graph needs of them it holds itself, and lets go of one by one.
            self.arguments = None


class _Running(threading.local):
    """The runs that go on in a thread, the innermost last."""

    def __init__(self) -> None:
        self.records: list[_Record] = []


def _view(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.size(), tensor.stride(), tensor.dtype


def _is_small(tensor: torch.Tensor) -> bool:
    """Whether it is next to nothing at any batch size: mean and variance of a norm, a factor a sample."""
    return tensor.ndim < 2 or tensor.shape[-1] == 1


def _shares(tensor: torch.Tensor, other: Any) -> bool:
    return isinstance(other, torch.Tensor) and other.untyped_storage() is tensor.untyped_storage()


def _autocast_now(kind: str) -> Callable[[], torch.autocast]:
    """The autocast region that is open on a kind of device, to be opened again."""
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    caches = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(kind, dtype, enabled=enabled, cache_enabled=caches)


def _never(nothing: Any) -> torch.Tensor:
    raise AssertionError("the second run's own graph goes nowhere")


_RUNNING = _Running()
