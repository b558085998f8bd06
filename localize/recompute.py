"""Local layers whose activations are computed anew in the backward pass, one layer after the other.

Chen, Xu, Zhang, Guestrin: "Training Deep Nets with Sublinear Memory Cost", 2016: only what crosses from one layer to
the next is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from passes.codegen import returned
from passes.statistics import buffers_kept, buffers_of


class Piece(NamedTuple):
    """Generated code of one local layer."""

    code: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    overwrites: frozenset[str]
    """Those of ``inputs`` that it changes in place."""

    def __call__(self, *values: Any) -> Any:
        """Runs the code; what it would change in place it is given as a copy, since it will run again."""
        return self.code(*[v.clone() if n in self.overwrites else v for n, v in zip(self.inputs, values, strict=True)])


class Recomputed:
    """Runs local layers in turn and keeps only what crosses between them.

    Results, gradients and running statistics are those of a plain run, bit for bit: the second run of a layer starts
    from the same state of the random generators, and leaves running statistics alone.

    Args:
        pieces: Consecutive layers.
        inputs: Names of the values that it is called with.
        outputs: Names of the values that it returns.
    """

    def __init__(self, pieces: Sequence[Piece], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.pieces, self.inputs, self.outputs = tuple(pieces), tuple(inputs), tuple(outputs)
        self._statistics = [buffers_of(piece.code) for piece in self.pieces]
        self._last = {name: i for i, piece in enumerate(self.pieces) for name in piece.inputs}

    def __call__(self, *values: Any) -> Any:
        """The values of ``outputs``: one as it is, several as a tuple."""
        held = dict(zip(self.inputs, values, strict=True))
        for i, (piece, statistics) in enumerate(zip(self.pieces, self._statistics, strict=True)):
            arguments = [held[name] for name in piece.inputs]
            contexts = lambda buffers=statistics: (contextlib.nullcontext(), buffers_kept(buffers))  # noqa: E731
            run = cast(Callable[..., Any], piece)
            if torch.is_grad_enabled():
                result = checkpoint(run, *arguments, use_reentrant=False, context_fn=contexts)
            else:
                result = run(*arguments)
            for name in piece.inputs:
                if self._last[name] == i and name not in self.outputs:
                    held.pop(name, None)
            held.update(zip(piece.outputs, returned(piece.outputs, result), strict=True))
            del arguments, result
        results = tuple(held[name] for name in self.outputs)
        return results[0] if len(results) == 1 else results
