"""Local modules: generated code over the user's layers, with the auxiliary networks that train them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from localize.methods.networks.blocks import Recomputed
from localize.methods.networks.local_loss import Batch, supervise
from localize.plan.records import LocalModulePlan
from passes.codegen.buffers import Buffer, buffers_of
from passes.codegen.eval_mode import for_inference


class LocalOutput(NamedTuple):
    """What one local module gives in one training step."""

    name: str
    """Name of the local module."""
    loss: torch.Tensor
    """Local loss, a scalar; its backward reaches this module's parameters and its auxiliary network's, and no other
    unless the plan says so (``cascade``)."""
    logits: Any
    """What the loss was computed from: (N, classes), or (N, classes, H, W); the last module's is all that the model
    returns, where there is an ``output_criterion``."""


class LocalModule(nn.Module):
    """One local module: generated code over the user's layers, and the auxiliary network that trains them.

    The layers belong to ``LocalGraphModule.primary``; here they are only called, so every parameter has one name.
    """

    def __init__(
        self,
        plan: LocalModulePlan,
        stage: fx.GraphModule,
        auxiliary: nn.Module | None,
        inputs: Sequence[str],
        outputs: Sequence[str],
        reads: int = 1,
        cascaded: nn.Module | None = None,
        recomputed: Recomputed | None = None,
        overwrites: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.plan = plan
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.reads = reads
        self.auxiliary = auxiliary
        self.cascaded = cascaded
        self.overwrites = overwrites
        """Those of ``inputs`` that running it changes in place."""
        # Not registered: its submodules are the user's, and have their names in the primary network already.
        self.__dict__["stage"] = stage
        self.__dict__["recomputed"] = recomputed
        self.__dict__["buffers_read"] = None

    @property
    def code(self) -> str:
        """The generated Python of this module."""
        return str(self.__dict__["stage"].code)

    def forward(self, *values: Any) -> Any:
        """Runs the module's layers on detached values; returns the cut, and beside it what else later modules need."""
        return self.attached(*[v.detach() if isinstance(v, torch.Tensor) else v for v in values])

    def attached(self, *values: Any) -> Any:
        """Runs the module's layers on values as they are: gradients pass into whatever computed them."""
        return (self.__dict__["recomputed"] or self.__dict__["stage"])(*values)

    def infer(self, *values: Any) -> Any:
        """Runs the module's layers as in inference, if they are in eval mode."""
        return for_inference(self.__dict__["stage"])(*values)

    def running_statistics(self) -> tuple[Buffer, ...]:
        """The buffers that running the module's layers may change."""
        if self.__dict__["buffers_read"] is None:
            self.__dict__["buffers_read"] = buffers_of(self.__dict__["stage"])
        found: tuple[Buffer, ...] = self.__dict__["buffers_read"]
        return found

    def logits(self, *cut: torch.Tensor) -> torch.Tensor:
        """What the local loss is computed from: the auxiliary network's output, or the primary's in the last module."""
        if self.auxiliary is None:
            return cut[0]
        result: torch.Tensor = self.auxiliary(*cut)
        return result

    def supervise(
        self, cut: Sequence[torch.Tensor], batch: Batch, *, cascaded: bool = False
    ) -> tuple[Any, torch.Tensor]:
        """Prediction and local loss of a module that has auxiliary networks.

        Args:
            cut: What they read.
            batch: The batch.
            cascaded: Whether the loss is the one that reaches earlier modules.
        """
        network = self.cascaded if cascaded else self.auxiliary
        assert network is not None, f"{self.plan.name} has no such auxiliary network"
        return supervise(network, batch, *cut)

    def extra_repr(self) -> str:
        """Name and layers."""
        return f"{self.plan.name}, layers={list(self.plan.layers)}"


def several(result: Any) -> tuple[Any, ...]:
    """A value, or a tuple of them, as a tuple."""
    return result if isinstance(result, tuple) else (result,)
