"""The bytes alive after every operation of a training step, and the module that each operation belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._C._autograd import _get_sequence_nr
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from localize.memory.live_bytes import LiveBytes
from localize.plan.memory_forecast import Moment, Phase
from passes.codegen.relu import harmless


class Event(NamedTuple):
    """An operation of a step; a named tuple, since steps have many."""

    live: int
    """Bytes alive after the operation, without the optimizer's state."""
    operator: OpOverload | None
    """ATen operator; None for the mark at the beginning of a phase."""
    module: int
    """Index of the local module that runs; the number of modules during the update at the end."""
    phase: Phase
    place: str | int
    """Path of the module that runs the operation; in the backward pass the sequence number of the forward node."""
    shape: tuple[int, ...]


class Timeline(LiveBytes):
    """Records every operation.

    Autograd numbers the nodes that a forward pass makes. These numbers lead from an operation of the backward pass to
    the module whose forward made the node.

    Attributes:
        events: The operations recorded so far.
        recording: Whether operations are recorded; their bytes count in any case.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.recording = True
        self._module = 0
        self._phase: Phase = "forward"
        self._paths = [""]
        self._origins: dict[int, str] = {}

    def enter(self, module: int, phase: Phase) -> None:
        """Begin a phase of a local module."""
        self._module, self._phase = module, phase
        self.events.append(Event(self.live, None, module, phase, "", ()))

    @contextmanager
    def paused(self, paused: bool = True) -> Iterator[None]:
        """Stop recording inside, or start it with ``paused=False``; bytes count in any case."""
        before, self.recording = self.recording, not paused
        try:
            yield
        finally:
            self.recording = before

    def insert(self, events: Sequence[Event], resident: int) -> None:
        """Append operations that another timeline has recorded, as part of the present phase.

        Args:
            events: The operations.
            resident: Bytes that were alive during all of them in the other timeline.
        """
        for event in events:
            live = self.live + event.live - resident
            self.events.append(event._replace(live=live, module=self._module, phase=self._phase, place=""))

    def moment(self, event: Event, state: int) -> Moment:
        """Return an event with its module path; ``state`` is the size of the whole optimizer state in bytes."""
        operation = "" if event.operator is None else event.operator.overloadpacket.__name__
        place = self._origins.get(event.place, "") if isinstance(event.place, int) else event.place
        return Moment(event.live + state, event.phase, operation, place, event.shape)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.recording:
            first = result if isinstance(result, torch.Tensor) else _first_tensor(result)
            shape = () if first is None else tuple(first.shape)
            self.events.append(Event(self.live, func, self._module, self._phase, self._place(), shape))
        return result

    def _place(self) -> str | int:
        path = self._paths[-1]
        if path or self._phase == "forward":  # a module's forward may run in the backward pass: it recomputes
            # The node of a differentiable operation is made before the operation itself runs.
            self._origins.setdefault(_get_sequence_nr() - 1, path)
            return path
        node = torch._C._current_autograd_node()
        return path if node is None else int(node._sequence_nr())

    @contextmanager
    def following(self, module: nn.Module) -> Iterator[None]:
        """Tell the forwards of the module's submodules apart inside."""
        hooks: list[RemovableHandle] = []
        for path, child in module.named_modules():
            if not path or isinstance(child, torch.jit.ScriptModule):
                continue
            hooks.append(child.register_forward_pre_hook(harmless(lambda *_, path=path: self._paths.append(path))))
            hooks.append(child.register_forward_hook(harmless(lambda *_: self._leave()), always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _leave(self) -> None:
        self._paths.pop()


def _first_tensor(result: object) -> torch.Tensor | None:
    return next((leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)), None)
