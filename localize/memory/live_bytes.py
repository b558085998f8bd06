"""Count the bytes of all live tensors, at every operation."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensors, at every operation.

    A storage counts from the operation that returns it until its last user releases it; views count nothing. What an
    operation allocates and frees inside itself (the workspace of a convolution) is not seen, nor is fragmentation.

    Attributes:
        live: Bytes alive now.
        peak: The most bytes alive so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def track(self, *values: object) -> None:
        """Count tensors that exist already."""
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.track(result)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # _cdata names the storage itself; Python objects for one storage may come and go with equal id().
        key = storage._cdata
        size = storage.nbytes()
        if key not in self._sizes:
            weakref.finalize(storage, self._forget, key)
        self.live += size - self._sizes.get(key, 0)  # a storage may have been resized since it was counted
        self._sizes[key] = size

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
