"""Side streams: a local module's backward pass while the next one's forward pass runs. For CUDA devices.

Modules take two streams in turn. Autograd runs a module's backward pass on the stream of its forward pass, and only the
caller's stream waits for it; the next module's forward pass waits for what it reads, which is there before. Not run on
a GPU yet: what is tested is the order of waits, on streams that note what they are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree


class Streams:
    """Two streams that the modules of a step take in turn.

    Args:
        device: Whose streams: ``torch.cuda``, or what has its ``Stream``, ``stream`` and ``current_stream``.
    """

    def __init__(self, device: Any = torch.cuda) -> None:
        self._device = device
        self._sides = (device.Stream(), device.Stream())
        self._turn = 0
        self._forward: Any = None

    def start(self, *values: Any) -> None:
        """A step begins: parameters were updated, and its input made, on the caller's stream.

        Args:
            values: What any module of the step may read.
        """
        caller = self._device.current_stream()
        for side in self._sides:
            side.wait_stream(caller)
            _used_by(side, values)
        self._forward = None

    @contextlib.contextmanager
    def module(self, *values: Any) -> Iterator[None]:
        """Around a module's forward pass and loss.

        Args:
            values: What it reads of what other modules made.
        """
        side = self._sides[self._turn]
        self._turn = 1 - self._turn
        if self._forward is not None:
            side.wait_event(self._forward)
        # The allocator knows a tensor's own stream alone: it may give its memory away while this one still reads.
        _used_by(side, values)
        with self._device.stream(side):
            yield
            self._forward = side.record_event()

    def hand_over(self, *values: Any) -> None:
        """What a module gave goes to the caller, whose stream waits for the forward pass, and for no backward pass."""
        caller = self._device.current_stream()
        caller.wait_event(self._forward)
        _used_by(caller, values)


def _used_by(stream: Any, values: Any) -> None:
    for value in pytree.tree_leaves(values):
        if isinstance(value, torch.Tensor):
            value.record_stream(stream)
