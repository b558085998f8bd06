"""Recomputation: activations are computed again in the backward pass instead of being kept.

Chen, Xu, Zhang, Guestrin: "Training Deep Nets with Sublinear Memory Cost", 2016. Of a piece of a network only inputs
and outputs are kept. This takes less memory than ``torch.utils.checkpoint``: outputs are alive anyway, so they are not
computed a second time; the second run ends as soon as the last missing tensor has been computed, mostly before the last
norm of a piece; and arguments are released one by one.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import get_device_states, set_device_states

Buffer = tuple[nn.Module, str]
"""The module that holds a buffer, and the buffer's name in it."""


Result = TypeVar("Result")


def recomputed(run: Callable[..., Result], arguments: Sequence[object], statistics: Sequence[Buffer] = ()) -> Result:
    """Return ``run(*arguments)``; the backward pass calls ``run`` once more for the tensors that it needs.

    Args:
        run: A function whose result follows from its arguments and the states of the random generators, and which
            changes none of its arguments.
        arguments: Its arguments; they are kept until the backward pass.
        statistics: Buffers that ``run`` changes; the second call does not change them.

    >>> x = torch.ones(3, requires_grad=True)
    >>> recomputed(lambda x: (x * x).sin(), (x,)).sum().backward()
    >>> torch.allclose(x.grad, 2 * torch.ones(3).cos())
    True
    """
    if not torch.is_grad_enabled():
        return run(*arguments)
    piece = _RecordedRun(run, arguments, statistics)
    versions = [a._version for a in arguments if isinstance(a, torch.Tensor)]
    _RUNNING.pieces.append(piece)
    try:
        with saved_tensors_hooks(piece.pack, piece.unpack):
            result = run(*arguments)
    finally:
        _RUNNING.pieces.pop()
    assert versions == [a._version for a in arguments if isinstance(a, torch.Tensor)], "an argument was overwritten"
    piece.keep(result)
    return result


def part_here() -> None:
    """Divide the piece that is running in two, which the backward pass recomputes one after the other.

    The backward pass needs the tensors of the second part first, so those of both are never alive together. It costs
    one more run of the first part. Without effect outside of :func:`recomputed`.
    """
    if _RUNNING.pieces:
        piece = _RUNNING.pieces[-1]
        piece.border = len(piece.slots)


class _Enough(BaseException):
    """Ends the second run once nothing is missing. Not an Exception, which a forward might catch."""


class _RecomputeSlot:
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
        """Hold a tensor that is alive for other reasons."""
        self.kept, self.value = True, tensor

    def give(self) -> torch.Tensor | None:
        """Return the tensor and release it; a second request finds it in the memory that the backward pass still holds.

        Returns:
            The tensor; None where it has not been computed, or where its memory is gone.
        """
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
        """Return whether a tensor is the one that was saved, unchanged since."""
        same = tensor._version == self.version and self.storage() is tensor.untyped_storage()
        return same and _view(tensor) == self.view


class _RecordedRun:
    """One run of a piece of a network, and all that it takes to run it again."""

    def __init__(self, run: Callable[..., object], arguments: Sequence[object], statistics: Sequence[Buffer]) -> None:
        self.run, self.statistics = run, statistics
        self.arguments: tuple[object, ...] | None = tuple(arguments)
        self.slots: list[weakref.ref[_RecomputeSlot]] = []
        self.border = 0
        kinds = {a.device.type for a in arguments if isinstance(a, torch.Tensor)}
        self.autocasts = [_autocast_now(kind) for kind in sorted({"cpu", *kinds} - {"meta"})]
        self.random = torch.get_rng_state()
        self.devices, self.device_random = get_device_states(*arguments)
        self.device_type = next(iter(kinds - {"cpu", "meta"}), "cuda")

    def pack(self, tensor: torch.Tensor) -> _RecomputeSlot:
        """Note a tensor that the graph needs; autograd calls this in the first run."""
        slot = _RecomputeSlot(tensor, len(self.slots))
        if isinstance(tensor, nn.Parameter):
            slot.keep(tensor)
        elif _is_small(tensor) or any(_shares(tensor, argument) for argument in self.arguments or ()):
            slot.keep(tensor.detach())
        self.slots.append(weakref.ref(slot))
        return slot

    def keep(self, result: object) -> None:
        """Hold the outputs of the piece where the graph needs them."""
        slots = [slot for ref in self.slots if (slot := ref()) is not None and not slot.kept]
        for tensor in tree_leaves(result):
            for slot in slots:
                if isinstance(tensor, torch.Tensor) and slot.saved(tensor):
                    slot.keep(tensor.detach())
        if all(slot.kept for slot in slots):
            self.arguments = None

    def unpack(self, slot: _RecomputeSlot) -> torch.Tensor:
        """Return a tensor that the graph needs; autograd calls this in the backward pass."""
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

    def _run_again(self, second_part: bool) -> None:
        if self.arguments is None:
            raise RuntimeError("cannot go backward a second time through a freed graph; give retain_graph=True")
        empty = {i: s for i, ref in enumerate(self.slots) if (s := ref()) is not None and s.value is None}
        missing = {i: slot for i, slot in empty.items() if (i >= self.border) == second_part}
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
            # The graph itself holds what it still needs of the arguments, and releases it tensor by tensor.
            self.arguments = None


class _Running(threading.local):
    """Pieces that are running in this thread, the innermost last."""

    def __init__(self) -> None:
        self.pieces: list[_RecordedRun] = []


def _view(tensor: torch.Tensor) -> tuple[int | torch.SymInt, torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.storage_offset(), tensor.size(), tensor.stride(), tensor.dtype


def _is_small(tensor: torch.Tensor) -> bool:
    """Return whether a tensor takes little memory at any batch size: mean and variance of a norm, a factor a sample."""
    return tensor.ndim < 2 or tensor.shape[-1] == 1


def _shares(tensor: torch.Tensor, other: object) -> bool:
    return isinstance(other, torch.Tensor) and other.untyped_storage() is tensor.untyped_storage()


def _autocast_now(kind: str) -> Callable[[], torch.autocast]:
    """Return a function that enters the autocast region which is open now on a kind of device."""
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    caches = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(kind, dtype, enabled=enabled, cache_enabled=caches)


def _never(packed: object) -> torch.Tensor:
    raise AssertionError("nothing goes backward through the second run")


_RUNNING = _Running()


def buffers_of(code: fx.GraphModule) -> tuple[Buffer, ...]:
    """Return the buffers of all modules that generated code calls, and the buffers that it reads, each once."""
    buffers: dict[tuple[int, str], Buffer] = {}
    for node in code.graph.nodes:
        if node.op == "call_module":
            owners = [(m, n) for m in code.get_submodule(str(node.target)).modules() for n in m._buffers]
        elif node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            owner = code.get_submodule(path)
            owners = [(owner, name)] if name in owner._buffers else []
        else:
            continue
        buffers.update({(id(owner), name): (owner, name) for owner, name in owners})
    return tuple(buffers.values())


def buffers_in(module: nn.Module) -> tuple[Buffer, ...]:
    """Return the buffers of a module and of all modules in it."""
    return tuple((owner, name) for owner in module.modules() for name in owner._buffers)


@contextlib.contextmanager
def buffers_kept(buffers: Iterable[Buffer]) -> Iterator[None]:
    """Restore buffers on leaving: the same tensors with the same values.

    Batch norm's statistics must move once a step, also where cascades or recomputed activations run a layer again.
    Values are written past the version counters, so that graphs recorded before may still go backward.
    """
    held = []
    for owner, name in buffers:
        tensor = owner._buffers[name]
        if tensor is not None:
            held.append((owner, name, tensor, tensor.detach().clone()))
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, tensor, values in held:
                owner._buffers[name] = tensor
                tensor.data.copy_(values)
