"""Costs of operations, counted at the level of ATen operators.

A convolution counts wherever it hides: in a leaf module, in a functional call, in a class of the user's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from passes.ir import Cost

_aten = torch.ops.aten

_ATTENTION = {
    _aten.bmm,
    _aten.baddbmm,
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_efficient_attention,
    _aten._scaled_dot_product_cudnn_attention,
}
"""Operators of attention: products of two values, neither of them a weight."""


class CostMode(TorchDispatchMode):
    """Adds up the cost of every operator that runs inside; :meth:`take` returns the sum and starts again from zero."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self._clear()

    def _clear(self) -> None:
        self.macs = 0
        self.mixing = False
        self.depthwise = False

    def take(self) -> Cost:
        """Return the cost since the last call, for one sample."""
        cost = Cost(self.macs // self.batch, self.mixing, self.depthwise)
        self._clear()
        return cost

    def put(self, cost: Cost) -> None:
        """Add a cost for one sample that is known without running."""
        self.macs += cost.macs * self.batch
        self.mixing |= cost.mixing
        self.depthwise |= cost.depthwise

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", func)
        if packet is _aten.convolution:
            weight, transposed = args[1], args[6]
            # Each weight is used once for each position: of the output, or of the input if transposed.
            positions = args[0] if transposed else out
            self.macs += positions.numel() // positions.shape[1] * weight.numel()
            depthwise = weight.shape[1] == 1 and args[8] > 1
            self.depthwise |= depthwise
            self.mixing |= not depthwise
        elif packet in (_aten.mm, _aten.addmm):
            matrix = args[0] if packet is _aten.mm else args[1]
            self.macs += matrix.shape[0] * matrix.shape[1] * out.shape[1]
            self.mixing = True
        elif packet in _ATTENTION:
            self.mixing = True
        return out
